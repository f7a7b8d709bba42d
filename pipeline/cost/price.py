"""Prices a plan: chooses a stored probe or measures one, and derives the planned work."""

from __future__ import annotations

import logging
import math
from collections.abc import Container
from dataclasses import dataclass, replace

from fpe_core.device import choose_device, choose_dtype_name, device_name
from fpe_core.speed import SPEEDS, Speed
from pipeline.cluster.actor_kinds import Node
from pipeline.cluster.pool import Pool, size_pool, this_machine
from pipeline.cost.estimate import Estimate, KeyEffect, PlannedWork, estimate, key_effects
from pipeline.cost.measure import PROBE_S, measure_device, probe_key
from pipeline.cost.probe import Probe, ProbeStore
from pipeline.errors import ProbeError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.group_shape import GroupShape
from pipeline.plan.plan import AllBut, Plan
from pipeline.plan.resolved_job import ResolvedJob, resolve_job

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Price:
    """A plan's work, the probe with which it is priced, and the estimates that follow.

    `is_measured_now`: True if the probe was measured for this plan, False if it was stored.
    """

    work: PlannedWork
    probe: Probe
    is_measured_now: bool

    @property
    def estimate(self) -> Estimate:
        return estimate(self.work, self.probe)

    def with_actors(self, actors: int) -> Estimate:
        return estimate(replace(self.work, actors=actors), self.probe)

    @property
    def key_effects(self) -> list[KeyEffect]:
        return key_effects(self.work, self.probe)


def price(
    job: Job,
    plan: Plan,
    ledger: Ledger,
    store: ProbeStore,
    *,
    device: str | None = None,
    measure: bool = False,
    seconds: float = PROBE_S,
) -> Price:
    """Prices a plan with pending edits.

    Args:
        device: the name of a device with a stored probe; None: this device. If this device has no
            stored probe, it is measured now, and the probe is stored.
        measure: measure this device even if it has a stored probe.
        seconds: about how many seconds the measuring calls may take.

    Raises:
        ProbeError: there is no such probe, the file of probes is damaged, or no source can be read.
        CheckpointError: the model cannot be loaded here.
        ResourceError: this machine is too small.
    """
    resolved, shape = resolve_job(job), typical_shape(plan)
    dtype = job.model.dtype
    if device is not None:
        found = store.of_device(device, probe_key(resolved, dtype, shape), dtype)
        pool = _pool_elsewhere(job, plan, found.device_type)
        return Price(_workload(resolved, plan, pool), found, is_measured_now=False)
    here = choose_device(job.model.device)
    is_local = job.resources.ray_address is None and job.resources.pools is None
    pool = _pool_here(job, plan) if is_local else _pool_elsewhere(job, plan, here.type)
    key = probe_key(resolved, choose_dtype_name(dtype, here.type), shape)
    threads = pool.threads_per_actor if here.type == "cpu" else None
    found_here = None if measure else store.find(device_name(here), key, dtype, threads)
    probe = found_here or measure_device(
        resolved, _left_out(plan, ledger), shape, pool, seconds=seconds
    )
    if found_here is None:
        _keep(store, probe)
    work = _workload(resolved, plan, pool)
    if is_local and here.type == "cpu":
        work = replace(work, leaves_no_core=leaves_no_core(pool, this_machine()))
    return Price(work, probe, is_measured_now=found_here is None)


def leaves_no_core(pool: Pool, node: Node) -> bool:
    """Whether the workers' threads use all cores of a machine, and each worker has several."""
    threads = pool.threads_per_actor
    return threads > 1 and pool.actors * threads >= node.cpus


def _keep(store: ProbeStore, probe: Probe) -> None:
    """Stores a probe. If that fails, only warns: the probe can still be used for this plan."""
    try:
        store.add(probe)
    except ProbeError as error:
        _log.warning("%s", error)


def typical_shape(plan: Plan) -> GroupShape:
    """The shape of the groups that together take the most UNet rows."""
    return max(plan.shapes, key=lambda shape: shape.unet_rows * plan.shapes[shape])


def _left_out(plan: Plan, ledger: Ledger) -> Container[bytes]:
    return ledger.done_ids() if plan.round is None else AllBut(plan.round.edits)


def _pool_here(job: Job, plan: Plan) -> Pool:
    return _sized(job, plan, this_machine(), job.model.device)


def _pool_elsewhere(job: Job, plan: Plan, device_type: str) -> Pool:
    """The pool on a cluster that cannot be inspected from here: as many actors as the job allows,
    or one, all with the device type of the probe."""
    resources, has_gpu = job.resources, device_type != "cpu"
    actors = sum(each.max_actors or each.actors or 1 for each in resources.pools or (resources,))
    resources = resources.model_copy(update={"pools": None, "actors": actors, "max_actors": None})
    job = job.model_copy(update={"resources": resources})
    cpus = actors * (resources.cpus_per_actor or 1.0) + max(1, resources.free_cpus)
    gpus = actors * (1.0 if resources.gpus_per_actor is None else resources.gpus_per_actor)
    node = Node(cpus, math.ceil(gpus) if has_gpu else 0.0)
    return _sized(job, plan, node, "auto" if has_gpu else "cpu")


def _sized(job: Job, plan: Plan, node: Node, device: str) -> Pool:
    return size_pool(
        [node],
        job.resources,
        device=device,
        groups=plan.groups_pending,
        pixels_per_image=plan.parameters.width_px * plan.parameters.height_px,
        makes_edits=plan.makes_edits,
    )


def _workload(resolved: ResolvedJob, plan: Plan, pool: Pool) -> PlannedWork:
    job = resolved.job
    return PlannedWork(
        shapes=plan.shapes,
        groups_per_block=pool.groups_per_block,
        actors=pool.actors,
        gpus_per_actor=pool.gpus_per_actor,
        image_format=job.images.format,
        keep_source=job.images.keep_source,
        is_judged=job.judge is not None,
        speed=job.edit.speed,
        other_speeds=_other_speeds(resolved),
    )


def _other_speeds(resolved: ResolvedJob) -> dict[Speed, float]:
    """The number of steps at each other speed, relative to the job's; without speeds for which it
    is the same."""
    edit, now = resolved.job.edit, resolved.parameters.steps
    steps = {
        speed: edit.model_copy(update={"speed": speed}).resolve(resolved.recommended).steps
        for speed in SPEEDS
    }
    return {speed: count / now for speed, count in steps.items() if count != now}
