"""Blocks of one editing worker take turns at its model, so that the device need not wait.

While one block's pictures are judged, encoded and written, the next one has the model. A block that
is under suspicion (`supervisor`) is alone in its process from beginning to end: whatever happens
then, happened to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BLOCKS_AT_A_TIME = 2
"""One has the model; the other is on its way to the storage, or ready and waiting."""


class Turn:
    """A block's turn, from the moment that it has the model."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.has_model = True

    def pass_on(self) -> None:
        """The block needs the model no more. Does nothing the second time."""
        self._turns.free(self)


class Turns:
    """Who has the model of this process. First come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[object] = []
        self._inside: list[Turn] = []

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[Turn]:
        """Waits for the model; with `alone`, until no other block is in hand at all."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me and self._is_free(alone))
            self._waiting.remove(me)
            turn = Turn(self)
            self._inside.append(turn)
            self._changed.notify_all()
        try:
            yield turn
        finally:
            with self._changed:
                self._inside.remove(turn)
                self._changed.notify_all()

    @property
    def blocks_in_hand(self) -> int:
        """How many have had the model and are not through."""
        return len(self._inside)

    def free(self, turn: Turn) -> None:
        with self._changed:
            turn.has_model = False
            self._changed.notify_all()

    def _is_free(self, alone: bool) -> bool:
        return not (self._inside if alone else any(turn.has_model for turn in self._inside))
