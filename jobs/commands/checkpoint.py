"""`fpe checkpoint inspect`: what a checkpoint is, and what the editors do with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.terminal import console
from jobs.terminal.exits import guarded


@guarded
def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder, .safetensors file, builtin: name or hub id."
        ),
    ],
    *,
    width: Annotated[
        int | None, typer.Option(min=8, help="Width of edits; default: the checkpoint's own.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=8, help="Height of edits; default: the checkpoint's own.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Of a single file, as model.config in a job file.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id: branch, tag, commit.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also look at .bin and .ckpt weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Show what a checkpoint is and what every editor replaces in it. Loads no weights."""
    from fpe_core.checkpoint.inspection import inspect_checkpoint
    from jobs.terminal.checkpoint_tables import checkpoint_tables

    with console.err().status("Reading configs, headers and the fingerprint"):
        found = inspect_checkpoint(
            checkpoint,
            revision=revision,
            allow_pickle=allow_pickle,
            config=config,
            width_px=width,
            height_px=height,
        )
    if as_json:
        console.out().print(json.dumps(asdict(found), indent=2), markup=False)
        return
    for table in checkpoint_tables(found):
        console.out().print(table)
