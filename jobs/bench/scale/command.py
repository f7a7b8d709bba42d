"""`fpe bench scale`: what the engine itself costs, at sizes where an editor would take years."""

from __future__ import annotations

import dataclasses
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
    pictures: Annotated[
        int,
        typer.Option(
            min=0,
            help="Edits of each workload with pictures; 0 leaves them out.",
        ),
    ] = 1500,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each workload with pictures.")] = 3,
    store: Annotated[
        str,
        typer.Option(
            help="Folder on an S3 server for a second row of each workload with pictures."
        ),
    ] = "",
    endpoint_url: Annotated[
        str, typer.Option(help="That server, with plain http: its bytes are counted on the way.")
    ] = "",
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for scale.json, scale.png and scratch.")
    ] = pathlib.Path("out/bench-scale"),
) -> None:
    """Measure planning, running, resuming and verifying without an editor, size by size, and
    workloads with pictures beside a bare Ray Data script.

    Each phase is a process of its own. Nothing is edited: outputs are copies.
    """
    from fpe_core import ParameterError
    from jobs.bench.scale import picture_tables, tables
    from jobs.bench.scale.figures import SizeFigures, aims, as_json
    from jobs.bench.scale.measure import Limits, measure
    from jobs.bench.scale.picture_rounds import PictureFigures, Store, measure_pictures
    from jobs.bench.scale.pictures import workloads
    from jobs.bench.scale.plot import scale_plot

    require_matplotlib()
    if bool(store) != bool(endpoint_url) or not endpoint_url.startswith(
        ("", "http://")[bool(store)]
    ):
        raise ParameterError(
            "--store and --endpoint-url go together, such as --store s3://bucket/scale "
            f"--endpoint-url http://127.0.0.1:9000; got {store!r} and {endpoint_url!r}"
        )
    out.mkdir(parents=True, exist_ok=True)
    limits = Limits(run_edits, resume_edits)
    sizes: list[SizeFigures] = []
    of_pictures: list[PictureFigures] = []

    def keep() -> None:  # what was measured is kept, however it ends
        report = as_json(sizes) | {"pictures": [dataclasses.asdict(each) for each in of_pictures]}
        (out / "scale.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    with console.err().status("Measuring") as status:
        for count in sorted(set(whole_numbers("--rows", rows, "1000,25000"))):
            sizes.append(measure(out.resolve(), count, edits_per_row, limits, status.update))
            keep()
        stores = [Store(str(out.resolve())), *([Store(store, endpoint_url)] if store else [])]
        if pictures:
            for each in measure_pictures(workloads(pictures), stores, rounds, status.update):
                of_pictures.append(each)
                keep()
    for table in (
        tables.planning_table(sizes),
        tables.run_table(sizes),
        tables.objects_table(sizes),
        tables.resume_table(sizes),
        tables.reading_table(sizes),
        *(
            (picture_tables.planning_table(of_pictures), picture_tables.running_table(of_pictures))
            if of_pictures
            else ()
        ),
        tables.aims_table([*aims(sizes), *picture_tables.aims(of_pictures)]),
    ):
        console.out().print(table)
    console.out().print(tables.costs_note(sizes))
    scale_plot(sizes, out / "scale.png")
    console.out().print(f"{out}/scale.json, scale.png")
