"""`fpe bench threads`: a CPU's cores as one process with all threads, or as processes of one each.

Every process has a model of its own, as the actors of a run have. All are there from the start; in
every round each split of the cores works once, while the other processes wait.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jobs.terminal import console
from jobs.terminal.exits import guarded


@dataclass(frozen=True)
class SplitSpeed:
    """Cores shared out as so many processes with so many threads each.

    Attributes:
        edits: of all processes in one round.
        wall_s: of every round, until the last process was done.
    """

    processes: int
    threads: int
    edits: int
    wall_s: tuple[float, ...]

    @property
    def edits_per_s(self) -> float:
        """By the median round."""
        return self.edits / statistics.median(self.wall_s)

    @property
    def spread(self) -> float:
        """Slowest less fastest round, as a share of the median."""
        return (max(self.wall_s) - min(self.wall_s)) / statistics.median(self.wall_s)


@guarded
def threads(
    *,
    checkpoint: Annotated[
        str, typer.Option(help="Built-in model, diffusers folder, file or hub id.")
    ] = "builtin:still-life",
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores to share out; else all that there are.")
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=1, help="Per process and round, two edits of each.")
    ] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Else the checkpoint's own.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times of each split.")] = 3,
    out: Annotated[pathlib.Path, typer.Option(help="Folder for threads.json.")] = pathlib.Path(
        "out/bench-threads"
    ),
) -> None:
    """Measure how a CPU's cores are best shared out: processes with a model each, or threads."""
    import torch

    from jobs.bench.machine import this_machine

    count = cores or usable_cores()
    measured = measure_splits(checkpoint, count, scenes, steps, rounds)
    out.mkdir(parents=True, exist_ok=True)
    machine = this_machine(torch.device("cpu"))
    report = {"machine": asdict(machine), "cores": count, "splits": [asdict(s) for s in measured]}
    (out / "threads.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    console.out().print(splits_table(measured))
    console.out().print(f"{machine.device}, {count} cores, {machine.date}; {out}/threads.json")


def splits_of(cores: int) -> list[tuple[int, int]]:
    """(processes, threads of each) that use all cores: 4 gives (1, 4), (2, 2), (4, 1)."""
    return [(n, cores // n) for n in range(1, cores + 1) if cores % n == 0]


def measure_splits(
    checkpoint: str, cores: int, scenes: int, steps: int | None, rounds: int
) -> list[SplitSpeed]:
    """All splits in turn, round after round, after one round of each to warm up."""
    splits = splits_of(cores)
    wall: dict[tuple[int, int], list[float]] = {split: [] for split in splits}
    with _workers(cores, checkpoint, scenes, steps) as pipes:
        for number in range(rounds + 1):
            start = number % len(splits)
            for split in splits[start:] + splits[:start]:
                took = _round(pipes[: split[0]], split[1])
                if number:
                    wall[split].append(took)
    return [SplitSpeed(n, each, 2 * scenes * n, tuple(wall[n, each])) for n, each in splits]


def _round(pipes: Sequence[Connection], threads_each: int) -> float:
    began = time.perf_counter()
    for pipe in pipes:
        pipe.send(threads_each)
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - began


@contextmanager
def _workers(
    count: int, checkpoint: str, scenes: int, steps: int | None
) -> Iterator[list[Connection]]:
    """Processes that are ready to edit; a number of threads sent to one makes it do so once."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, checkpoint, scenes, steps), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()  # which ends the process at the other end
        for process in processes:
            process.join()


def _work(pipe: Connection, checkpoint: str, scenes: int, steps: int | None) -> None:
    import torch

    from fpe_core import EditParameters
    from fpe_core.still_life.benchmark.edits import edits_of_scene, seeds_of
    from fpe_core.still_life.render import render
    from fpe_core.still_life.scene import caption, sample_scene
    from jobs.bench.options import load_editor

    editor = load_editor(checkpoint, "cpu", 32, dtype="float32")
    changed = {} if steps is None else {"steps": steps}
    own = editor.checkpoint.default_parameters
    parameters = EditParameters.from_dict({**own.to_dict(), **changed})
    seeds = seeds_of("validation", scenes)
    pictures = [render(sample_scene(seed), parameters.width_px) for seed in seeds]
    prompts = [caption(sample_scene(seed)) for seed in seeds]
    targets = [[edit.target_prompt for edit in edits_of_scene(seed)[:2]] for seed in seeds]
    pipe.send("ready")
    while True:
        try:
            torch.set_num_threads(pipe.recv())
        except EOFError:
            return
        editor.edit(editor.invert(pictures, prompts, parameters), targets)
        pipe.send("done")


def splits_table(measured: Sequence[SplitSpeed]) -> Table:
    """How fast every split edits."""
    table = Table(
        title=Text("Cores shared out", style="bold"), title_justify="left", box=box.SIMPLE_HEAD
    )
    for name in ("processes", "threads each", "edits/s", "of the first", "spread"):
        table.add_column(name, justify="right")
    for each in measured:
        table.add_row(
            str(each.processes),
            str(each.threads),
            f"{each.edits_per_s:.2f}",
            f"{each.edits_per_s / measured[0].edits_per_s:.2f}",
            f"{each.spread:.0%}",
        )
    return table


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
