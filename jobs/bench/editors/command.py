"""The command `fpe bench editors`."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.bench.options import Checkpoint, Device, Out, Rows, load_editor
from jobs.terminal import console
from jobs.terminal.exits import STOPPED, guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.bench.editors.compare import Tuning
    from jobs.bench.editors.parts import Row
    from jobs.bench.editors.timing import SpeedTimes

Scenes = Annotated[
    int, typer.Option(min=1, max=1000, help="Test scenes to report on; five edits of each.")
]
TuningScenes = Annotated[
    int, typer.Option(min=1, max=1000, help="Validation scenes to choose settings by.")
]
InstructCheckpoint = Annotated[
    str, typer.Option(help="The model of methods that read instructions.", metavar="SOURCE")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="A method to compare, by its name in the tables; may be repeated."),
]
Speed = Annotated[
    bool,
    typer.Option(
        "--speed", help="Time p2p, pnp and masactrl beside plain diffusers loops instead."
    ),
]
SpeedModel = Annotated[
    str,
    typer.Option(metavar="NAME", help="With --speed: cpu-512, micro, sd15, or a checkpoint."),
]
SpeedSize = Annotated[
    int | None, typer.Option(min=64, help="With --speed: pixels; else the size of the model.")
]
SpeedSteps = Annotated[int, typer.Option(min=3, max=999, help="With --speed: at least 3.")]
SpeedRounds = Annotated[int, typer.Option(min=1, help="With --speed: how often each is timed.")]


@guarded
def editors(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    instruct_checkpoint: InstructCheckpoint = "builtin:still-life-instruct",
    scenes: Scenes = 40,
    tuning_scenes: TuningScenes = 4,
    only: Only = None,
    speed: Speed = False,
    speed_model: SpeedModel = "cpu-512",
    speed_size: SpeedSize = None,
    speed_steps: SpeedSteps = 10,
    speed_rounds: SpeedRounds = 3,
    out: Out = pathlib.Path("out/bench-editors"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Compare all editing methods: quality by type of edit, UNet rows, and seconds.

    Each method is measured with its published parameters, scaled to the model by one rule, and with
    the best of five settings, chosen on validation scenes, without and with masks that bind. What
    is done is kept in --out: the same command continues. Networks run in float32.
    """
    if speed:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs starts and stops
        from jobs.bench.editors.timing import time_methods

        times = time_methods(
            speed_model, device, size_px=speed_size, steps=speed_steps, rounds=speed_rounds
        )
        _report_speed(times, out)
        return
    from jobs.bench.editors.compare import compare, tune
    from jobs.bench.editors.methods import methods_named
    from jobs.bench.editors.parts import Parts

    methods = methods_named(only or [])
    editor = load_editor(checkpoint, device, max_rows, dtype="float32")
    instructed = load_editor(instruct_checkpoint, device, max_rows, dtype="float32")
    parts = Parts(out / "parts", editor, instructed)
    tunings = tune(parts, methods, tuning_scenes)
    _report(tunings, compare(parts, tunings, scenes), out)


def _report(tunings: Sequence[Tuning], rows: Sequence[Row], out: pathlib.Path) -> None:
    """Prints the tables, and writes the edits and the picture."""
    from jobs.bench.editors import tables
    from jobs.bench.editors.compare import COLUMNS, TUNED
    from jobs.bench.editors.parts import write_edits
    from jobs.bench.editors.picture import methods_grid, save_small

    write_edits(rows, out / "edits.parquet")
    written = [f"{out}/edits.parquet"]
    if grid := methods_grid(rows, TUNED):
        save_small(grid, out / "grid.png")
        written.append("grid.png")
    console.out().print(tables.tuning_table(tunings))
    for column in COLUMNS:
        console.out().print(tables.method_table(rows, column))
        console.out().print(tables.type_table(rows, column))
    console.out().print(tables.bound_table(rows))
    console.out().print(tables.MARKS_LINE, markup=False)
    console.out().print(", ".join(written))


def _report_speed(times: SpeedTimes, out: pathlib.Path) -> None:
    """Prints and writes the times. Exits with 1 if the two arms of a method disagree."""
    from jobs.bench.editors.timing import speed_table, write_times

    out.mkdir(parents=True, exist_ok=True)
    write_times(times, out / "speed.json")
    console.out().print(speed_table(times))
    for each in times.methods:
        for failed in each.failed:
            console.out().print(f"{each.method}: {failed.cause}", markup=False)
    console.out().print(f"{out}/speed.json")
    if any(each.failed for each in times.methods):
        raise typer.Exit(STOPPED)
