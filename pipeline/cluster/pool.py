"""How a job shares out a cluster: how many actors, with what each, how much work goes to each.

    GPUs       one actor per GPU
    no GPU     one actor per CPU, less those that stay free; the cores' threads are shared out
    pools      as many of each kind as the job says
    always     at least one CPU is free: readers run there, and a pool of all CPUs hangs for ever
    later      max_actors: actors with a GPU that find no place yet wait for a machine

`actor_kinds` places them on machines.

Sizes are decided once, before anything starts, and all actors are started at once: those that wait
for a machine are what the cluster's autoscaler sees as demand. (Ray Data would ask for the machines
of a growing pool little by little, and doubles them at most each time one has come up.) Actors
without a GPU do not wait: wherever a CPU came free they would take it from the readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.actor_kinds import ActorKind, Node, first_actors, place_actors, pool_bundle
from pipeline.errors import InsufficientCapacityError, ResourceError
from pipeline.job.resources import PoolSection, ResourcesSection

_READER_CPUS = 1.0
_BLOCKS_PER_ACTOR = 8  # fewer leave actors idle at the end and progress coarse
_FULL_BLOCK_GPU = 64, 128
_FULL_BLOCK_CPU = 32, 128
"""Groups of a block, where there are enough for all actors; more of them beyond _MANY_BLOCKS."""
_MANY_BLOCKS = 2048
_CPU_BLOCK_PIXELS = 2 * 512 * 512  # on a CPU a block of two 512 px sources is minutes of work


@dataclass(frozen=True)
class Pool:
    """The sizes of a run: its actors, kind by kind, and how many groups travel in a block.

    The first kind has a GPU if any has. What a Pool gives for an actor is of the first kind.
    """

    kinds: tuple[ActorKind, ...]
    groups_per_block: int

    @property
    def actors(self) -> int:
        return sum(kind.actors for kind in self.kinds)

    @property
    def later(self) -> int:
        """How many of the actors have no place yet."""
        return sum(kind.later for kind in self.kinds)

    @property
    def gpus_per_actor(self) -> float:
        return self.kinds[0].gpus_per_actor

    @property
    def threads_per_actor(self) -> int:
        return self.kinds[0].threads_per_actor

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
) -> Pool:
    """The pool for `groups` groups of images of that many pixels. Few blocks need few actors.

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
        on_gpu=any(each.pool.gpus_per_actor for each in placements),
    )
    placements = first_actors(placements, math.ceil(groups / groups_per_block))
    return Pool(tuple(each.to_kind(nodes) for each in placements), groups_per_block)


def bundles_of(resources: ResourcesSection, *, device: str, groups: int) -> list[dict[str, float]]:
    """What a run would take of a cluster that has all it may have, by Ray's names of resources."""
    has_gpus = resources.max_actors is not None or device.startswith("cuda")
    bundles = [{"CPU": _free_cpus(resources)}]
    for pool in _pools_of(resources, device, has_gpus=has_gpus):
        bundles += [pool_bundle(pool)] * min(pool.max_actors or pool.actors or 1, groups)
    return bundles


def _pools_of(
    resources: ResourcesSection, device: str, *, has_gpus: bool
) -> tuple[PoolSection, ...]:
    """The kinds of actors that a job asks for: one, unless it names several.

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


def _free_cpus(resources: ResourcesSection) -> float:
    return max(_READER_CPUS, float(resources.free_cpus))


def _groups_per_block(groups: int, actors: int, pixels_per_image: int, *, on_gpu: bool) -> int:
    """Enough to be worth a task, few enough that all actors work to the end.

    Of very many groups more, since a driver keeps some words about each block.
    """
    least, most = _FULL_BLOCK_GPU if on_gpu else _FULL_BLOCK_CPU
    full = min(most, max(least, math.ceil(groups / _MANY_BLOCKS)))
    if not on_gpu:
        full = min(full, max(1, _CPU_BLOCK_PIXELS // pixels_per_image))
    return max(1, min(full, math.ceil(groups / (actors * _BLOCKS_PER_ACTOR))))


def this_machine() -> Node:
    """What a local Ray would find here, without starting one."""
    import torch  # seconds to load: only when asked for

    from fpe_core.device import usable_cores  # loads torch too

    return Node(cpus=float(max(2, usable_cores())), gpus=float(torch.cuda.device_count()))
