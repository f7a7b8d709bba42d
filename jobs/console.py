"""Where the commands write for people."""

from __future__ import annotations

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
