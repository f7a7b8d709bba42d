"""torch.compile where it pays: whole passes through a network, for a few fixed shapes.

    UNet            a graph of its own for steps that replace maps, that record them and that do
                    neither; steps of one kind that come once a call are not compiled for
    autoencoder     encoder and decoder

A graph is compiled for one shape, which takes from seconds to minutes. So a batch that is a little
smaller than one that was compiled for is filled up with rows nobody looks at (`FixedShapes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fpe_core.errors import CheckpointError, ParameterError

_MOST_SHAPES = 8
_MOST_FILLING = 4 / 3
_PATIENCE = 100
_MOST_GRAPHS = 256
"""torch gives a function up for the graphs of this many calls; its own limit, 8, is for guesses."""


class FixedShapes:
    """The shapes that a function was compiled for, and which of them a call takes.

    A shape is any tuple of sizes, such as rows; a larger one can do a smaller one's work. A call
    takes the least of those that are large enough. Where that is more than a third too large, it
    still does, until it has happened so often that a graph of its own pays.
    """

    def __init__(self, rows_of: Callable[[tuple[int, ...]], int] = sum) -> None:
        """`rows_of`: how many rows a shape has."""
        self._rows_of = rows_of
        self._known: dict[Hashable, list[tuple[int, ...]]] = {}
        self._misfits: Counter[tuple[Hashable, tuple[int, ...]]] = Counter()

    def choose(
        self, kind: Hashable, wanted: tuple[int, ...], most_rows: int
    ) -> tuple[int, ...] | None:
        """The shape to fill up to; None where there are so many that none may be added.

        Args:
            kind: calls of different kinds have nothing in common.
            wanted: sizes of the call. One that is 0 stays 0.
            most_rows: what memory allows now, which may be less than when a shape was compiled for.
        """
        known, rows_of = self._known.setdefault(kind, []), self._rows_of
        larger = [s for s in known if _holds(s, wanted) and rows_of(s) <= most_rows]
        best = min(larger, key=rows_of, default=None)
        if best is not None and rows_of(best) <= _MOST_FILLING * rows_of(wanted):
            return best
        if best is not None and self._misfits[kind, wanted] < _PATIENCE:
            self._misfits[kind, wanted] += 1
            return best
        if len(known) >= _MOST_SHAPES:
            return best
        known.append(wanted)
        return wanted


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function, compiled as one graph for every combination of shapes and constants it meets.

    Raises:
        ParameterError: torch has no such backend.
    """
    known = compilers()
    if backend not in known:
        raise ParameterError(
            f"torch.compile has no backend {backend!r}; allowed: {', '.join(known)}"
        )
    config: Any = torch._dynamo.config
    for limit in ("recompile_limit", "cache_size_limit"):  # its name since torch 2.7, and before
        if hasattr(config, limit):
            setattr(config, limit, max(getattr(config, limit), _MOST_GRAPHS))
    graph: Callable[..., Any] = torch.compile(
        function, backend=backend, fullgraph=True, dynamic=False
    )
    return graph


def require_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Has a trivial function compiled, so that a missing compiler is told before any edit is made.

    Raises:
        CheckpointError: torch cannot compile here.
    """
    try:
        add = torch.compile(torch.add, backend=backend)
        add(torch.ones(1, device=device), 1)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model.compile: torch cannot compile for {device} here ({cause}); a CPU needs a C++ "
            "compiler such as g++, a GPU Triton. Without it: model.compile=false"
        ) from error


def compilers() -> tuple[str, ...]:
    """The backends that torch.compile has here."""
    return tuple(torch._dynamo.list_backends(exclude_tags=()))


def _holds(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return all(
        has >= wants and bool(has) == bool(wants) for has, wants in zip(shape, wanted, strict=True)
    )
