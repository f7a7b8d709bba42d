"""The group of commands `fpe bench`."""

from __future__ import annotations

import typer

from jobs.bench.boxes import boxes
from jobs.bench.editors.command import editors
from jobs.bench.edits import edits, findings
from jobs.bench.gate import gate
from jobs.bench.pipeline import pipeline
from jobs.bench.presets import presets
from jobs.bench.retries import retries
from jobs.bench.scale.command import scale
from jobs.bench.speed.command import speed
from jobs.bench.startup import startup

app = typer.Typer(
    help="Measure how well a checkpoint edits, where the right answers are known, and how fast.",
    no_args_is_help=True,
)
for command in (
    speed,
    pipeline,
    startup,
    scale,
    edits,
    editors,
    findings,
    presets,
    retries,
    gate,
    boxes,
):
    app.command()(command)
