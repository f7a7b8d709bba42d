"""What `fpe bench gate` prints and writes: sources, their edits, and what each estimate tells."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table
from rich.text import Text

from fpe_core.still_life.benchmark.gate import FULL, EstimateFigures, TriedSource

_SHOWN = ("autoencoder_psnr_db", FULL)


def write_tried(tried: Sequence[TriedSource], path: pathlib.Path) -> None:
    """One row per edit, and one without an edit for a source that has no right answer."""
    rows = []
    for each in tried:
        source = {
            "kind": each.source.kind,
            "seed": each.source.seed,
            "steps": each.source.steps,
            "source_prompt": each.source.source_prompt,
            **each.estimates,
        }
        rows += [
            {
                **source,
                "factor": edit.edit.factor,
                "target_prompt": edit.edit.target_prompt,
                "is_askable": edit.is_askable,
                "success": edit.judgement.success,
                "structure": edit.judgement.structure,
                "is_good": edit.is_good,
            }
            for edit in each.edits
        ] or [source]
    pq.write_table(pa.Table.from_pylist(rows, schema=_edits_schema(tried)), path)


def _edits_schema(tried: Sequence[TriedSource]) -> pa.Schema:
    estimates = [(name, pa.float64()) for name in tried[0].estimates]
    return pa.schema(
        [
            ("kind", pa.string()),
            ("seed", pa.int64()),
            ("steps", pa.int32()),  # null: the edits' own
            ("source_prompt", pa.string()),
            *estimates,
            ("factor", pa.string()),
            ("target_prompt", pa.string()),
            ("is_askable", pa.bool_()),
            ("success", pa.bool_()),
            ("structure", pa.float64()),
            ("is_good", pa.bool_()),
        ]
    )


def write_figures(figures: Sequence[EstimateFigures], path: pathlib.Path) -> None:
    """One row per estimate."""
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(each) for each in figures]), path)


def kinds_table(tried: Sequence[TriedSource]) -> Table:
    """Kind by kind: how many edits count, how many of those are good, how sources come back."""
    columns = ("kind", "sources", "edits", "good", "autoencoder dB", "inversion dB")
    table = _table("Sources", columns)
    for kind in dict.fromkeys(each.source.kind for each in tried):
        own = [each for each in tried if each.source.kind == kind]
        good = [edit.is_good for each in own for edit in each.edits if edit.is_askable]
        means = [np.mean([each.estimates[name] for each in own]) for name in _SHOWN]
        share = f"{np.mean(good):.2f}" if good else "-"
        table.add_row(
            kind, str(len(own)), str(len(good)), share, *(f"{mean:.1f}" for mean in means)
        )
    return table


def figures_table(figures: Sequence[EstimateFigures]) -> Table:
    """What each estimate tells; EstimateFigures has the columns' meanings."""
    columns = ("estimate", "rows", "AUC", "5-95 %", "kind", "foreign", "rank", "caught")
    table = _table("Does a source that comes back badly give bad edits?", columns)
    for each in figures:
        table.add_row(
            each.name,
            str(each.unet_rows),
            f"{each.auc:.2f}",
            f"{each.auc_low:.2f}-{each.auc_high:.2f}",
            f"{each.auc_within_kinds:.2f}",
            f"{each.auc_foreign:.2f}",
            f"{each.rank_correlation:.2f}",
            f"{each.caught:.2f}",
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table
