"""Actors of several kinds in one run: how many of each there are, and what each may take.

    named accelerators    first, then any GPU, then actors without one: who is choosy goes first
    blocks                are pulled: a faster kind takes more of them
    no actor              a machine that no kind fits on reads and decodes, no more

One stage of Ray Data has all of them; what an actor was given tells it which kind it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pipeline.errors import InsufficientCapacityError, ResourceError
from pipeline.job.resources import PoolSection

_ACCELERATOR = "accelerator_type:"
"""How Ray names the resource that a machine has for its kind of GPU."""
_OF_ACCELERATOR = 0.001
"""As much of it as Ray takes for an actor that names it."""
_TOLERANCE = 1e-6
_MOST_THREADS = 16


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has to give; `accelerator`: the kind of its GPUs."""

    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """From what Ray says of a machine."""
        kinds = sorted(
            n.removeprefix(_ACCELERATOR) for n in resources if n.startswith(_ACCELERATOR)
        )
        return cls(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            accelerator=kinds[0] if kinds else None,
        )


@dataclass(frozen=True)
class ActorKind:
    """Actors that are alike. `memory_share`: of the memory of the device of each; `later`: so
    many of them have no place yet."""

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads_per_actor: int
    memory_share: float
    accelerator: str | None = None
    later: int = 0

    def remote_args(self) -> dict[str, Any]:
        """What Ray is asked for, for each."""
        args: dict[str, Any] = {"num_cpus": self.cpus_per_actor, "num_gpus": self.gpus_per_actor}
        return args if self.accelerator is None else args | {"accelerator_type": self.accelerator}

    def was_given(self, resources: Mapping[str, float]) -> bool:
        """Whether an actor that has these resources is of this kind."""
        named = {n.removeprefix(_ACCELERATOR) for n in resources if n.startswith(_ACCELERATOR)}
        wanted = set() if self.accelerator is None else {self.accelerator}
        return named == wanted and _same(resources.get("GPU", 0.0), self.gpus_per_actor)


class RemoteArgsPerActor:
    """Ray Data calls this once per actor it starts; returns the options of the next one."""

    def __init__(self, kinds: Sequence[ActorKind]) -> None:
        self._args = [kind.remote_args() for kind in kinds for _ in range(kind.actors)]
        self._started = 0

    def __call__(self) -> dict[str, Any]:
        args = self._args[self._started % len(self._args)]
        self._started += 1
        return dict(args)


def size_kinds(
    nodes: Sequence[Node],
    wishes: Sequence[PoolSection],
    *,
    free_cpus: float,
    device: str,
    can_grow: bool = False,
) -> tuple[ActorKind, ...]:
    """The actors of each wish, the choosiest first: those that find a place, and where machines may
    come (`can_grow`) all that a wish with `max_actors` and GPUs may have.

    Raises InsufficientCapacityError if a wish cannot be met, `free_cpus` would not stay free, or no
    actor has a place; ResourceError if more machines would not help.
    """
    places = [_Place.of(node) for node in nodes]
    chosen: list[ActorKind] = []
    for wish in sorted(wishes, key=_least_choosy):
        if device.startswith("cuda") and not wish.gpus_per_actor:
            raise ResourceError(
                f"model.device is {device}, and a pool has gpus_per_actor: 0; set model.device=auto"
            )
        homes = list(islice(_homes(places, wish, free_cpus), wish.max_actors or wish.actors))
        grows = can_grow and wish.max_actors is not None and wish.gpus_per_actor > 0
        wants_more = grows and len(homes) < (wish.max_actors or 0)
        if len(homes) < (wish.actors or 0) or (
            wants_more and any(replace(each).take(wish) for each in places)
        ):
            raise InsufficientCapacityError(_too_few(nodes, wish, len(homes), free_cpus))
        if homes or grows:
            chosen.append(_kind(nodes, wish, homes, grows=grows))
    if all(kind.actors == kind.later for kind in chosen):
        raise InsufficientCapacityError(_too_few(nodes, wishes[0], 0, free_cpus))
    return tuple(chosen)


def pool_bundle(wish: PoolSection) -> dict[str, float]:
    """What one actor of a wish takes, by Ray's names of resources."""
    bundle = {"CPU": wish.cpus_per_actor, "GPU": wish.gpus_per_actor}
    if wish.accelerator is not None:
        bundle[f"{_ACCELERATOR}{wish.accelerator}"] = _OF_ACCELERATOR
    return {name: amount for name, amount in bundle.items() if amount}


def first_actors(kinds: Sequence[ActorKind], most: int) -> tuple[ActorKind, ...]:
    """The kinds with `most` actors together, taken from the first that have a place, then from the
    others."""
    left, kept = most, [(kind, 0) for kind in kinds]
    for is_there in (True, False):
        for number, (kind, count) in enumerate(kept):
            more = min(left, kind.actors - kind.later if is_there else kind.later)
            kept[number], left = (kind, count + more), left - more
    return tuple(
        replace(kind, actors=count, later=max(0, count - (kind.actors - kind.later)))
        for kind, count in kept
        if count
    )


def _least_choosy(wish: PoolSection) -> tuple[bool, bool, bool]:
    return not wish.gpus_per_actor, wish.accelerator is None, wish.actors is None


@dataclass
class _Place:
    """What is left of a machine while actors are put on it; of every GPU by itself."""

    node: Node
    cpus: float
    gpus: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, node: Node) -> _Place:
        return cls(node, node.cpus, [1.0] * math.floor(node.gpus))

    def take(self, wish: PoolSection) -> bool:
        """Whether there is room for one more; then it is taken."""
        if wish.accelerator not in (None, self.node.accelerator) or (
            self.cpus < wish.cpus_per_actor - _TOLERANCE
        ):
            return False
        whole = math.floor(wish.gpus_per_actor + _TOLERANCE)
        part = wish.gpus_per_actor - whole
        free = list(self.gpus)
        for share in [1.0] * whole + ([part] if part > _TOLERANCE else []):
            # A fraction of a GPU never spans two of them: the fullest that still has room.
            room = [gpu for gpu in free if gpu >= share - _TOLERANCE]
            if not room:
                return False
            tightest = min(room)
            free[free.index(tightest)] = tightest - share
        self.gpus, self.cpus = free, self.cpus - wish.cpus_per_actor
        return True


def _homes(places: Sequence[_Place], wish: PoolSection, free_cpus: float) -> Iterator[int]:
    """The machine of one actor after the other, machine by machine, while CPUs stay free."""
    found = True
    while found:
        found = False
        for number, place in enumerate(places):
            left = sum(each.cpus for each in places) - wish.cpus_per_actor
            if left >= free_cpus - _TOLERANCE and place.take(wish):
                found = True
                yield number


def _kind(
    nodes: Sequence[Node], wish: PoolSection, homes: Sequence[int], *, grows: bool
) -> ActorKind:
    most_on_one = max((homes.count(number) for number in homes), default=1)
    cores = min((nodes[number].cpus for number in homes), default=wish.cpus_per_actor)
    threads = max(1, min(int(cores // most_on_one), _MOST_THREADS))
    share = min(1.0, wish.gpus_per_actor) if wish.gpus_per_actor else 1.0 / most_on_one
    actors = (wish.max_actors or 0) if grows else len(homes)
    return ActorKind(
        actors=actors,
        cpus_per_actor=wish.cpus_per_actor,
        gpus_per_actor=wish.gpus_per_actor,
        threads_per_actor=wish.threads_per_actor or threads,
        memory_share=share,
        accelerator=wish.accelerator,
        later=actors - len(homes),
    )


def _too_few(nodes: Sequence[Node], wish: PoolSection, found: int, free_cpus: float) -> str:
    on = "" if wish.accelerator is None else f" on {wish.accelerator}"
    there = "; ".join(
        f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
        + ("" if node.accelerator is None else f" ({node.accelerator})")
        for node in nodes
    )
    return (
        f"resources.pools: {wish.actors or 1} actors{on} with {wish.cpus_per_actor:g} CPUs and "
        f"{wish.gpus_per_actor:g} GPUs each are wanted, and there is room for {found}, with "
        f"{free_cpus:g} CPUs left free for reading. The cluster has: {there}"
    )


def _same(one: float, other: float) -> bool:
    return abs(one - other) < 1e-3  # Ray counts GPUs in parts of ten thousand
