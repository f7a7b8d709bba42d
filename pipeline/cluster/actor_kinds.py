"""Places the actors of a run on machines: how many of each kind, and which resources each gets.

Actors that name an accelerator are placed first, then those that take any GPU, then those without a
GPU. A machine that no kind fits on only reads and decodes. Actors pull blocks, so a faster kind
processes more of them.

Most runs have one kind of actors. All kinds belong to one stage of Ray Data (`deputies`); an actor
finds its kind by the resources that Ray assigned to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pipeline.errors import InsufficientCapacityError
from pipeline.job.resources import PoolSection

_ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray marks a machine's kind of GPU."""
_OF_ACCELERATOR = 0.001
"""How much of that resource Ray takes for an actor with `accelerator_type`."""
_TOLERANCE = 1e-6
_MOST_THREADS = 16
_MOST_ENCODERS = 16


@dataclass(frozen=True)
class Node:
    """The resources of one machine.

    `accelerator`: the kind of its GPUs, by Ray's name; `store_bytes`: its part of Ray's object
    store.
    """

    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None
    store_bytes: float = 0.0

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """From the resources of a machine as Ray reports them."""
        kinds = sorted(
            n.removeprefix(_ACCELERATOR) for n in resources if n.startswith(_ACCELERATOR)
        )
        return cls(
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            accelerator=kinds[0] if kinds else None,
            store_bytes=resources.get("object_store_memory", 0.0),
        )

    def __str__(self) -> str:
        kind = "" if self.accelerator is None else f" ({self.accelerator})"
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs{kind}"


@dataclass(frozen=True)
class ActorKind:
    """Actors with equal resources.

    `memory_share`: the share of its device's memory that each may use, 0 to 1; `later`: how many of
    `actors` have no machine yet; `most_on_one`: how many of them one machine has, at most;
    `encoders_per_actor`: processes in which each encodes its images, so that together they can use
    all cores of a machine when those have nothing better to do.

    Threads, encoders, and on a CPU the share of memory, are those of an actor on the smallest
    machine: each actor asks its own machine (`on_node`). `sets_threads`: the job sets the threads
    instead.
    """

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads_per_actor: int
    memory_share: float
    accelerator: str | None = None
    later: int = 0
    most_on_one: int = 1
    sets_threads: bool = False
    encoders_per_actor: int = 1

    def __str__(self) -> str:
        on = "" if self.accelerator is None else f" on {self.accelerator}"
        return (
            f"{self.actors} actors{on} with {self.cpus_per_actor:g} CPUs, "
            f"{self.gpus_per_actor:g} GPUs and {self.threads_per_actor} threads each"
        )

    def remote_args(self) -> dict[str, Any]:
        """The options with which Ray starts each actor."""
        args: dict[str, Any] = {"num_cpus": self.cpus_per_actor, "num_gpus": self.gpus_per_actor}
        return args if self.accelerator is None else args | {"accelerator_type": self.accelerator}

    def on_node(self, node: Node) -> ActorKind:
        """This kind on one machine: its actors there share the cores, and on a CPU the memory."""
        alike = max(1, min(_that_fit(node, self), self.most_on_one))
        cores = max(1, int(node.cpus // alike))
        return replace(
            self,
            threads_per_actor=self.threads_per_actor
            if self.sets_threads
            else min(cores, _MOST_THREADS),
            encoders_per_actor=min(cores, _MOST_ENCODERS),
            memory_share=self.memory_share if self.gpus_per_actor else 1.0 / alike,
        )

    def matches(self, resources: Mapping[str, float]) -> bool:
        """Whether an actor to which Ray assigned these resources is of this kind."""
        named = {n.removeprefix(_ACCELERATOR) for n in resources if n.startswith(_ACCELERATOR)}
        wanted = set() if self.accelerator is None else {self.accelerator}
        return named == wanted and _same(resources.get("GPU", 0.0), self.gpus_per_actor)


def kind_of_actor(kinds: Sequence[ActorKind], number: int) -> ActorKind:
    """The kind of the actor that is started as the `number`-th, from 0: first all of the first
    kind. Numbers beyond the last begin again, for actors that take the place of others."""
    each = [kind for kind in kinds for _ in range(kind.actors)]
    return each[number % len(each)]


@dataclass(frozen=True)
class Placement:
    """The actors of one pool section, on the machines that are there now.

    `homes`: for each actor that has a place, the index of its machine. `later`: how many more
    actors wait for machines that are added during the run.
    """

    pool: PoolSection
    homes: tuple[int, ...]
    later: int = 0

    @property
    def actors(self) -> int:
        return len(self.homes) + self.later

    def to_kind(self, nodes: Sequence[Node]) -> ActorKind:
        """The resources of each actor; threads and memory are those on the smallest machine."""
        pool = self.pool
        kind = ActorKind(
            actors=self.actors,
            cpus_per_actor=pool.cpus_per_actor,
            gpus_per_actor=pool.gpus_per_actor,
            threads_per_actor=pool.threads_per_actor or 1,
            memory_share=min(1.0, pool.gpus_per_actor) if pool.gpus_per_actor else 1.0,
            accelerator=pool.accelerator,
            later=self.later,
            most_on_one=max(Counter(self.homes).values(), default=1),
            sets_threads=pool.threads_per_actor is not None,
        )
        here = [kind.on_node(nodes[number]) for number in {*self.homes}]
        return replace(
            kind,
            threads_per_actor=min(
                (k.threads_per_actor for k in here), default=kind.threads_per_actor
            ),
            memory_share=min((k.memory_share for k in here), default=kind.memory_share),
            encoders_per_actor=min((k.encoders_per_actor for k in here), default=1),
        )


def place_actors(
    nodes: Sequence[Node], pools: Sequence[PoolSection], *, free_cpus: float, can_grow: bool = False
) -> tuple[Placement, ...]:
    """Places the actors of each pool, pools with the most requirements first.

    If machines can be added (`can_grow`), a pool with `max_actors` and GPUs also gets the actors
    that have no place yet.

    Raises InsufficientCapacityError if a pool cannot have its `actors`, `free_cpus` would not stay
    free, or no actor has a place.
    """
    places = [_Place.of(node) for node in nodes]
    placements: list[Placement] = []
    for pool in sorted(pools, key=_by_requirements):
        homes = tuple(islice(_homes(places, pool, free_cpus), pool.max_actors or pool.actors))
        grows = can_grow and pool.max_actors is not None and pool.gpus_per_actor > 0
        later = (pool.max_actors or 0) - len(homes) if grows else 0
        # When a machine is added, waiting actors would take the CPUs that have to stay free.
        takes_free_cpus = later > 0 and any(replace(each).take(pool) for each in places)
        if len(homes) < (pool.actors or 0) or takes_free_cpus:
            raise InsufficientCapacityError(_too_few(nodes, pool, len(homes), free_cpus))
        if homes or later:
            placements.append(Placement(pool, homes, later))
    if not any(each.homes for each in placements):
        raise InsufficientCapacityError(_too_few(nodes, pools[0], 0, free_cpus))
    return tuple(placements)


def first_actors(placements: Sequence[Placement], most: int) -> tuple[Placement, ...]:
    """Keeps at most `most` actors: first those that have a place, in order, then waiting ones."""
    left, kept = most, []
    for each in placements:
        kept.append(replace(each, homes=each.homes[:left], later=0))
        left -= len(kept[-1].homes)
    for number, each in enumerate(placements):
        kept[number] = replace(kept[number], later=min(left, each.later))
        left -= kept[number].later
    return tuple(each for each in kept if each.actors)


def pool_bundle(pool: PoolSection) -> dict[str, float]:
    """The resources that one actor of a pool takes, by Ray's names."""
    bundle = {"CPU": pool.cpus_per_actor, "GPU": pool.gpus_per_actor}
    if pool.accelerator is not None:
        bundle[f"{_ACCELERATOR}{pool.accelerator}"] = _OF_ACCELERATOR
    return {name: amount for name, amount in bundle.items() if amount}


def _by_requirements(pool: PoolSection) -> tuple[bool, bool, bool]:
    return not pool.gpus_per_actor, pool.accelerator is None, pool.actors is None


@dataclass
class _Place:
    """The free resources of a machine while actors are placed on it, for each GPU separately."""

    node: Node
    cpus: float
    gpus: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, node: Node) -> _Place:
        part = node.gpus % 1.0
        return cls(node, node.cpus, [1.0] * math.floor(node.gpus) + ([part] if part else []))

    def take(self, pool: PoolSection) -> bool:
        """Places one more actor of the pool here if there is room; returns whether there was."""
        if pool.accelerator not in (None, self.node.accelerator) or (
            self.cpus < pool.cpus_per_actor - _TOLERANCE
        ):
            return False
        whole = math.floor(pool.gpus_per_actor + _TOLERANCE)
        part = pool.gpus_per_actor - whole
        free = list(self.gpus)
        for share in [1.0] * whole + ([part] if part > _TOLERANCE else []):
            # A fraction of a GPU cannot span two GPUs. Take the fullest one that has room.
            room = [gpu for gpu in free if gpu >= share - _TOLERANCE]
            if not room:
                return False
            tightest = min(room)
            free[free.index(tightest)] = tightest - share
        self.gpus, self.cpus = free, self.cpus - pool.cpus_per_actor
        return True


def _homes(places: Sequence[_Place], pool: PoolSection, free_cpus: float) -> Iterator[int]:
    """Yields the machine of each actor, machines taking turns, while enough CPUs are left."""
    spare = sum(place.cpus for place in places) - free_cpus
    open_places = list(enumerate(places))
    while open_places:
        full = set()
        for number, place in open_places:
            if spare < pool.cpus_per_actor - _TOLERANCE:
                return
            if place.take(pool):
                spare -= pool.cpus_per_actor
                yield number
            else:
                full.add(number)
        open_places = [each for each in open_places if each[0] not in full]


def _too_few(nodes: Sequence[Node], pool: PoolSection, found: int, free_cpus: float) -> str:
    count = pool.actors or 1
    who = "an actor" if not pool.actors else f"{count} actors"
    on = "" if pool.accelerator is None else f" on {pool.accelerator}"
    needs = "needs" if not pool.actors else "need"
    there = "; ".join(
        f"{text} x {times}" if times > 1 else text
        for text, times in Counter(map(str, nodes)).items()
    )
    return (
        f"{who}{on} {needs} {count * pool.cpus_per_actor:g} CPUs and "
        f"{count * pool.gpus_per_actor:g} GPUs, and {free_cpus:g} CPUs must stay free for reading; "
        f"the cluster has {there}: room for {found}. Lower actors, cpus_per_actor or "
        "gpus_per_actor in resources, or take a larger cluster."
    )


def _that_fit(node: Node, kind: ActorKind) -> int:
    """How many actors of a kind a machine has room for while it has no others."""
    pool = PoolSection(cpus_per_actor=kind.cpus_per_actor, gpus_per_actor=kind.gpus_per_actor)
    place, found = _Place.of(node), 0
    while place.take(pool):
        found += 1
    return found


def _same(one: float, other: float) -> bool:
    return abs(one - other) < 1e-3  # Ray counts GPUs in parts of ten thousand
