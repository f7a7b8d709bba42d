"""Which places of a pass can work: devices that fail, and models that cannot be loaded.

A place is what Ray gave a worker: a machine, and the devices of it. A failed device ends its
worker's process, because every later call in it would fail too; no source is to blame for that.

    first failure    Ray starts the worker again. Its blocks go to another worker in the next pass,
                     and it goes on with other blocks.
    second in a row  without a finished block in between: the place is left out. Its worker takes no
                     blocks any more, in this pass or a later one.

A worker that cannot load its model is left out for the rest of the pass; in the next pass it is
tried again. The run stops if no worker is left. Machines are counted by their devices: if one GPU
of eight fails, the seven others work on.

A source that breaks devices (a bug in a kernel) must not cost one after the other. So a failure is
held against the sources of the block as well, but it only counts if another device failed with the
same source, or if there is no other device (`blame`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FAILURES_TO_LEAVE_OUT = 2


@dataclass(frozen=True)
class Place:
    """Ray's id of a machine, and the devices of it that a worker uses ("GPU 3", "CPU").

    `device` "": the death of a worker, for which no device is to blame.
    """

    node: str
    device: str = ""


@dataclass
class _Failures:
    in_a_row: int = 0
    error: str = ""


@dataclass
class _Member:
    """A worker of the pass. `reason`: why it is left out; "" if it loads its model, or works.

    `was_loaded`: whether it has had its model in this pass.
    """

    place: Place
    host: str
    reason: str = ""
    was_loaded: bool = False

    def __str__(self) -> str:
        return f"{self.place.device} of {self.host} (Ray node {self.place.node[:8]})"


class Places:
    """The places of a run, and the workers of the current pass. Not thread-safe."""

    def __init__(self) -> None:
        self._failures: dict[Place, _Failures] = {}
        self._used: set[Place] = set()
        """Those on which a model was loaded."""
        self._members: dict[bytes, _Member] = {}
        self._workers = 1

    def begin_pass(self, workers: int) -> None:
        """A pass begins, with new workers; `workers`: how many of them have a place now."""
        self._workers = workers
        self._members.clear()

    def join(self, member: bytes, place: Place, host: str) -> str:
        """A worker is about to load its model. Returns why it must not; "" if it may."""
        before = self._members.get(member)
        was_loaded = before is not None and before.was_loaded
        self._members[member] = _Member(place, host, was_loaded=was_loaded)
        if not self._is_left_out(place):
            return ""
        failures = self._failures[place]
        return f"the device failed {failures.in_a_row} times in a row: {failures.error}"

    def loaded(self, member: bytes) -> None:
        """A worker has loaded its model."""
        if member in self._members:
            self._members[member].was_loaded = True
            self._used.add(self._members[member].place)

    def leave_out(self, member: bytes, reason: str) -> bool:
        """A worker of the pass cannot work. Returns whether it could before, as another process, so
        that blocks may wait for it."""
        if member not in self._members:
            return False
        self._members[member].reason = reason
        return self._members[member].was_loaded

    def has(self, member: bytes) -> bool:
        """Whether this is a worker of the current pass."""
        return member in self._members

    def left_out(self) -> list[str]:
        """The workers of the pass that are left out, each with its place and the reason."""
        return [f"{each}: {each.reason}" for each in self._members.values() if each.reason]

    def why_none_is_left(self) -> str:
        """The reason for which the run has to stop; "" while a worker can work, or may yet."""
        reasons = [each.reason for each in self._members.values()]
        if not all(reasons) or len(reasons) < self._workers:
            return ""
        if len(reasons) == 1:
            return reasons[0]
        return f"none of {len(reasons)} workers can work. {self.left_out()[-1]}"

    def failed(self, place: Place, error: str) -> int:
        """The devices of a place failed. Returns how many times in a row they have."""
        failures = self._failures.setdefault(place, _Failures())
        failures.in_a_row += 1
        failures.error = error
        return failures.in_a_row

    def finished_block(self, place: Place) -> None:
        """A worker has finished a block there: the device works."""
        self._failures.pop(place, None)

    def blame(self, places: Sequence[Place]) -> int:
        """How many of the deaths and failures at these places, all with one source, count against
        that source."""
        devices = [place for place in places if place.device]
        return len(places) - len(devices) + self._blame_for(devices)

    def _blame_for(self, failures: Sequence[Place]) -> int:
        different = {*failures}
        if len(different) != 1:
            return len(different)
        # One device broke each time: it is to blame, unless there is no other and it works else.
        (place,) = different
        is_alone = not self._used - different
        return len(failures) if is_alone and not self._is_left_out(place) else 1

    def _is_left_out(self, place: Place) -> bool:
        failures = self._failures.get(place)
        return failures is not None and failures.in_a_row >= FAILURES_TO_LEAVE_OUT
