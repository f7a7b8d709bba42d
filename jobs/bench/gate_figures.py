"""What `fpe bench gate` prints and writes: the sources, their edits, and what the PSNR predicts."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from fpe_core.still_life.benchmark.gate import GateFigures, TriedSource
from jobs.terminal.titled_table import titled_table

EDITS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),  # of the inversion; null: as many as the edits
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
    """Writes one row per edit. A source without a right answer has one row without an edit."""
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
    """By kind of source: its edits that count, the share that is good, and the sources' mean
    PSNR."""
    columns = ("kind", "sources", "edits", "good", "autoencoder dB")
    table = titled_table("Sources", columns)
    for kind in dict.fromkeys(each.source.kind for each in tried):
        own = [each for each in tried if each.source.kind == kind]
        good = [edit.is_good for each in own for edit in each.edits if edit.is_askable]
        mean = np.mean([each.autoencoder_psnr_db for each in own])
        share = f"{np.mean(good):.2f}" if good else "-"
        table.add_row(kind, str(len(own)), str(len(good)), share, f"{mean:.1f}")
    return table


def figures_table(figures: GateFigures) -> Table:
    """How well the gate's PSNR predicts bad edits; `GateFigures` explains the figures."""
    table = titled_table("What the autoencoder's PSNR of a source predicts", ("figure", "value"))
    table.add_row("AUC, bad edits", f"{figures.auc:.2f}")
    table.add_row("  5 to 95 %", f"{figures.auc_low:.2f} to {figures.auc_high:.2f}")
    table.add_row("  within kinds of source", f"{figures.auc_within_kinds:.2f}")
    table.add_row("  bad edits found if 5 % of the good are lost", f"{figures.caught:.2f}")
    table.add_row("AUC, out-of-domain images", f"{figures.auc_foreign:.2f}")
    table.add_row("  lowest PSNR of a scene", f"{figures.scenes_lowest_db:.1f} dB")
    table.add_row("  highest of an out-of-domain image", f"{figures.foreign_highest_db:.1f} dB")
    return table
