"""Exit codes of `fpe`, and how an error becomes a message and one of them.

    0     the command succeeded; for `run`: every planned edit has an outcome
    1     stopped early, or `verify` found a problem; the message says what to do
    2     the command line, the job file or the manifest is wrong; nothing was started
    70    a bug in this program
    75    another run is using the run folder; the same command works once that one has ended
    130   interrupted from the keyboard; what was done is kept, the same command continues
    143   the same, by SIGTERM

Single failed edits do not change the exit code, because an unreadable image is still unreadable
when a scheduler tries again. They are counted in the summary. If more edits fail than `failures:`
in the job file allows, the run stops (1).
"""

from __future__ import annotations

import errno
import functools
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from jobs.terminal.console import console
from pipeline.errors import (
    Interrupted,
    JobError,
    LeaseError,
    ManifestError,
    PipelineError,
    ProbeError,
)

OK, STOPPED, USAGE, DEFECT, INTERRUPTED, TERMINATED = 0, 1, 2, 70, 130, 143
IN_USE = 75
"""EX_TEMPFAIL of sysexits(3): lets a scheduler distinguish overlapping runs from a failure."""

_OF_THE_MACHINE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}
"""Errors of a file system that is read-only, another user's, or full."""
_GO_ON = "What was done is kept. The same command goes on from here."

P = ParamSpec("P")


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, as KeyboardInterrupt is on ctrl-C, so that both end a run in the same
    way."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command so that an error prints a message and sets the exit code, without a
    traceback.

    `fpe --debug` prints the traceback as well.
    """

    @functools.wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        previous = signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            command(*arguments, **options)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost handler
            _leave(error)
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run


def exit_code(error: BaseException) -> int:
    """The exit code for an error, by which a scheduler can distinguish kinds of errors."""
    if any(isinstance(e, Terminated) for e in _chain(error)):
        return TERMINATED
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return INTERRUPTED
    if isinstance(error, JobError | ManifestError | ProbeError) or _is_of_the_core(error):
        return USAGE
    if isinstance(error, LeaseError):
        return IN_USE
    is_known = isinstance(error, PipelineError) or _is_of_the_machine(error)
    return STOPPED if is_known else DEFECT


def message_of(error: BaseException) -> str:
    """What to print: the error's own message if it was written for users."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted. {_GO_ON}"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, PipelineError) or _is_of_the_core(error):
        return text
    if _is_of_the_machine(error):
        return (
            f"{text}. A folder that this program writes to is read-only, full, or not this user's. "
            "TMPDIR names the one for temporary files, RAY_TMPDIR that of Ray"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: {lines[-1].strip()}\n"
        "This is a bug in this program. `fpe --debug ...` shows where; please report it."
    )


def _leave(error: BaseException) -> NoReturn:
    if isinstance(error, typer.Exit | SystemExit):
        raise error
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(OK) from None  # the reader of our output, such as `head`, has closed it
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    err = console(stderr=True)
    code = exit_code(error)
    kind = "stopped" if code in (INTERRUPTED, TERMINATED) else "error"
    err.print(f"[bold red]{kind}:[/] ", end="")
    err.print(message_of(error), markup=False)
    raise typer.Exit(code) from None


def _is_of_the_core(error: BaseException) -> bool:
    from fpe_core.errors import FPEError  # loads torch, so only after an error

    return isinstance(error, FPEError)


def _is_of_the_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and (
        error.errno in _OF_THE_MACHINE or "No usable temporary directory" in str(error)
    )


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _chain(error: BaseException) -> list[BaseException]:
    """An error and, one after the other, the errors that caused it."""
    chain: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in chain:
        chain.append(here)
        here = here.__cause__ or here.__context__
    return chain
