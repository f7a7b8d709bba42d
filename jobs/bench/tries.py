"""`fpe bench tries`."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jobs.bench.options import (
    STILL_LIFE_RULES,
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
def tries(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    rules: Annotated[
        str, typer.Option(metavar="FILE", help="What is accepted, as fpe calibrate writes it.")
    ] = str(STILL_LIFE_RULES),
    most: Annotated[int, typer.Option(min=1, max=10, help="Further tries of an edit.")] = 2,
    split: Split = SplitName.TEST,
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="An edit of each for every type with rules.")
    ] = 40,
    out: Out = pathlib.Path("out/bench-tries"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure what trying rejected edits again adds, per UNet row; beside it what is really right.

    With the ladder that is the default of a job's judge.second_tries.
    """
    from fpe_core.judging.second_tries import Ladder
    from fpe_core.still_life.benchmark.tries import run_tries
    from jobs.bench import tries_figures as bench_tries
    from pipeline.job.rules_file import read_rules

    accepting = read_rules(rules)
    factors = bench_tries.factors_of(accepting)
    editor, seeds = load_editor(checkpoint, device, max_rows), held_out_seeds(split, scenes)
    tried = collect(
        run_tries(
            editor,
            seeds,
            editor.checkpoint.default_parameters,
            accepting,
            Ladder(most=most),
            score=bench_tries.scoring(device),
            factors=factors,
        ),
        len(seeds) * len(factors),
        "edits",
    )
    out.mkdir(parents=True, exist_ok=True)
    bench_tries.write_tries(tried, out / "tries.parquet")
    console.out().print(bench_tries.tries_table(tried))
    console.out().print(bench_tries.rungs_table(tried))
    console.out().print(f"{out}/tries.parquet")
