"""Sizes the pool of a run: how many actors, which resources each gets, how large blocks are.

    GPUs       one actor per GPU
    no GPU     one actor per CPU, minus the CPUs that stay free; they share the machine's threads
    no editor  one actor per machine: its encoding processes use all cores
    pools      the number of each kind that the job sets
    always     at least one CPU stays free for readers: a pool that takes all CPUs hangs forever
    later      max_actors: actors with a GPU that have no place yet wait for a machine
    store      readers run ahead until STORE_SHARE of Ray's object store is full of decoded sources

`actor_kinds` places the actors on machines.

Sizes are decided once, before anything starts, and all actors are started at once: the cluster's
autoscaler sees those that wait for a machine as demand. (With a growing pool Ray Data would request
machines step by step, at most doubling their number each time.) Actors without a GPU do not wait:
they would take every CPU that becomes free from the readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.actor_kinds import (
    ActorKind,
    Node,
    Placement,
    first_actors,
    place_actors,
    pool_bundle,
)
from pipeline.errors import InsufficientCapacityError, ResourceError
from pipeline.job.resources import PoolSection, ResourcesSection

STORE_SHARE = 0.5
"""Of Ray's object store, on machines with room for readers: the most that decoded sources take on
their way to an actor. One half of it is for those that wait, one for those that are being read."""
_READER_CPUS = 1.0
_BLOCKS_PER_ACTOR = 8  # fewer leave actors idle at the end and progress coarse
_FULL_BLOCK_GPU = 64, 128
_FULL_BLOCK_CPU = 32, 128
"""Groups in a full block: the first number, growing up to the second beyond _MANY_BLOCKS blocks."""
_MANY_BLOCKS = 2048
_BYTES_PER_PIXEL = 3  # of a decoded source, RGB
_FULL_BLOCK_EDITS = 2048
"""Edits in a full block: its outcomes are one file, and what a crash loses is this at most."""
_BLOCK_PIXELS = 128 * 512 * 512  # the sources of two blocks are in an actor's memory
_CPU_BLOCK_PIXELS = 2 * 512 * 512  # on a CPU a block of two 512 px sources is minutes of work


@dataclass(frozen=True)
class Pool:
    """The sizes of a run: its actors, kind by kind, and how many groups and edits a block has.

    The first kind has a GPU if any kind has. The properties for one actor are those of the first
    kind. `places`: how many actors have room, also where there are too few blocks for so many.

    `readers`: the most blocks that are read at the same time; `waiting_bytes`: the most that wait
    for an actor; None if Ray has not told the size of its object store.
    """

    kinds: tuple[ActorKind, ...]
    groups_per_block: int
    edits_per_block: int = _FULL_BLOCK_EDITS
    places: int = 0
    readers: int | None = None
    waiting_bytes: float | None = None

    @property
    def actors(self) -> int:
        return sum(kind.actors for kind in self.kinds)

    @property
    def later(self) -> int:
        """How many of the actors have no machine yet."""
        return sum(kind.later for kind in self.kinds)

    def actors_for(self, blocks: int, *, left_out: int = 0) -> int:
        """How many actors to start for so many blocks, if some of them will be left out again."""
        return min(max(self.actors, self.places), min(self.actors, blocks) + left_out)

    @property
    def gpus_per_actor(self) -> float:
        return self.kinds[0].gpus_per_actor

    @property
    def threads_per_actor(self) -> int:
        return self.kinds[0].threads_per_actor

    @property
    def encoders_per_actor(self) -> int:
        return self.kinds[0].encoders_per_actor

    @property
    def memory_share(self) -> float:
        return self.kinds[0].memory_share

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.kinds))}; {self.groups_per_block} sources in a block"


def size_pool(
    nodes: Sequence[Node],
    resources: ResourcesSection,
    *,
    device: str,
    groups: int,
    pixels_per_image: int,
    makes_edits: bool = True,
) -> Pool:
    """The pool for `groups` groups with `pixels_per_image`. It has no more actors than blocks.

    `makes_edits`: False for `editor: none`.

    Raises InsufficientCapacityError, with what is missing, if readers and actors cannot run at the
    same time; ResourceError if more machines would not help.
    """
    may_grow = resources.can_grow and resources.max_actors is not None
    has_gpus = may_grow or any(node.gpus for node in nodes)  # machines that come later have some
    is_open = resources.pools is None and resources.gpus_per_actor is None
    if device.startswith("cuda") and not has_gpus and is_open:
        raise InsufficientCapacityError(
            f"model.device is {device}, and the cluster has no GPU that Ray knows of; set "
            "model.device=cpu, or start Ray on a machine with a GPU"
        )
    if not makes_edits and resources.pools is None and resources.actors is None:
        most = sum(node.cpus >= (resources.cpus_per_actor or 1.0) for node in nodes)
        most = max(1, min(most, resources.max_actors or most))
        resources = resources.model_copy(update={"actors": 1, "max_actors": most})
    placements = place_actors(
        nodes,
        _pools_of(resources, device, has_gpus=has_gpus),
        free_cpus=_free_cpus(resources),
        can_grow=resources.can_grow,
    )
    groups_per_block = resources.groups_per_block or _groups_per_block(
        groups,
        sum(each.actors for each in placements),
        pixels_per_image,
        is_fast=not makes_edits or any(each.pool.gpus_per_actor for each in placements),
    )
    places = sum(len(each.homes) for each in placements)
    placements = first_actors(placements, math.ceil(groups / groups_per_block))
    half_of_share = STORE_SHARE / 2 * _readers_store_bytes(nodes, placements)
    block_bytes = min(groups, groups_per_block) * pixels_per_image * _BYTES_PER_PIXEL
    return Pool(
        tuple(each.to_kind(nodes) for each in placements),
        groups_per_block,
        resources.edits_per_block or _FULL_BLOCK_EDITS,
        places,
        # Ray lets readers begin while less waits than allowed, so one block may come on top.
        readers=max(1, int(half_of_share // block_bytes) - 1) if half_of_share else None,
        waiting_bytes=half_of_share or None,
    )


def bundles_of(resources: ResourcesSection, *, device: str, groups: int) -> list[dict[str, float]]:
    """The resources that a run takes if the cluster grows to its limit, by Ray's names.

    The first bundle has the CPUs that stay free, then there is one per actor.
    """
    has_gpus = resources.max_actors is not None or device.startswith("cuda")
    bundles = [{"CPU": _free_cpus(resources)}]
    for pool in _pools_of(resources, device, has_gpus=has_gpus):
        bundles += [pool_bundle(pool)] * min(pool.max_actors or pool.actors or 1, groups)
    return bundles


def _pools_of(
    resources: ResourcesSection, device: str, *, has_gpus: bool
) -> tuple[PoolSection, ...]:
    """The kinds of actors that a job requests: one, unless it lists several.

    `has_gpus`: whether each actor gets a GPU if neither the job nor the device says otherwise.
    Raises ResourceError for pools that the device does not fit.
    """
    if resources.pools is None:
        gpus = resources.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if has_gpus and (device == "auto" or device.startswith("cuda")) else 0.0
        one = PoolSection(
            actors=resources.actors,
            max_actors=resources.max_actors,
            gpus_per_actor=gpus,
            cpus_per_actor=resources.cpus_per_actor or 1.0,
            threads_per_actor=resources.threads_per_actor,
        )
        return (one,)
    if device.startswith("cuda") and not all(pool.gpus_per_actor for pool in resources.pools):
        raise ResourceError(
            f"model.device is {device}, and a pool has gpus_per_actor: 0; set model.device=auto"
        )
    return resources.pools


def _readers_store_bytes(nodes: Sequence[Node], placements: Sequence[Placement]) -> float:
    """Ray's object store on the machines on which actors leave a CPU to readers, in bytes."""
    free = [node.cpus for node in nodes]
    for each in placements:
        for number in each.homes:
            free[number] -= each.pool.cpus_per_actor
    return sum(
        node.store_bytes for node, cpus in zip(nodes, free, strict=True) if cpus >= _READER_CPUS
    )


def _free_cpus(resources: ResourcesSection) -> float:
    return max(_READER_CPUS, float(resources.free_cpus))


def _groups_per_block(groups: int, actors: int, pixels_per_image: int, *, is_fast: bool) -> int:
    """Enough groups to be worth a task, few enough that all actors have work until the end.

    If there are very many groups, blocks are larger, because the driver keeps a record per block.
    `is_fast`: whether a GPU edits, or nothing does.
    """
    least, most = _FULL_BLOCK_GPU if is_fast else _FULL_BLOCK_CPU
    full = min(most, max(least, math.ceil(groups / _MANY_BLOCKS)))
    pixels = _BLOCK_PIXELS if is_fast else _CPU_BLOCK_PIXELS
    full = min(full, max(1, pixels // pixels_per_image))
    return max(1, min(full, math.ceil(groups / (actors * _BLOCKS_PER_ACTOR))))


def this_machine() -> Node:
    """The resources that a local Ray would find on this machine; does not start Ray."""
    import torch  # seconds to load: only when asked for

    from fpe_core.device import usable_cores  # loads torch too

    return Node(cpus=float(max(2, usable_cores())), gpus=float(torch.cuda.device_count()))
