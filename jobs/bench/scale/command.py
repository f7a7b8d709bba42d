"""`fpe bench scale`: what the engine itself costs, at sizes where an editor would take years."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated

import typer

from jobs.bench.options import require_matplotlib, whole_numbers
from jobs.terminal import console
from jobs.terminal.exits import guarded


@guarded
def scale(
    *,
    rows: Annotated[
        str, typer.Option(help="Numbers of manifest rows, such as 1000,25000.")
    ] = "1000,25000,250000,2500000",
    edits_per_row: Annotated[int, typer.Option(min=1, help="Prompts per row.")] = 4,
    run_edits: Annotated[
        int, typer.Option(min=0, help="Largest run that is made in full, in edits.")
    ] = 100_000,
    resume_edits: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest run that is resumed and verified, in edits; above --run-edits its "
            "outcomes are committed without making images.",
        ),
    ] = 1_000_000,
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for scale.json, scale.png and scratch.")
    ] = pathlib.Path("out/bench-scale"),
) -> None:
    """Measure planning, running, resuming and verifying without an editor, size by size.

    Each phase is a process of its own. Nothing is edited: outputs are copies.
    """
    from jobs.bench.scale import tables
    from jobs.bench.scale.figures import aims, as_json
    from jobs.bench.scale.measure import Limits, measure
    from jobs.bench.scale.plot import scale_plot

    require_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    limits, sizes = Limits(run_edits, resume_edits), []
    with console.err().status("Measuring") as status:
        for count in sorted(set(whole_numbers("--rows", rows, "1000,25000"))):
            sizes.append(measure(out.resolve(), count, edits_per_row, limits, status.update))
            report = as_json(sizes)  # what was measured is kept, however it ends
            (out / "scale.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    for table in (
        tables.planning_table(sizes),
        tables.run_table(sizes),
        tables.objects_table(sizes),
        tables.resume_table(sizes),
        tables.reading_table(sizes),
        tables.aims_table(aims(sizes)),
    ):
        console.out().print(table)
    console.out().print(tables.costs_note(sizes))
    scale_plot(sizes, out / "scale.png")
    console.out().print(f"{out}/scale.json, scale.png")
