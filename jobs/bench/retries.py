"""`fpe bench retries`: what the retry ladder adds."""

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
def retries(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    rules: Annotated[
        str, typer.Option(metavar="FILE", help="What is accepted, as fpe calibrate writes it.")
    ] = str(STILL_LIFE_RULES),
    most: Annotated[int, typer.Option(min=1, max=10, help="Most retries of an edit.")] = 2,
    split: Split = SplitName.TEST,
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="An edit of each for every type with rules.")
    ] = 40,
    out: Out = pathlib.Path("out/bench-retries"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure how many edits retries add per UNet row, and how many of those are really right.

    The retry ladder is the default one of a job's judge.retries.
    """
    from fpe_core.judging.retry_ladder import RetryLadder
    from fpe_core.still_life.benchmark.retries import run_retries
    from jobs.bench import retry_figures as figures
    from pipeline.job.rules_file import read_rules

    accepting = read_rules(rules)
    factors = figures.factors_of(accepting)
    editor, seeds = load_editor(checkpoint, device, max_rows), held_out_seeds(split, scenes)
    tried = collect(
        run_retries(
            editor,
            seeds,
            editor.checkpoint.default_parameters,
            accepting,
            RetryLadder(most=most),
            score=figures.scoring(device),
            factors=factors,
        ),
        len(seeds) * len(factors),
        "edits",
    )
    out.mkdir(parents=True, exist_ok=True)
    figures.write_attempts(tried, out / "attempts.parquet")
    console.out().print(figures.retries_table(tried))
    console.out().print(figures.changes_table(tried))
    console.out().print(f"{out}/attempts.parquet")
