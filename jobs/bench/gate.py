"""`fpe bench gate`: what the gate on reconstruction can predict."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jobs.bench.options import (
    Checkpoint,
    Device,
    Out,
    Rows,
    Split,
    SplitName,
    collect,
    load_editor,
)
from jobs.terminal import console
from jobs.terminal.exits import guarded


@guarded
def gate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Parameters other than the checkpoint's own, such as steps=20.",
        ),
    ] = None,
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.VALIDATION,
    scenes: Annotated[int, typer.Option(min=1, max=80, help="Sources of each of 11 kinds.")] = 4,
    out: Out = pathlib.Path("out/bench-gate"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure which sources the gate on reconstruction rejects, and whether their edits are bad.

    The sources are clean scenes, damaged scenes and out-of-domain images.
    """
    from fpe_core import EditParameters
    from fpe_core.still_life.benchmark.gate import gate_figures, run_gate_benchmark
    from fpe_core.still_life.benchmark.hard_sources import hard_sources
    from jobs.bench import gate_figures as bench_gate
    from jobs.bench.arms import settings_from_text

    changed = settings_from_text(settings or [])
    editor = load_editor(checkpoint, device, max_rows)
    recommended = editor.checkpoint.default_parameters
    parameters = EditParameters.from_dict({**recommended.to_dict(), **changed})
    sources = hard_sources(split.value, scenes)
    tried = collect(run_gate_benchmark(editor, sources, parameters), len(sources), "sources")

    out.mkdir(parents=True, exist_ok=True)
    bench_gate.write_tried(tried, out / "edits.parquet")
    console.out().print(bench_gate.kinds_table(tried))
    console.out().print(bench_gate.figures_table(gate_figures(tried)))
    console.out().print(f"{out}/edits.parquet")
