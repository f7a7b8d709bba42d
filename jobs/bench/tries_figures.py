"""What second tries add, as a table and as Parquet with one row per try."""

from __future__ import annotations

import functools
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table
from rich.text import Text

from fpe_core import load_scorer, load_structure_model, score_edits
from fpe_core.judging.rules import Rules
from fpe_core.still_life.benchmark.judgement import is_good
from fpe_core.still_life.benchmark.tries import Score, TriedBenchmarkEdit
from fpe_core.still_life.scene import FACTORS

TRIES_SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("factor", pa.string()),
        ("number", pa.int32()),
        ("parameters", pa.string()),  # JSON
        ("reason", pa.string()),
        ("good", pa.bool_()),
        ("unet_rows", pa.float64()),
    ]
)


@dataclass(frozen=True)
class TriesFigures:
    """Edits after so many further tries; `accepted_good` by the renderer's judgement."""

    edits: int
    accepted: int
    accepted_good: int
    unet_rows: float

    @property
    def precision(self) -> float | None:
        return self.accepted_good / self.accepted if self.accepted else None

    @property
    def accepted_per_1000_rows(self) -> float:
        return 1000.0 * self.accepted / self.unet_rows


def factors_of(rules: Rules) -> tuple[str, ...]:
    """The benchmark's factors that there are rules for."""
    return tuple(factor for factor in FACTORS if rules.of(factor))


def scoring(device: str) -> Score:
    """By the built-in CLIP and structure model, loaded once."""
    clip, structure = load_scorer(device=device), load_structure_model(device=device)
    return functools.partial(score_edits, clip=clip, structure=structure)


def figures_after(tried: Sequence[TriedBenchmarkEdit], further: int) -> TriesFigures:
    """As if an edit were tried `further` times more at most."""
    accepted = good = 0
    rows = 0.0
    for each in tried:
        made = each.tries[: further + 1]
        rows += sum(one.unet_rows for one in made)
        if made[-1].reason is None:
            accepted += 1
            good += is_good(made[-1].judgement)
    return TriesFigures(len(tried), accepted, good, rows)


def most_tries(tried: Sequence[TriedBenchmarkEdit]) -> int:
    """Further tries of the edit that had most."""
    return max((len(each.tries) - 1 for each in tried), default=0)


def write_tries(tried: Sequence[TriedBenchmarkEdit], path: pathlib.Path) -> None:
    """One row per try; `reason` is empty for accepted ones."""
    rows = [
        {
            "seed": each.edit.seed,
            "factor": each.edit.factor,
            "number": number,
            "parameters": json.dumps(one.parameters.to_dict()),
            "reason": one.reason or "",
            "good": is_good(one.judgement),
            "unet_rows": one.unet_rows,
        }
        for each in tried
        for number, one in enumerate(each.tries)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRIES_SCHEMA), path)


def tries_table(tried: Sequence[TriedBenchmarkEdit]) -> Table:
    """What every further try adds, and what it costs."""
    table = _table(
        "Accepted edits by further tries",
        ("tries more", "accepted", "right", "precision", "rows", "per 1,000", "added per 1,000"),
    )
    before = figures_after(tried, 0)
    for further in range(most_tries(tried) + 1):
        now = figures_after(tried, further)
        extra_rows = now.unet_rows - before.unet_rows
        added = 1000 * (now.accepted - before.accepted) / extra_rows if extra_rows else None
        table.add_row(
            str(further),
            f"{now.accepted} of {now.edits}",
            str(now.accepted_good),
            "-" if now.precision is None else f"{now.precision:.3f}",
            f"{now.unet_rows:,.0f}",
            f"{now.accepted_per_1000_rows:.2f}",
            "-" if added is None else f"{added:.2f}",
        )
    return table


def rungs_table(tried: Sequence[TriedBenchmarkEdit]) -> Table:
    """How often each rung made an edit acceptable, by the reason that led to it."""
    made: Counter[tuple[str, str]] = Counter()
    accepted: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for each in tried:
        for before, now in zip(each.tries, each.tries[1:], strict=False):
            key = (str(before.reason), _changed(each, now.parameters.to_dict()))
            made[key] += 1
            accepted[key] += now.reason is None
            right[key] += now.reason is None and is_good(now.judgement)
    table = _table("Rungs", ("after", "with", "tries", "accepted", "right"))
    for key, count in sorted(made.items()):
        table.add_row(*key, str(count), str(accepted[key]), str(right[key]))
    return table


def _changed(tried: TriedBenchmarkEdit, parameters: dict[str, object]) -> str:
    """What of the first try's parameters is another."""
    first = tried.tries[0].parameters.to_dict()
    changed = {name: value for name, value in parameters.items() if value != first[name]}
    return ", ".join(f"{name} {_short(value)}" for name, value in changed.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
