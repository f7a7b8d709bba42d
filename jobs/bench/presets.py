"""`fpe bench presets`: speed and quality of the approximate presets."""

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
    held_out_seeds,
    load_editor,
)
from jobs.terminal import console
from jobs.terminal.exits import guarded


@guarded
def presets(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.TEST,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 12,
    grid: Annotated[
        bool,
        typer.Option(help="Measure a grid of steps x guidance intervals instead of the presets."),
    ] = False,
    rounds: Annotated[int, typer.Option(min=0, help="How often each is timed; 0: not at all.")] = 3,
    timed_scenes: Annotated[int, typer.Option(min=1, help="Scenes edited in a timed run.")] = 2,
    out: Out = pathlib.Path("out/bench-presets"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure the approximate presets (edit.speed): their speed, and what they cost in quality.

    Networks run in float32. The exact preset is timed twice per round: the difference is noise.
    """
    from fpe_core.still_life.benchmark.benchmark import run_benchmark
    from jobs.bench import preset_figures as bench_presets
    from jobs.bench import tables as bench_tables
    from jobs.bench.arms import grid_arms, preset_arms
    from jobs.bench.machine import this_machine

    editor = load_editor(checkpoint, device, max_rows, dtype="float32")
    seeds, recommended = held_out_seeds(split, scenes), editor.checkpoint.default_parameters
    arms = grid_arms(recommended) if grid else preset_arms(recommended)
    costs = bench_presets.measure_costs(editor, arms, seeds[:timed_scenes], rounds)
    judged = collect(run_benchmark(editor, seeds, arms), len(seeds) * 5 * len(arms), "edits")

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet")
    machine = this_machine(editor.checkpoint.device)
    bench_presets.write_report(judged, arms, costs, machine, out / "presets.json")
    console.out().print(bench_presets.preset_table(judged, arms, costs))
    console.out().print(bench_presets.quality_table(judged, arms, by_factor=not grid))
    if noise := bench_presets.noise_line(costs):
        console.out().print(noise)
    console.out().print(
        f"{machine.device}, {machine.threads} threads, {machine.date}; {len(seeds)} scenes"
    )
    console.out().print(f"{out}/edits.parquet, presets.json")
