"""What retries add: printed tables, and Parquet with one row per attempt."""

from __future__ import annotations

import functools
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from fpe_core import load_scorer, load_structure_model, score_edits
from fpe_core.judging.rules import Rules
from fpe_core.still_life.benchmark.judgement import is_good
from fpe_core.still_life.benchmark.retries import AttemptedBenchmarkEdit, Score
from fpe_core.still_life.scene import FACTORS
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table

ATTEMPTS_SCHEMA = pa.schema(
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
class RetryFigures:
    """Figures after at most some number of retries per edit.

    `accepted_good` counts accepted edits that the renderer judges to be right.
    """

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
    """The benchmark's factors for which there are rules."""
    return tuple(factor for factor in FACTORS if rules.of(factor))


def scoring(device: str) -> Score:
    """A scoring function with the built-in CLIP and structure model, which are loaded once."""
    clip, structure = load_scorer(device=device), load_structure_model(device=device)
    return functools.partial(score_edits, clip=clip, structure=structure)


def figures_after(tried: Sequence[AttemptedBenchmarkEdit], retries: int) -> RetryFigures:
    """The figures that result if every edit is retried at most `retries` times."""
    accepted = good = 0
    rows = 0.0
    for each in tried:
        made = each.attempts[: retries + 1]
        rows += sum(one.unet_rows for one in made)
        if made[-1].reason is None:
            accepted += 1
            good += is_good(made[-1].judgement)
    return RetryFigures(len(tried), accepted, good, rows)


def most_retries(tried: Sequence[AttemptedBenchmarkEdit]) -> int:
    """The largest number of retries of any edit."""
    return max((len(each.attempts) - 1 for each in tried), default=0)


def write_attempts(tried: Sequence[AttemptedBenchmarkEdit], path: pathlib.Path) -> None:
    """Writes one row per attempt; `reason` is "" for accepted ones, `number` counts from 0."""
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
        for number, one in enumerate(each.attempts)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ATTEMPTS_SCHEMA), path)


def retries_table(tried: Sequence[AttemptedBenchmarkEdit]) -> Table:
    """What every retry adds, and what it costs."""
    table = titled_table(
        "Accepted edits by retries",
        ("retries", "accepted", "right", "precision", "rows", "per 1,000", "added per 1,000"),
    )
    before = figures_after(tried, 0)
    for retries in range(most_retries(tried) + 1):
        now = figures_after(tried, retries)
        extra_rows = now.unet_rows - before.unet_rows
        added = 1000 * (now.accepted - before.accepted) / extra_rows if extra_rows else None
        table.add_row(
            str(retries),
            f"{now.accepted} of {now.edits}",
            str(now.accepted_good),
            or_dash(now.precision, ".3f"),
            f"{now.unet_rows:,.0f}",
            f"{now.accepted_per_1000_rows:.2f}",
            or_dash(added, ".2f"),
        )
    return table


def changes_table(tried: Sequence[AttemptedBenchmarkEdit]) -> Table:
    """How often each change of the ladder made an edit acceptable, by the reject reason before
    it."""
    made: Counter[tuple[str, str]] = Counter()
    accepted: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    for each in tried:
        for before, now in zip(each.attempts, each.attempts[1:], strict=False):
            key = (str(before.reason), _changed(each, now.parameters.to_dict()))
            made[key] += 1
            accepted[key] += now.reason is None
            right[key] += now.reason is None and is_good(now.judgement)
    table = titled_table("Changes", ("after", "with", "attempts", "accepted", "right"))
    for key, count in sorted(made.items()):
        table.add_row(*key, str(count), str(accepted[key]), str(right[key]))
    return table


def _changed(tried: AttemptedBenchmarkEdit, parameters: dict[str, object]) -> str:
    """Which parameters differ from those of attempt 1."""
    first = tried.attempts[0].parameters.to_dict()
    changed = {name: value for name, value in parameters.items() if value != first[name]}
    return ", ".join(f"{name} {_short(value)}" for name, value in changed.items())


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
