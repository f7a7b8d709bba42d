"""Arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

RunOrJob = Annotated[
    str, typer.Argument(metavar="RUN|JOB.yaml", help="Run folder (path or URL), or its job file.")
]

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="Job file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Dotted keys with YAML values, such as edit.steps=20."
    ),
]
