"""`fpe bench pipeline`: how much of its editor's speed a run reaches."""

from __future__ import annotations

import json
import pathlib
import statistics
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.terminal import console
from jobs.terminal.exits import guarded
from jobs.terminal.titled_table import titled_table

if TYPE_CHECKING:
    from jobs.bench.pipeline_rounds import Round

AIM = 0.95
"""The aim: the share of the bare editor's edits per second that a run reaches."""


JobSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the job, such as images.format=webp."),
]


@guarded
def pipeline(
    settings: JobSettings = None,
    *,
    checkpoint: Annotated[
        str, typer.Option(metavar="SOURCE", help="Built-in model, diffusers folder, file, hub id.")
    ] = "builtin:still-life",
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 64,
    sources_per_block: Annotated[int, typer.Option(min=1, help="Scenes per block.")] = 8,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often run and editor are timed, in turn.")
    ] = 3,
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads of the model; leave a core for the pipeline."),
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    out: Annotated[pathlib.Path, typer.Option(help="A new folder for runs and pipeline.json.")] = (
        pathlib.Path("out/bench-pipeline")
    ),
) -> None:
    """Compare a run's edits per second with those of the bare editor, on the same edits.

    One actor. The run's time is from its first block to its last; the time of the whole run, with
    starting Ray and loading the model, is reported as well.
    """
    import torch

    from fpe_core import Editor, load_checkpoint
    from jobs.bench.pipeline_rounds import PipelineBenchmark

    torch.set_num_threads(threads)
    benchmark = PipelineBenchmark(
        out,
        Editor(load_checkpoint(checkpoint, device=device)),
        scenes=scenes,
        sources_per_block=sources_per_block,
        settings=[
            f"model.device={device}",
            f"resources.threads_per_actor={threads}",
            *(settings or []),
        ],
    )
    measured = [benchmark.round(number) for number in range(rounds)]
    console.out().print(_table(measured))
    share = statistics.median(each.share for each in measured)
    console.out().print(f"{share:.3f} of the editor's edits per second (median); the aim is {AIM}")
    report = {"aim": AIM, "share": share, "rounds": [each.to_dict() for each in measured]}
    (out / "pipeline.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def _table(measured: list[Round]) -> Table:
    headings = ("edits", "UNet rows", "editor alone", "run", "share", "model busy", "whole run")
    table = titled_table("edits/s", headings, texts=0)
    for each in measured:
        table.add_row(
            str(each.edits),
            f"{each.unet_rows:,.0f}",
            f"{each.edits / each.bare_s:.3f}",
            f"{each.edits / each.span_s:.3f}",
            f"{each.share:.3f}",
            f"{each.model_s / each.span_s:.3f}",
            f"{each.edits / each.run_s:.3f}",
        )
    return table
