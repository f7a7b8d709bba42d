"""Where the commands write for people."""

from __future__ import annotations

import functools
import sys

from rich.console import Console

_WIDE = 200
"""Columns of a log file or pipe: tables are as wide as they are, whatever TERM says."""


def console(*, stderr: bool = False) -> Console:
    """For stdout or stderr. Only a person's window breaks tables into its width."""
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
    """Results: stdout. One for the whole program, as bars and lines of a log share theirs."""
    return console()


@functools.cache
def err() -> Console:
    """Progress and messages: stderr. One for the whole program, or log lines would tear a bar."""
    return console(stderr=True)
