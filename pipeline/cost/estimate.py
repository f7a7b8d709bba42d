"""Estimates what a plan costs on a measured device, and what each key of the job changes.

UNet rows are counted by the formula in `group_shape`. Seconds are rows, sources and edits times the
seconds that the probe measured, in calls as large as those of the run. Only first attempts are
counted, because it is not known how many edits a judge will reject; the cost of a retry is shown as
the effect of the key `judge.retries`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from fpe_core.speed import Speed
from pipeline.cost.probe import Probe
from pipeline.plan.group_shape import GroupShape

_NO_CORE_LEFT = 1.2
"""How much longer loops of several threads take if they use all cores of a machine: other processes
of the run need a core now and then, and a loop waits for its slowest thread. 1.14 to 1.29 was
measured on two cores (docs/plan.md); with one thread, or with a free core, it was 1."""
_GUIDED_SHARE = 0.8
"""The share of guided steps for which the effect of `edit.guidance_interval` is shown."""


@dataclass(frozen=True)
class PlannedWork:
    """The edits that are left to make, and how they are divided among workers.

    Attributes:
        shapes: number of groups by shape, which determines their cost.
        gpus_per_actor: GPUs of each worker: below 1 several workers share one, 0 is a CPU.
        leaves_no_core: whether the workers' threads use all cores of this machine, and each
            worker has several threads.
        retries: assumed for every edit.
        speed: `edit.speed`.
        other_speeds: number of steps at each other speed, relative to the present number; none if
            the job itself sets the number of steps.
    """

    shapes: Mapping[GroupShape, int]
    groups_per_block: int
    actors: int
    gpus_per_actor: float
    image_format: str
    keep_source: bool
    is_judged: bool
    leaves_no_core: bool = False
    retries: int = 0
    speed: Speed = "exact"
    other_speeds: Mapping[Speed, float] = field(default_factory=dict)

    @property
    def sources(self) -> int:
        return sum(self.shapes.values())

    @property
    def edits(self) -> int:
        return sum(shape.edits * count for shape, count in self.shapes.items())

    @property
    def unet_rows(self) -> int:
        return sum(
            (shape.unet_rows + self.retries * shape.retry_rows) * count
            for shape, count in self.shapes.items()
        )

    def with_shapes(self, change: Callable[[GroupShape], GroupShape]) -> PlannedWork:
        """The same groups, with each shape replaced by `change(shape)`."""
        shapes: Counter[GroupShape] = Counter()
        for shape, count in self.shapes.items():
            shapes[change(shape)] += count
        return replace(self, shapes=dict(shapes))


@dataclass(frozen=True)
class Estimate:
    """The cost of planned work. Seconds are summed over all devices, except `wall_s`.

    Attributes:
        unet_s: evaluating UNet rows.
        pictures_s: encoding prompts and images, and decoding images.
        judge_s: scoring.
        cpu_io_s: CPU time of downloading, resizing and encoding images, on one core. If the model
            runs on a CPU, it is part of `device_s`.
        device_s: all the time in which a device is busy.
        wall_s: from the first block to the last, without starting Ray and loading models.
        device_hours: hours for which devices are reserved, which is what is paid for.
    """

    edits: int
    unet_rows: int
    unet_s: float
    pictures_s: float
    judge_s: float
    cpu_io_s: float
    device_s: float
    wall_s: float
    device_hours: float
    output_bytes: float

    @property
    def row_s(self) -> float:
        """Mean seconds of a UNet row, over all kinds of rows."""
        return self.unet_s / self.unet_rows if self.unet_rows else 0.0

    def money(self, price_per_hour: float) -> float:
        return self.device_hours * price_per_hour

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds_per_unet_row": self.row_s}


@dataclass(frozen=True)
class KeyEffect:
    """The effect of changing one key of the job file from `now` to `then`: the estimate with it."""

    key: str
    now: str
    then: str
    estimate: Estimate


def estimate(work: PlannedWork, probe: Probe) -> Estimate:
    """The cost of planned work on the device of the probe."""
    unet_s = pictures_s = judge_s = 0.0
    tries = 1 + work.retries
    for shape, count in work.shapes.items():
        in_call = min(work.groups_per_block, shape.sources_per_call)
        times = probe.times_of(shape.edits_per_call * in_call)
        unet_s += count * (
            shape.inversion_rows * times.inversion_row_s
            + tries * shape.source_rows * times.source_row_s
            + tries * shape.edit_rows * times.edit_row_s
        )
        pictures_s += count * (times.source_s + tries * shape.edits * times.edit_s)
        judge_s += count * tries * shape.edits * probe.judge_s if work.is_judged else 0.0
    image = probe.formats[work.image_format]
    sources = work.sources if work.keep_source else 0
    cpu_io_s = work.sources * probe.fetch_s + (work.edits + sources) * image.seconds
    device_s = unet_s + pictures_s + judge_s
    if probe.device_type == "cpu":
        device_s += cpu_io_s / probe.threads
        device_s *= _NO_CORE_LEFT if work.leaves_no_core else 1.0
    share = min(1.0, work.gpus_per_actor) if work.gpus_per_actor else 1.0
    reserved = max(1.0, work.gpus_per_actor)
    blocks = max(1, math.ceil(work.sources / work.groups_per_block))
    in_turn = math.ceil(blocks / work.actors)  # blocks that one worker makes, one after the other
    return Estimate(
        edits=work.edits,
        unet_rows=work.unet_rows,
        unet_s=unet_s,
        pictures_s=pictures_s,
        judge_s=judge_s,
        cpu_io_s=cpu_io_s,
        device_s=device_s,
        wall_s=device_s / share * in_turn / blocks,
        device_hours=device_s * reserved / 3600,
        output_bytes=work.edits * image.edited_bytes + sources * image.source_bytes,
    )


def key_effects(work: PlannedWork, probe: Probe) -> list[KeyEffect]:
    """What the job would cost with one key changed and all others unchanged.

    For rows of the manifest that set the key themselves, their value is changed too.
    """
    changes = [*_of_edits(work), *_of_the_rest(work, probe)]
    return [
        KeyEffect(key, now, then, estimate(changed, probe)) for key, now, then, changed in changes
    ]


_Change = tuple[str, str, str, PlannedWork]


def _of_edits(work: PlannedWork) -> Iterator[_Change]:
    """Keys that change how many UNet rows a group takes."""
    most = max(work.shapes, key=lambda shape: shape.unet_rows * work.shapes[shape])
    for speed, share in work.other_speeds.items():
        yield "edit.speed", work.speed, speed, work.with_shapes(partial(_of_its_steps, share))
    if most.steps > 1:
        yield "edit.steps", f"{most.steps}", f"{most.steps // 2}", work.with_shapes(_half_the_steps)
    if most.replaced_steps and not most.is_synthetic:
        fraction = most.replaced_fraction
        half = work.with_shapes(_half_the_replacement)
        yield "edit.replaced_fraction", f"{fraction:g}", f"{fraction / 2:g}", half
    if most.is_guided:
        unguided = work.with_shapes(lambda shape: shape.unguided())
        yield "edit.guidance_scale", "guided", "1", unguided
    if most.guided_steps == most.steps:
        early = work.with_shapes(lambda shape: shape.guided_until(_GUIDED_SHARE))
        if early.unet_rows != work.unet_rows:
            yield "edit.guidance_interval", "[0, 1]", f"[0, {_GUIDED_SHARE:g}]", early
    twice = work.with_shapes(lambda shape: shape.with_edits(2 * shape.edits))
    yield "edits of a source", f"{most.edits}", f"{2 * most.edits}", twice


def _of_its_steps(share: float, shape: GroupShape) -> GroupShape:
    steps = max(1, round(share * shape.steps))
    return shape.with_replacement(steps, shape.replaced_fraction)


def _half_the_steps(shape: GroupShape) -> GroupShape:
    return shape.with_replacement(max(1, shape.steps // 2), shape.replaced_fraction)


def _half_the_replacement(shape: GroupShape) -> GroupShape:
    return shape.with_replacement(shape.steps, shape.replaced_fraction / 2)


def _of_the_rest(work: PlannedWork, probe: Probe) -> Iterator[_Change]:
    """Keys that change the work outside the UNet, or the number of attempts."""
    if work.is_judged:
        yield "judge", "on", "null", replace(work, is_judged=False)
        again = replace(work, retries=work.retries + 1)
        yield "judge.retries", "0", "1 an edit", again
    for name in probe.formats:
        if name != work.image_format:
            changed = replace(work, image_format=name)
            yield "images.format", work.image_format, name, changed
    if work.keep_source:
        yield "images.keep_source", "true", "false", replace(work, keep_source=False)
