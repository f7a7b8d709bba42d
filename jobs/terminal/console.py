"""Where the commands write for people."""

from __future__ import annotations

import functools
import sys

from rich.console import Console

_WIDE = 200
"""Width in columns if the output goes to a file or pipe, whatever TERM says: tables do not wrap."""


def console(*, stderr: bool = False) -> Console:
    """A new console for stdout or stderr. Tables are fitted to the window only on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        highlight=False,
        soft_wrap=True,
        emoji=False,
        width=None if stream is not None and stream.isatty() else _WIDE,
    )


@functools.cache
def out() -> Console:
    """The program's only console for stdout, where results are printed."""
    return console()


@functools.cache
def err() -> Console:
    """The program's only console for stderr, where progress, messages and log lines go.

    Log lines and progress bars have to share one console, or the lines would break the bars.
    """
    return console(stderr=True)
