"""Tracks which worker is processing which groups: to find the row that crashed a worker, to wait
for work in progress on shutdown, and to count work.

A worker that dies cannot report anything, so it reports in advance what it processes:

    begin    a block of groups; the answer says whether an earlier worker died while it had it
    focus    the groups of the block that are processed now, in one call
    report   how many UNet rows it has evaluated so far, so that they are counted if it dies
    end      the block is done

A block whose worker died is processed again one group at a time, which shows the group that is
being processed at the next death. A group that was being processed at two deaths is quarantined: it
fails as worker_died, and the others of its block are edited. If a worker dies while it holds two
blocks, both are retried alone; neither gets a strike for this crash. The death of a whole machine
is not held against any group. All of this applies to the tasks that fetch and decode as well.

A device that fails ends its worker too, but the worker says so before it dies. Then its blocks go
to another worker, and the failure counts against the device (`places`).

`Supervisor` is plain; `client` runs one as a Ray actor on the driver's machine. `Oversight` is what
a worker's code sees of it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from pipeline.logs import about
from pipeline.supervision.places import FAILURES_TO_LEAVE_OUT, Place, Places

DEATHS_TO_QUARANTINE = 2
_CANNOT_BE_LOADED = (
    f"{DEATHS_TO_QUARANTINE} workers died while they loaded the model: is there enough memory for "
    "resources.actors of them?"
)
_log = logging.getLogger(__name__)
_NEXT_STAGE = {"decode": "edit"}
"""The stage that a block waits for when a stage has finished it."""
StageFigures: TypeAlias = Mapping[str, Mapping[str, float]]
"""By stage and name: rows, seconds, requests, ...; all values can be added up."""


@dataclass(frozen=True)
class Worker:
    """One process, or one thread of it: an editing worker processes two blocks at a time.

    `name` is host:pid, `node` Ray's id of its machine, `device` the devices that it was given there
    ("GPU 3", "CPU").
    """

    name: str
    node: str
    thread: int = 0
    device: str = "CPU"

    @property
    def process(self) -> tuple[str, str]:
        return self.name, self.node

    @property
    def place(self) -> Place:
        return Place(self.node, self.device)


@dataclass(frozen=True)
class Orders:
    """The supervisor's answer when a worker begins a block.

    Attributes:
        is_stopping: the run is being stopped, or the worker's pass is over: do not process the
            block.
        is_handed_on: the device of this worker failed while it had the block: do not process it,
            another worker will.
        left_out: why this worker must not load its model; "" if it may.
        is_careful: an earlier worker died while it processed this block: process one group at a
            time.
        quarantined: ids of groups that must not be processed again, each with the reason.
    """

    is_stopping: bool = False
    is_handed_on: bool = False
    left_out: str = ""
    is_careful: bool = False
    quarantined: Mapping[bytes, str] = field(default_factory=dict)


class Oversight(Protocol):
    """What a worker's code can ask and report while it processes a block."""

    @property
    def orders(self) -> Orders: ...

    def focus(self, groups: Sequence[bytes]) -> AbstractContextManager[None]:
        """These groups, and no others, are processed in this context."""

    def alive(self) -> None:
        """Reports progress: restarts the watchdog's timer."""

    def made(self, unet_rows: int) -> None:
        """Reports how many UNet rows of the block have been made so far."""


class Unwatched:
    """For code that runs without a supervisor."""

    orders = Orders()

    def focus(self, groups: Sequence[bytes]) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()

    def alive(self) -> None:
        pass

    def made(self, unet_rows: int) -> None:
        pass


def merged(*figures: StageFigures) -> dict[str, dict[str, float]]:
    """The sums of figures, by stage and name."""
    total: dict[str, dict[str, float]] = {}
    for by_stage in figures:
        for stage, values in by_stage.items():
            into = total.setdefault(stage, {})
            for name, value in values.items():
                into[name] = into.get(name, 0.0) + value
    return total


@dataclass
class _BlockInProgress:
    """A block that a worker has begun, and the groups of it that are processed now."""

    groups: frozenset[bytes]
    began: float
    focus: frozenset[bytes] = frozenset()

    @property
    def suspects(self) -> frozenset[bytes]:
        return self.focus or self.groups


class _Stage:
    """The state of one stage."""

    def __init__(self) -> None:
        self.in_progress: dict[Worker, _BlockInProgress] = {}
        self.first_began: float | None = None
        self.last_ended = 0.0
        self.died_on: dict[bytes, list[Place]] = {}
        """By group, the places of the workers that died while they processed only its block."""
        self.died_with_another: dict[bytes, list[Place]] = {}
        """The same for workers that processed a second block too: either may be to blame."""
        self.deaths_in_a_row = 0
        self.to_hand_on: set[bytes] = set()
        """Groups whose device failed, until Ray has given their block back to the same worker."""
        self.waiting: set[bytes] = set()
        """One group of each block that the stage before has finished and this one has not begun."""

    def holders_of(self, groups: frozenset[bytes]) -> Iterator[tuple[Worker, _BlockInProgress]]:
        return ((w, held) for w, held in [*self.in_progress.items()] if held.groups & groups)


class Supervisor:
    """The state of a run's workers. Not thread-safe: one call at a time."""

    def __init__(
        self,
        is_node_alive: Callable[[str], bool] = lambda _node: True,
        most_deaths_in_a_row: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_node_alive = is_node_alive
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._dead: set[tuple[str, str]] = set()
        """Processes by name and node: the death of one that processed two blocks counts once."""
        self._died_of_either: set[tuple[str, str]] = set()
        """Those of them that processed two."""
        self._is_stopping = False
        # One row may kill two workers alone, and a third one together with another block.
        self._most_deaths_in_a_row = max(most_deaths_in_a_row, DEATHS_TO_QUARANTINE + 2)
        self._figures: StageFigures = {}
        self._unfinished_rows: dict[Worker, int] = {}
        self._working_since: dict[tuple[str, str], float] = {}
        """For each living editing worker, when it began to load its model."""
        self._members: dict[int, list[str]] = {}
        self._places = Places()
        self._pass = 0

    def begin_pass(self, workers: int) -> int:
        """New workers begin to go through the work that is left. Returns the number of their pass.

        `workers`: how many of the editing workers have a place now.
        """
        self._places.begin_pass(workers)
        for stage in self._stages.values():
            stage.to_hand_on.clear()
        self._pass += 1
        return self._pass

    def begin(
        self, stage: str, worker: Worker, groups: Sequence[bytes], of_pass: int | None = None
    ) -> Orders:
        """A worker begins a block. An earlier one that began but did not end its groups is dead.

        Stage "load": it is about to load its model; `groups` is the id of the actor. `of_pass`: the
        worker's pass. One that starts late, when its pass is over, has nothing to do.
        """
        if of_pass not in (None, self._pass):
            return Orders(is_stopping=True)
        deaths = self._deaths_of(stage, groups)
        at, now = self._stage(stage), self._clock()
        at.waiting -= frozenset(groups)
        if self._is_stopping:
            return Orders(is_stopping=True)
        if not at.to_hand_on.isdisjoint(groups):
            at.to_hand_on -= frozenset(groups)
            return Orders(is_handed_on=True)
        if stage == "load":
            left_out = self._places.join(groups[0], worker.place, worker.name.rpartition(":")[0])
            if deaths.get(groups[0], 0) >= DEATHS_TO_QUARANTINE:
                left_out = _CANNOT_BE_LOADED
            if left_out:
                return Orders(left_out=left_out)
            self._working_since[worker.process] = now
        at.in_progress[worker] = _BlockInProgress(frozenset(groups), now)
        at.first_began = now if at.first_began is None else at.first_began
        return Orders(
            is_careful=self._is_suspect(stage, groups),
            quarantined={
                group: f"{count} workers died while they processed this source (killed, out of "
                "memory, without progress for longer than failures.max_stall_s or max_group_s, or "
                "because their device failed; the workers' logs in Ray's session folder say where)"
                for group, count in deaths.items()
                if count >= DEATHS_TO_QUARANTINE
            },
        )

    def is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        """Whether a worker died while it processed this block; the next must process it alone."""
        self._deaths_of(stage, groups)
        return self._is_suspect(stage, groups)

    def _is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        at = self._stage(stage)
        places = [
            p for g in groups for p in (*at.died_on.get(g, ()), *at.died_with_another.get(g, ()))
        ]
        return any(self._is_node_alive(place.node) for place in places)

    def _deaths_of(self, stage: str, groups: Sequence[bytes]) -> dict[bytes, int]:
        """Per group, how many workers died of it, as far as one can tell: see `Places.blame`.

        Workers that are still recorded as processing the groups are dead, since another one begins
        them. Counted again each time, because Ray may notice later that their machine died too.
        """
        at = self._stage(stage)
        for dead, held in at.holders_of(frozenset(groups)):
            self._record_death(stage, dead, held)
        died_on = {group: at.died_on[group] for group in groups if group in at.died_on}
        return {
            group: self._places.blame([p for p in places if self._is_node_alive(p.node)])
            for group, places in died_on.items()
        }

    def number_in(self, pool: int, member: str) -> int:
        """The number of a member of a pool: 0, 1, 2, ... in the order in which they first ask."""
        members = self._members.setdefault(pool, [])
        if member not in members:
            members.append(member)
        return members.index(member)

    def focus(self, stage: str, worker: Worker, groups: Collection[bytes]) -> None:
        """The worker processes these groups of its block now; [] means all of them."""
        held = self._stage(stage).in_progress.get(worker)
        if held is not None:
            held.focus = frozenset(groups)

    def report(self, worker: Worker, unet_rows: int) -> None:
        """Records the UNet rows that the worker has evaluated since it last ended a block."""
        self._unfinished_rows[worker] = unet_rows

    def end(self, stage: str, worker: Worker, figures: StageFigures) -> None:
        """The worker has finished its block, so earlier deaths were not its groups' fault.

        `figures` is what the block cost.
        """
        at = self._stage(stage)
        held = at.in_progress.pop(worker, None)
        if held is None:
            return
        at.deaths_in_a_row = 0
        if stage == "edit":
            self._places.finished_block(worker.place)
        if stage == "load":
            self._places.loaded(min(held.groups))
        for group in held.groups:
            at.died_on.pop(group, None)
            at.died_with_another.pop(group, None)
        if held.groups and stage in _NEXT_STAGE:
            self._stage(_NEXT_STAGE[stage]).waiting.add(min(held.groups))
        self._unfinished_rows.pop(worker, None)  # they are in its figures
        at.last_ended = self._clock()
        block = {stage: {"blocks": 1.0, "block_seconds": at.last_ended - held.began}}
        self._figures = merged(self._figures, block, figures)

    def device_failed(self, worker: Worker, error: str) -> None:
        """The device of a worker failed, and its process ends itself. Ray starts it again."""
        if worker.process in self._dead:
            return  # its other block has said so
        self._dead.add(worker.process)
        at = self._stage("edit")
        lost = [(w, held) for w, held in at.in_progress.items() if w.process == worker.process]
        for each, held in lost:
            at.to_hand_on |= held.groups
            self._lose("edit", each, held, worker.place, is_alone=len(lost) == 1)
        times = self._places.failed(worker.place, error)
        self._figures = merged(self._figures, {"edit": {"device_failures": 1.0}})
        _log.warning(
            "%s failed while it processed %d blocks, which go to other workers; %s: %s",
            worker.device,
            len(lost),
            "it is left out from now on" if times >= FAILURES_TO_LEAVE_OUT else "it is tried again",
            error,
            extra=about(stage="edit", worker=worker.name),
        )

    def leave_out(self, worker: Worker, member: bytes, reason: str) -> bool:
        """A worker of this pass cannot work. Returns whether blocks may wait for it."""
        self._stage("load").in_progress.pop(worker, None)
        self._working_since.pop(worker.process, None)
        _log.warning("a worker is left out: %s", reason, extra=about(worker=worker.name))
        return self._places.leave_out(member, reason)

    def stand_by(self, member: bytes) -> str | None:
        """Whether a worker that is left out has to wait on, by its answer None.

        Otherwise the reason for which the run has to stop, because no worker is left; "" if the
        pass has ended.
        """
        if not self._places.has(member):
            return ""
        return self._places.why_none_is_left() or None

    def left_out(self) -> list[str]:
        """The workers of this pass that are left out, each with its place and the reason."""
        return self._places.left_out()

    def stop(self) -> None:
        """Lets no worker begin a block any more."""
        self._is_stopping = True

    def has_too_many_deaths(self) -> bool:
        """Whether more workers of a stage died in a row than a single row can crash."""
        most = self._most_deaths_in_a_row
        return any(at.deaths_in_a_row >= most for at in self._stages.values())

    def in_progress(self, stage: str) -> frozenset[bytes]:
        """The groups that workers of a stage have begun and not ended."""
        return frozenset().union(*(h.groups for h in self._stage(stage).in_progress.values()))

    def queues(self) -> StageFigures:
        """Per stage, blocks in progress and blocks that wait for it; editing workers that exist."""
        queues = {
            name: {"in_progress": float(len(at.in_progress)), "waiting": float(len(at.waiting))}
            for name, at in self._stages.items()
        }
        there = {"edit": {"workers": float(len(self._working_since))}}
        return merged(queues, there if self._working_since else {})

    def figures(self) -> StageFigures:
        """What all blocks cost, seconds of all workers added up, and deaths of workers.

        UNet rows include those of unfinished blocks, as far as they were reported.
        `worker_seconds`: how long editing workers have existed, each since it began to load its
        model.
        """
        spans = {
            name: {"span_seconds": at.last_ended - at.first_began}
            for name, at in self._stages.items()
            if at.first_began is not None and at.last_ended > at.first_began
        }
        unfinished = sum(self._unfinished_rows.values())
        rows = {"edit": {"unet_rows": unfinished}} if unfinished else {}
        now = self._clock()
        there = {
            "edit": {"worker_seconds": sum(now - came for came in self._working_since.values())}
        }
        return merged(self._figures, spans, rows, there if self._working_since else {})

    def state(self) -> tuple[StageFigures, StageFigures]:
        """`figures` and `queues`."""
        return self.figures(), self.queues()

    def _record_death(self, stage: str, dead: Worker, held: _BlockInProgress) -> None:
        at = self._stage(stage)
        if any(each.process == dead.process for each in at.in_progress if each != dead):
            self._died_of_either.add(dead.process)
        rows = self._lose(
            stage, dead, held, Place(dead.node), is_alone=dead.process not in self._died_of_either
        )
        is_one, of_block = self._is_node_alive(dead.node), held.suspects
        _log.warning(
            "%s died while it processed %d sources; they run again, %d UNet rows are lost",
            "a worker" if is_one else "a machine with a worker",
            len(held.groups),
            rows,
            extra=about(
                stage=stage,
                worker=dead.name,
                groups=len(held.groups),
                **({"group_id": min(of_block)} if len(of_block) == 1 else {}),
            ),
        )
        if is_one and dead.process not in self._dead:
            self._dead.add(dead.process)
            self._figures = merged(self._figures, {stage: {"worker_deaths": 1}})
            at.deaths_in_a_row += 1
            if self.has_too_many_deaths():
                self.stop()

    def _lose(
        self, stage: str, dead: Worker, held: _BlockInProgress, place: Place, *, is_alone: bool
    ) -> int:
        """Counts a block as lost, and remembers where. Returns its UNet rows.

        `is_alone`: whether the worker processed only this block.
        """
        at = self._stage(stage)
        del at.in_progress[dead]
        known = at.died_on if is_alone else at.died_with_another
        for group in held.suspects:
            known.setdefault(group, []).append(place)
        came = self._working_since.pop(dead.process, None)
        if came is not None:
            there = {"edit": {"worker_seconds": self._clock() - came}}
            self._figures = merged(self._figures, there)
        rows = self._unfinished_rows.pop(dead, 0)
        lost = {stage: {"lost_blocks": 1.0}}
        if rows:
            lost["edit"] = {**lost.get("edit", {}), "unet_rows": rows, "lost_unet_rows": rows}
        self._figures = merged(self._figures, lost)
        return rows

    def _stage(self, name: str) -> _Stage:
        return self._stages.setdefault(name, _Stage())
