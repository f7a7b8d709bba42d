"""What `fpe bench gate` prints and writes: sources, their edits, and what the gate can promise."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table
from rich.text import Text

from fpe_core.still_life.benchmark.gate import GateFigures, TriedSource

EDITS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),  # null: the edits' own
        ("source_prompt", pa.string()),
        ("autoencoder_psnr_db", pa.float64()),
        ("factor", pa.string()),
        ("target_prompt", pa.string()),
        ("is_askable", pa.bool_()),
        ("success", pa.bool_()),
        ("structure", pa.float64()),
        ("is_good", pa.bool_()),
    ]
)


def write_tried(tried: Sequence[TriedSource], path: pathlib.Path) -> None:
    """One row per edit, and one without an edit for a source that has no right answer."""
    rows = []
    for each in tried:
        source = {
            "kind": each.source.kind,
            "seed": each.source.seed,
            "steps": each.source.steps,
            "source_prompt": each.source.source_prompt,
            "autoencoder_psnr_db": each.autoencoder_psnr_db,
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
    pq.write_table(pa.Table.from_pylist(rows, schema=EDITS_SCHEMA), path)


def kinds_table(tried: Sequence[TriedSource]) -> Table:
    """Kind by kind: how many edits count, how many of those are good, the sources' mean PSNR."""
    columns = ("kind", "sources", "edits", "good", "autoencoder dB")
    table = _table("Sources", columns)
    for kind in dict.fromkeys(each.source.kind for each in tried):
        own = [each for each in tried if each.source.kind == kind]
        good = [edit.is_good for each in own for edit in each.edits if edit.is_askable]
        mean = np.mean([each.autoencoder_psnr_db for each in own])
        share = f"{np.mean(good):.2f}" if good else "-"
        table.add_row(kind, str(len(own)), str(len(good)), share, f"{mean:.1f}")
    return table


def figures_table(figures: GateFigures) -> Table:
    """What the gate's figure tells; GateFigures has the meanings."""
    table = _table("What the autoencoder's PSNR of a source tells", ("figure", "value"))
    table.add_row("AUC, bad edits", f"{figures.auc:.2f}")
    table.add_row("  5 to 95 %", f"{figures.auc_low:.2f} to {figures.auc_high:.2f}")
    table.add_row("  within kinds of source", f"{figures.auc_within_kinds:.2f}")
    table.add_row("  bad edits caught where 5 % of the good are lost", f"{figures.caught:.2f}")
    table.add_row("AUC, pictures of another world", f"{figures.auc_foreign:.2f}")
    table.add_row("  lowest PSNR of a scene", f"{figures.scenes_lowest_db:.1f} dB")
    table.add_row("  highest of another world", f"{figures.foreign_highest_db:.1f} dB")
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    return table
