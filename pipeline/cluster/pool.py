"""How a job shares out a cluster: how many actors, with what each, how much work goes to each.

    GPUs       one actor per GPU
    no GPU     one actor per CPU, less those that stay free; the cores' threads are shared out
    pools      as many of each kind as the job says (`actor_kinds`)
    always     at least one CPU is free: readers run there, and a pool of all CPUs hangs for ever
    later      max_actors: actors with a GPU that find no place yet wait for a machine

Sizes are decided once, before anything starts, and all actors are started at once: those that wait
for a machine are what the cluster's autoscaler sees as demand. (Ray Data would ask for the machines
of a growing pool little by little, and doubles them at most each time one has come up.) Actors
without a GPU do not wait: wherever a CPU came free they would take it from the readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.actor_kinds import (
    ActorKind,
    Node,
    first_actors,
    pool_bundle,
    size_kinds,
)
from pipeline.errors import InsufficientCapacityError
from pipeline.job.resources import ResourcesSection

_READER_CPUS = 1.0
_BLOCKS_PER_ACTOR = 8  # fewer leave actors idle at the end and progress coarse
_FULL_BLOCK_GPU = 64, 128
_FULL_BLOCK_CPU = 32, 128
"""Groups of a block, where there are enough for all actors; more of them beyond _MANY_BLOCKS."""
_MANY_BLOCKS = 2048
_CPU_BLOCK_PIXELS = 2 * 512 * 512  # on a CPU a block of two 512 px sources is minutes of work
_MOST_THREADS = 16


@dataclass(frozen=True)
class Pool:
    """The sizes of a run.

    `kinds`: its actors where they are not all alike; the figures of an actor are then those of the
    first kind, which has a GPU if any has. `later`: so many of `actors` have no place yet.
    """

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads_per_actor: int
    memory_share: float
    groups_per_block: int
    kinds: tuple[ActorKind, ...] = ()
    later: int = 0


def size_pool(
    nodes: Sequence[Node],
    wishes: ResourcesSection,
    *,
    device: str,
    groups: int,
    pixels_per_image: int,
) -> Pool:
    """The pool for `groups` groups of images of that many pixels.

    Raises InsufficientCapacityError, with what is missing, if readers and actors cannot run at the
    same time; ResourceError if more machines would not help.
    """
    free = max(_READER_CPUS, float(wishes.free_cpus))
    if wishes.pools is not None:
        kinds = size_kinds(
            nodes, wishes.pools, free_cpus=free, device=device, can_grow=wishes.can_grow
        )
        return _pool_of(kinds, wishes, groups=groups, pixels_per_image=pixels_per_image)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gpus_per_actor = _gpus_per_actor(wishes, device, gpus)
    cpus_per_actor = 1.0 if wishes.cpus_per_actor is None else wishes.cpus_per_actor
    places_by_node = [_places(node, cpus_per_actor, gpus_per_actor) for node in nodes]
    places, nodes_used = sum(places_by_node), sum(count > 0 for count in places_by_node)
    most = min(places, math.floor((cpus - free) / cpus_per_actor + 1e-9))
    can_grow = wishes.max_actors is not None and wishes.can_grow and gpus_per_actor > 0
    if can_grow and most < min(places, wishes.max_actors or 0):
        most = 0  # those that wait would take the readers' CPUs
    if most < max(1, wishes.actors or 1):
        asked = "an actor needs" if not wishes.actors else f"{wishes.actors} actors need"
        count = wishes.actors or 1
        raise InsufficientCapacityError(
            f"{asked} {count * cpus_per_actor:g} CPUs and {count * gpus_per_actor:g} GPUs, and "
            f"{free:g} CPUs must stay free for reading; the cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs on {len(nodes)} nodes. Lower resources.actors, cpus_per_actor or "
            f"gpus_per_actor, or take a larger cluster."
        )
    at_start = wishes.actors or max(1, min(most, groups))
    if wishes.max_actors is not None:
        at_start = min(most, wishes.max_actors, groups)
    actors = min(wishes.max_actors or at_start, groups) if can_grow else at_start
    groups_per_block = wishes.groups_per_block or _groups_per_block(
        groups, actors, pixels_per_image, on_gpu=gpus_per_actor > 0
    )
    actors = min(actors, math.ceil(groups / groups_per_block))  # one without a block stays idle
    at_start = min(at_start, actors)
    threads = max(1, min(int(cpus // at_start), _MOST_THREADS))
    return Pool(
        actors=actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
        threads_per_actor=wishes.threads_per_actor or threads,
        memory_share=_memory_share(at_start, nodes_used, gpus_per_actor),
        groups_per_block=groups_per_block,
        later=actors - at_start,
    )


def bundles_of(wishes: ResourcesSection, *, device: str, groups: int) -> list[dict[str, float]]:
    """What a run would take of a cluster that has all it may have, by Ray's names of resources."""
    bundles = [{"CPU": max(_READER_CPUS, float(wishes.free_cpus))}]
    if wishes.pools is not None:
        for pool in wishes.pools:
            bundles += [pool_bundle(pool)] * min(pool.max_actors or pool.actors or 1, groups)
        return bundles
    has_gpu = wishes.max_actors is not None or device.startswith("cuda")
    on_device = 1.0 if has_gpu and device != "cpu" else 0.0
    gpus = on_device if wishes.gpus_per_actor is None else wishes.gpus_per_actor
    cpus = 1.0 if wishes.cpus_per_actor is None else wishes.cpus_per_actor
    actor = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    return bundles + [actor] * min(wishes.max_actors or wishes.actors or 1, groups)


def _pool_of(
    kinds: tuple[ActorKind, ...], wishes: ResourcesSection, *, groups: int, pixels_per_image: int
) -> Pool:
    """The pool of actors of several kinds. Where blocks are few, the first of them stay."""
    on_gpu = any(kind.gpus_per_actor for kind in kinds)
    groups_per_block = wishes.groups_per_block or _groups_per_block(
        groups, sum(kind.actors for kind in kinds), pixels_per_image, on_gpu=on_gpu
    )
    kinds = first_actors(kinds, math.ceil(groups / groups_per_block))
    return Pool(
        actors=sum(kind.actors for kind in kinds),
        cpus_per_actor=kinds[0].cpus_per_actor,
        gpus_per_actor=kinds[0].gpus_per_actor,
        threads_per_actor=kinds[0].threads_per_actor,
        memory_share=kinds[0].memory_share,
        groups_per_block=groups_per_block,
        kinds=kinds,
        later=sum(kind.later for kind in kinds),
    )


def _gpus_per_actor(wishes: ResourcesSection, device: str, gpus: float) -> float:
    if wishes.gpus_per_actor is not None:
        return wishes.gpus_per_actor
    if wishes.can_grow and wishes.max_actors is not None and device != "cpu":
        return 1.0  # whatever is there now: those that come later have one
    if device.startswith("cuda") and gpus == 0:
        raise InsufficientCapacityError(
            f"model.device is {device}, and the cluster has no GPU that Ray knows of; set "
            "model.device=cpu, or start Ray on a machine with a GPU"
        )
    return 1.0 if gpus > 0 and (device == "auto" or device.startswith("cuda")) else 0.0


def _places(node: Node, cpus_per_actor: float, gpus_per_actor: float) -> int:
    places = node.cpus / cpus_per_actor
    if gpus_per_actor > 0:
        # A fraction of a GPU never spans two of them; several whole ones may be any.
        each = 1 / gpus_per_actor
        of_gpus = node.gpus * math.floor(each + 1e-9) if each >= 1 else node.gpus * each
        places = min(places, of_gpus)
    return math.floor(places + 1e-9)


def _memory_share(actors: int, nodes: int, gpus_per_actor: float) -> float:
    """Part of a device's memory that one actor may plan with."""
    if gpus_per_actor > 0:
        return min(1.0, gpus_per_actor)
    return 1.0 / math.ceil(actors / nodes)


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
