"""Who has what in hand: a death has a culprit, a stop knows what to wait for, work is counted.

A worker that dies takes no notes along, so it says beforehand what it takes in hand:

    begin    a block of groups; the answer says whether an earlier worker died of it
    focus    some of them: the call that is made now
    tell     how many UNet rows it has made meanwhile, so that they are known if it dies
    end      the block is through

A block whose worker died is made again one group at a time, and then the one in hand at the next
death is the culprit: a group that was in hand at two deaths is quarantined, it fails as worker_died
and the others of its block are made. A death with two blocks in hand makes both suspects, and
counts against neither. A machine that goes away is no group's fault and counts for nothing. The
same for the tasks that fetch and decode.

`Supervisor` is plain; `oversight` runs one as a Ray actor beside the driver. `Oversight` is what a
worker's code sees of it.
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

DEATHS_TO_QUARANTINE = 2
_log = logging.getLogger(__name__)
_NEXT_STAGE = {"decode": "edit"}
"""Where a block waits when a stage is through with it."""
StageFigures: TypeAlias = Mapping[str, Mapping[str, float]]
"""By stage: rows, seconds, requests, ...; whatever can be added up."""


@dataclass(frozen=True)
class Worker:
    """One process, or one thread of it: an editing worker has two blocks in hand.

    `name` is host:pid, `node` Ray's id of its machine.
    """

    name: str
    node: str
    thread: int = 0


@dataclass(frozen=True)
class Orders:
    """What a worker is told when it begins a block.

    Attributes:
        is_stopping: the run is being stopped: leave the block alone.
        is_careful: an earlier worker died of this block: one group at a time.
        quarantined: group id to the reason why it is not tried again.
    """

    is_stopping: bool = False
    is_careful: bool = False
    quarantined: Mapping[bytes, str] = field(default_factory=dict)


class Oversight(Protocol):
    """The view of a worker's code while it has a block in hand."""

    @property
    def orders(self) -> Orders: ...

    def focus(self, groups: Sequence[bytes]) -> AbstractContextManager[None]:
        """These groups, and no others, are worked on in this context."""

    def alive(self) -> None:
        """Something came of it: the watchdog starts to count anew."""

    def made(self, unet_rows: int) -> None:
        """So many UNet rows are made of what is in hand."""


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
    """Figures of several origins added up."""
    total: dict[str, dict[str, float]] = {}
    for by_stage in figures:
        for stage, values in by_stage.items():
            into = total.setdefault(stage, {})
            for name, value in values.items():
                into[name] = into.get(name, 0.0) + value
    return total


@dataclass
class _InHand:
    """A block that a worker has begun, and the part of it that it works on now."""

    groups: frozenset[bytes]
    began: float
    focus: frozenset[bytes] = frozenset()

    @property
    def suspects(self) -> frozenset[bytes]:
        return self.focus or self.groups


class _Stage:
    """Everything about one kind of work."""

    def __init__(self) -> None:
        self.in_hand: dict[Worker, _InHand] = {}
        self.first_began: float | None = None
        self.last_ended = 0.0
        self.died_on: dict[bytes, list[str]] = {}
        """Group to the machines on which workers died that had it in hand, and nothing else."""
        self.died_beside: dict[bytes, list[str]] = {}
        """Same of workers that had another block in hand too: either may be to blame."""
        self.deaths_in_a_row = 0
        self.waiting: set[bytes] = set()
        """One group of each block that the stage before is through with and this one has not."""

    def holders_of(self, groups: frozenset[bytes]) -> Iterator[tuple[Worker, _InHand]]:
        return ((w, held) for w, held in [*self.in_hand.items()] if held.groups & groups)


class Supervisor:
    """Keeps the books of one run. Not thread-safe: one call at a time."""

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
        """Processes, by name and node: one that had two blocks in hand died once."""
        self._died_of_either: set[tuple[str, str]] = set()
        """Those that had two."""
        self._is_stopping = False
        # One row alone may take two, and one more beside another block.
        self._most_deaths_in_a_row = max(most_deaths_in_a_row, DEATHS_TO_QUARANTINE + 2)
        self._figures: StageFigures = {}
        self._rows_in_hand: dict[Worker, int] = {}
        self._came: dict[tuple[str, str], float] = {}
        """When each editing worker that is there began to load its model."""

    def begin(self, stage: str, worker: Worker, groups: Sequence[bytes]) -> Orders:
        """A worker takes a block in hand; one that had these groups and never ended them died."""
        deaths = self._deaths_of(stage, groups)
        self._stage(stage).waiting -= frozenset(groups)
        if self._is_stopping:
            return Orders(is_stopping=True)
        at, now = self._stage(stage), self._clock()
        if stage == "load":
            self._came[worker.name, worker.node] = now
        at.in_hand[worker] = _InHand(frozenset(groups), now)
        at.first_began = now if at.first_began is None else at.first_began
        return Orders(
            is_careful=self._is_suspect(stage, groups),
            quarantined={
                group: f"{count} workers died while they had this source in hand (killed, out of "
                "memory, or standing still longer than failures.max_stall_s or max_group_s; where, "
                "is in the workers' logs in Ray's session folder)"
                for group, count in deaths.items()
                if count >= DEATHS_TO_QUARANTINE
            },
        )

    def is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        """Whether a worker died of this block: the next one makes it while nothing else is made."""
        self._deaths_of(stage, groups)
        return self._is_suspect(stage, groups)

    def _is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        at = self._stage(stage)
        nodes = [n for g in groups for n in (*at.died_on.get(g, ()), *at.died_beside.get(g, ()))]
        return any(map(self._is_node_alive, nodes))

    def _deaths_of(self, stage: str, groups: Sequence[bytes]) -> dict[bytes, int]:
        """How many workers died of each group alone; whoever has them in hand is dead.

        Asked anew each time: that a machine is gone may be known later than that a worker is.
        """
        at = self._stage(stage)
        for dead, held in at.holders_of(frozenset(groups)):
            self._bury(stage, dead, held)
        died_on = {group: at.died_on[group] for group in groups if group in at.died_on}
        return {group: sum(map(self._is_node_alive, nodes)) for group, nodes in died_on.items()}

    def focus(self, stage: str, worker: Worker, groups: Collection[bytes]) -> None:
        """The worker works on these of its block now; on none in particular if there are none."""
        held = self._stage(stage).in_hand.get(worker)
        if held is not None:
            held.focus = frozenset(groups)

    def tell(self, worker: Worker, unet_rows: int) -> None:
        """The worker has made so many UNet rows since it last ended a block."""
        self._rows_in_hand[worker] = unet_rows

    def end(self, stage: str, worker: Worker, figures: StageFigures) -> None:
        """The worker is through with its block; any death before was not the groups' fault.

        `figures` is what it cost; they are summed up by stage and name.
        """
        at = self._stage(stage)
        held = at.in_hand.pop(worker, None)
        if held is None:
            return
        at.deaths_in_a_row = 0
        for group in held.groups:
            at.died_on.pop(group, None)
            at.died_beside.pop(group, None)
        if held.groups and stage in _NEXT_STAGE:
            self._stage(_NEXT_STAGE[stage]).waiting.add(min(held.groups))
        self._rows_in_hand.pop(worker, None)  # they are in its figures
        at.last_ended = self._clock()
        block = {stage: {"blocks": 1.0, "block_seconds": at.last_ended - held.began}}
        self._figures = merged(self._figures, block, figures)

    def stop(self) -> None:
        """From now on no block is begun."""
        self._is_stopping = True

    def is_hopeless(self) -> bool:
        """Whether so many workers of a stage in a row have died that no row can be to blame."""
        most = self._most_deaths_in_a_row
        return any(at.deaths_in_a_row >= most for at in self._stages.values())

    def in_hand(self, stage: str) -> frozenset[bytes]:
        """The groups that workers of a stage have begun and not ended."""
        return frozenset().union(*(h.groups for h in self._stage(stage).in_hand.values()))

    def queues(self) -> StageFigures:
        """How many blocks each stage has in hand, how many wait for it, and editing workers."""
        queues = {
            name: {"in_hand": float(len(at.in_hand)), "waiting": float(len(at.waiting))}
            for name, at in self._stages.items()
        }
        there = {"edit": {"workers": float(len(self._came))}}
        return merged(queues, there if self._came else {})

    def figures(self) -> StageFigures:
        """What all blocks cost, seconds of all workers together, and deaths of workers.

        UNet rows are those of blocks in hand too, as far as they were told. `worker_seconds`: how
        long editing workers have been there, each from when it began to load its model.
        """
        spans = {
            name: {"span_seconds": at.last_ended - at.first_began}
            for name, at in self._stages.items()
            if at.first_began is not None and at.last_ended > at.first_began
        }
        in_hand = sum(self._rows_in_hand.values())
        rows = {"edit": {"unet_rows": in_hand}} if in_hand else {}
        now = self._clock()
        there = {"edit": {"worker_seconds": sum(now - came for came in self._came.values())}}
        return merged(self._figures, spans, rows, there if self._came else {})

    def books(self) -> tuple[StageFigures, StageFigures]:
        """`figures` and `queues`."""
        return self.figures(), self.queues()

    def _bury(self, stage: str, dead: Worker, held: _InHand) -> None:
        at = self._stage(stage)
        del at.in_hand[dead]
        process = (dead.name, dead.node)
        if any((each.name, each.node) == process for each in at.in_hand):
            self._died_of_either.add(process)
        known = at.died_beside if process in self._died_of_either else at.died_on
        for group in held.suspects:
            known.setdefault(group, []).append(dead.node)
        came = self._came.pop(process, None)
        if came is not None:
            there = {"edit": {"worker_seconds": self._clock() - came}}
            self._figures = merged(self._figures, there)
        rows = self._rows_in_hand.pop(dead, 0)
        lost = {stage: {"lost_blocks": 1.0}}
        if rows:
            lost["edit"] = {**lost.get("edit", {}), "unet_rows": rows, "lost_unet_rows": rows}
        self._figures = merged(self._figures, lost)
        is_alone, of_block = self._is_node_alive(dead.node), held.suspects
        _log.warning(
            "%s died with %d sources in hand, %d UNet rows lost; they are made again",
            "a worker" if is_alone else "a machine with a worker",
            len(held.groups),
            rows,
            extra=about(
                stage=stage,
                worker=dead.name,
                groups=len(held.groups),
                **({"group_id": min(of_block)} if len(of_block) == 1 else {}),
            ),
        )
        if is_alone and process not in self._dead:
            self._dead.add(process)
            self._figures = merged(self._figures, {stage: {"worker_deaths": 1}})
            at.deaths_in_a_row += 1
            if self.is_hopeless():
                self.stop()

    def _stage(self, name: str) -> _Stage:
        return self._stages.setdefault(name, _Stage())
