"""The `fpe` command.

Modules that load torch or Ray are imported inside the commands that need them, so that `fpe --help`
and a misspelt command answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.bench import app as bench
from jobs.commands import calibrate, checkpoint, demo, manifest, plan, results, run
from jobs.terminal.logs import log_to_stderr

app = typer.Typer(
    name="fpe",
    help="Edit whole image datasets with text: Free-Prompt-Editing on Ray Data.",
    epilog="Exit codes: 0 done; 1 stopped early, or verify found a problem; 2 wrong command line, "
    "job file, manifest or checkpoint; 75 another run is using the run folder; 130 and 143 "
    "interrupted (the same command continues); 70 a bug in this program.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(calibrate.calibrate)
app.command()(plan.plan)
app.command()(run.run)
app.command()(run.retry)
app.command()(run.submit)
app.command()(results.status)
app.command()(results.verify)
app.command()(results.sheet)
app.command()(results.report)
app.command()(demo.demo)
app.add_typer(bench.app, name="bench")

config_app = typer.Typer(help="Show job files and their defaults.", no_args_is_help=True)
config_app.command("show")(plan.config_show)
app.add_typer(config_app, name="config")

checkpoint_app = typer.Typer(help="Look at checkpoints.", no_args_is_help=True)
checkpoint_app.command("inspect")(checkpoint.inspect)
app.add_typer(checkpoint_app, name="checkpoint")

manifest_app = typer.Typer(help="Make manifests.", no_args_is_help=True)
manifest_app.command("from")(manifest.manifest_from)
app.add_typer(manifest_app, name="manifest")


def main() -> None:
    """The entry point. `--debug` may be given anywhere."""
    app(args=[argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="fpe")


@app.callback()
def _options(
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors. May be given anywhere.")
    ] = False,
) -> None:
    log_to_stderr()
