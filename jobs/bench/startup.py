"""`fpe bench startup`: seconds from a command to its first committed edit, and where they go."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.terminal import console
from jobs.terminal.exits import guarded

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.bench.startup_rounds import Imports, Startup


@guarded
def startup(
    *,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Another installation's fpe, in turns with this one: its python, or a command "
            "line such as 'env PYTHONPATH=/other /other/bin/python -m jobs'.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times of each, after one to warm up.")] = 3,
    checkpoint: Annotated[
        str, typer.Option(metavar="SOURCE", help="Built-in model, diffusers folder, file, hub id.")
    ] = "builtin:still-life",
    most_imports: Annotated[
        int, typer.Option("--imports", min=0, help="Packages to list; 0: imports are not timed.")
    ] = 12,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="A file for all figures, as JSON.")
    ] = None,
) -> None:
    """Measure the start of a small run: one source, one edit, on the CPU, in a folder of its own.

    Every run is a process of its own, watched from outside: two installations are measured alike.
    """
    from jobs.bench.startup_rounds import (
        HERE,
        Installation,
        measure_imports,
        measure_ray,
        measure_startup,
    )

    commands = {"here": HERE}
    if against is not None:
        commands["against"] = Installation.of(against)
    measured = measure_startup(commands, rounds=rounds, checkpoint=checkpoint)
    imports = measure_imports(checkpoint) if most_imports else []
    ray = measure_ray()
    console.out().print(_startup_table(measured))
    console.out().print(_ray_table(ray))
    for each in imports:
        console.out().print(_imports_table(each, most_imports))
    if out is not None:
        report = {
            "commands": {name: each.arguments for name, each in commands.items()},
            "runs": {name: [run.to_dict() for run in runs] for name, runs in measured.items()},
            "ray": ray,
            "imports": {each.of: each.seconds for each in imports},
        }
        out.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _startup_table(measured: dict[str, list[Startup]]) -> Table:
    """Seconds from the command on; least, median and most of the rounds."""
    from jobs.bench.startup_rounds import FIGURES

    first = next(iter(measured.values()))
    table = _table(f"Seconds from the command on: least / median / most of {len(first)}")
    table.add_column("")
    for name in measured:
        table.add_column(name, justify="right")
    for phase, title in FIGURES.items():
        values = [[run.to_dict()[phase] for run in runs] for runs in measured.values()]
        table.add_row(title, *(_spread(of_one) for of_one in values))
    return table


def _spread(values: list[float | None]) -> str:
    import statistics

    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{min(known):.2f} / {statistics.median(known):.2f} / {max(known):.2f}"


def _ray_table(seconds: dict[str, float]) -> Table:
    table = _table("Ray alone, in a process of its own")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    return table


def _imports_table(imports: Imports, most: int) -> Table:
    table = _table(f"Imports of {imports.of}, {imports.total_s:.2f} s with their timing")
    table.add_column("package")
    table.add_column("seconds", justify="right")
    for name, value in list(imports.seconds.items())[:most]:
        table.add_row(name, f"{value:.2f}")
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE, title=title, title_justify="left")
