"""What a plan costs on a device that was probed, and what each effect of the job would change.

Rows are counted, by the formula in `group_shape`; seconds are rows, sources and edits times what
the probe measured in calls as large as the run's. First attempts only: nobody knows beforehand how
many edits a judge rejects, so what a retry adds is among the key_effects.
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
from pipeline.edit.block import EDITS_PER_CALL
from pipeline.plan.group_shape import GroupShape

_NO_CORE_LEFT = 1.2
"""How much longer loops of several threads take where they have all of a machine's cores: the
others of a run need them now and then, and a loop waits for its slowest thread. 1.14 to 1.29 was
seen on two cores (docs/plan.md); with one thread, or a core to spare, it was 1."""
_GUIDED_SHARE = 0.8
"""Of the steps, in the effect that guides fewer of them."""


@dataclass(frozen=True)
class PlannedWork:
    """What is left to do and how it is shared out.

    Attributes:
        shapes: groups by what they cost.
        gpus_per_actor: of each worker; several may share one, 0 is none.
        leaves_no_core: whether the workers' threads have all cores of this machine, and each
            worker several.
        retries: of every edit.
        speed: `edit.speed`.
        other_speeds: steps at each other speed, as a share of the steps now; none where the job
            says itself how many there are.
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
        """The same groups, each of another shape."""
        shapes: Counter[GroupShape] = Counter()
        for shape, count in self.shapes.items():
            shapes[change(shape)] += count
        return replace(self, shapes=dict(shapes))


@dataclass(frozen=True)
class Estimate:
    """A workload in numbers; seconds of all devices together, but for `wall_s`.

    Attributes:
        unet_s, pictures_s, judge_s: rows; encoding, decoding and texts; scoring.
        cpu_io_s: sources fetched and fitted, pictures written as files: seconds of one core. On a
            CPU they take their share of the device.
        device_s: all that a device is busy with.
        wall_s: from the first block to the last, without starting Ray and loading models.
        device_hours: what is paid for.
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
        """Of a UNet row, all kinds together."""
        return self.unet_s / self.unet_rows if self.unet_rows else 0.0

    def money(self, price_per_hour: float) -> float:
        return self.device_hours * price_per_hour

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds_per_unet_row": self.row_s}


@dataclass(frozen=True)
class KeyEffect:
    """A key of the job file, what it is now, another value, and what the job would cost then."""

    key: str
    now: str
    then: str
    estimate: Estimate


def estimate(work: PlannedWork, probe: Probe) -> Estimate:
    """What the workload costs on the probed device."""
    unet_s = pictures_s = judge_s = 0.0
    tries = 1 + work.retries
    for shape, count in work.shapes.items():
        in_call = min(work.groups_per_block, math.ceil(EDITS_PER_CALL / shape.edits))
        times = probe.times_of(shape.edits * in_call)
        unet_s += count * (
            shape.inversion_rows * times.inversion_row_s
            + tries * shape.source_rows * times.source_row_s
            + tries * shape.edit_rows * times.edit_row_s
        )
        pictures_s += count * (times.source_s + tries * shape.edits * times.edit_s)
        judge_s += count * tries * shape.edits * probe.judge_s if work.is_judged else 0.0
    picture = probe.formats[work.image_format]
    sources = work.sources if work.keep_source else 0
    cpu_io_s = work.sources * probe.fetch_s + (work.edits + sources) * picture.seconds
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
        output_bytes=work.edits * picture.edited_bytes + sources * picture.source_bytes,
    )


def key_effects(work: PlannedWork, probe: Probe) -> list[KeyEffect]:
    """What the job would cost with one key changed, everything else as it is.

    Where rows of the manifest set a key themselves, theirs change too.
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
        unguided = work.with_shapes(GroupShape.unguided)
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
    """Keys that change what is done beside the UNet, or by how many."""
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
