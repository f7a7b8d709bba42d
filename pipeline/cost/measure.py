"""Measures the times that a job takes on this device, with some of the job's own sources and edits.

The sources are read as a run reads them. The editor is called with one step and with several: the
time that grows with the steps is that of UNet rows, by kind of row (`group_shape`); the rest
belongs to the sources (fit, encode) and the edits (texts, decode). There are calls with the edits
of one source, and calls as large as those of a run. Then the judge scores these edits, and they are
encoded in every format. Times are means, not medians, because a run takes the sum of all its calls,
including the slow ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Literal, TypeVar

import pyarrow as pa
import torch

from fpe_core import (
    Editor,
    EditParameters,
    EditResult,
    Inversion,
    SyntheticSources,
    load_checkpoint,
)
from fpe_core.checkpoint.load import Checkpoint
from fpe_core.device import device_name, usable_cores
from fpe_core.injection import DifferenceMask, floor_of
from pipeline.cluster.pool import Pool
from pipeline.cost.probe import CallTimes, ImageFileCost, Probe, ProbeKey
from pipeline.errors import ProbeError
from pipeline.job.job import Job
from pipeline.job.judge import JudgeSection
from pipeline.judge.judge import Candidate, Judge
from pipeline.manifest.rows import Problems
from pipeline.plan.group_shape import GroupShape
from pipeline.plan.plan import applicable, shape_of
from pipeline.plan.resolved_job import ResolvedJob
from pipeline.plan.work_list import work_schema, work_table
from pipeline.read.decode import decode
from pipeline.read.group import Group
from pipeline.run.worker_settings import decode_settings, judge_settings
from pipeline.write.image_format import ImageFormat
from pipeline.write.provenance import edit_packet, synthetic_source_packet

PROBE_S = 30.0
"""About how many seconds the timed calls may take; each is made at least once."""
_MOST_ROUNDS = 5
_IMAGES = 24
"""How many sources are read. The first are edited. The file sizes of all of them are used to
predict the sizes of other edits."""
_STEPS = (10, 5, 3, 2)
"""Numbers of steps to try for the longer calls, if there is no time for as many as the job has."""
_FORMATS: tuple[Literal["png", "jpeg", "webp"], ...] = ("png", "jpeg", "webp")
_T = TypeVar("_T")


def measure_device(
    resolved: ResolvedJob,
    done: Container[bytes],
    shape: GroupShape,
    pool: Pool,
    *,
    seconds: float = PROBE_S,
) -> Probe:
    """Loads the model and measures groups of `shape` whose edits are not in `done`.

    `pool`: the sizes that the run would have. Raises CheckpointError if the model cannot be loaded
    on the job's device, ProbeError if no source can be read.
    """
    job = resolved.job
    per_call = min(pool.groups_per_block, shape.sources_per_call)
    sample = sample_groups(resolved, done, shape, max(per_call, _IMAGES))
    with _threads(pool.threads_per_actor):
        began = time.perf_counter()
        checkpoint = _load(job)
        judge = None
        if job.judge is not None:
            judge = Judge(
                judge_settings(job.judge, store=job.model_store),
                checkpoint.device,
                pool.memory_share,
            )
        load_s = time.perf_counter() - began
        editor = Editor(checkpoint, max_rows=job.resources.max_rows, memory_share=pool.memory_share)
        in_one_call = [
            replace(group, edits=group.edits[: shape.edits_per_call])
            for group in sample.groups[:per_call]
        ]
        bench = _TimedModel(editor, judge, in_one_call)
        calls = bench.time_calls(seconds)
        formats: dict[str, ImageFileCost] = {
            name: bench.encode(ImageFormat(name, job.images.quality), sample.groups[per_call:])
            for name in _FORMATS
        }
    return Probe(
        key=probe_key(resolved, str(checkpoint.dtype).removeprefix("torch."), shape),
        device=device_name(checkpoint.device),
        device_type=checkpoint.device.type,
        threads=pool.threads_per_actor,
        calls=calls,
        judge_s=bench.judge_s,
        fetch_s=sample.fetch_s,
        load_s=load_s + bench.warm_up_s,
        formats=formats,
        unet_rows=bench.unet_rows,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def probe_key(resolved: ResolvedJob, dtype: str, shape: GroupShape) -> ProbeKey:
    """The key under which the job's times are stored; `dtype` as torch writes it."""
    return ProbeKey(
        fingerprint=resolved.context.fingerprint,
        width_px=shape.width_px,
        height_px=shape.height_px,
        dtype=dtype,
        layers=_method_text(resolved.parameters),
        judge="" if resolved.job.judge is None else _judge_text(resolved.job.judge),
    )


def _method_text(parameters: EditParameters) -> str:
    """What the time of a row depends on: the layers that replace maps, or another method."""
    if parameters.editor is None:
        return str(parameters.layers)
    return json.dumps(parameters.editor.to_dict(), sort_keys=True)


def _judge_text(judge: JudgeSection) -> str:
    names = (
        ("clip", judge.clip, judge.clip_revision),
        ("structure", judge.structure, judge.structure_revision),
        (f"lpips {judge.lpips_net}", judge.lpips, judge.lpips_revision),
    )
    models = [
        f"{what} {name}{'' if revision is None else f'@{revision}'}"
        for what, name, revision in names
        if name is not None
    ]
    scores = "all scores" if judge.scores is None else ", ".join(sorted(judge.scores))
    return f"({', '.join([*models, scores])})"


def _load(job: Job) -> Checkpoint:
    model = job.model
    add_ons = job.model_store.add_ons(model.add_ons, allow_pickle=model.allow_pickle)
    return load_checkpoint(
        job.model_store.checkpoint(model.checkpoint, allow_pickle=model.allow_pickle),
        device=model.device,
        dtype=model.dtype,
        allow_pickle=model.allow_pickle,
        revision=model.revision,
        config=job.model_store.config(model.config),
        loras=add_ons.loras,
        embeddings=add_ons.embeddings,
        vae=add_ons.vae,
        clip_skip=model.clip_skip,
        long_prompts=model.long_prompts,
    )


@dataclass
class _Times:
    """Seconds of calls with the same groups, by name and round, and the UNet rows of each call."""

    groups: Sequence[Group]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def mean_s(self, call: str) -> float:
        return fmean(self.seconds[call])

    def per_row(self, more: str, fewer: str) -> float:
        """Seconds of each row by which the longer call exceeds the shorter one."""
        rows = self.rows[more] - self.rows[fewer]
        seconds = self.mean_s(more) - self.mean_s(fewer)
        if rows > 0 and seconds > 0:
            return seconds / rows
        # Only noise, or no more rows: then all rows of the call take the same.
        return self.mean_s(more) / self.rows[more] if self.rows[more] else 0.0

    def beside_rows(self, call: str, row_s: float) -> float:
        return max(0.0, self.mean_s(call) - self.rows[call] * row_s)

    def summed_up(self) -> CallTimes:
        sources, edits = len(self.groups), sum(len(group.edits) for group in self.groups)
        inversion_row_s = self.per_row("invert", "invert, one step")
        row_s = self.per_row("edit", "edit, one step")
        source_row_s, edit_row_s = self._kinds(row_s)
        return CallTimes(
            sources=sources,
            edits=edits,
            inversion_row_s=inversion_row_s,
            source_row_s=source_row_s,
            edit_row_s=edit_row_s,
            source_s=self.beside_rows("invert", inversion_row_s) / sources,
            edit_s=self.beside_rows("edit", row_s) / edits,
        )

    def _kinds(self, row_s: float) -> tuple[float, float]:
        """Seconds of a row of a source and of a row of an edit, if the mean of all is `row_s`.

        They are separated with a call that replaces no maps, so that it has no rows of sources.
        Rows of synthetic sources, and of other methods, take as long as those of their edits.
        """
        all_rows = self.rows["edit"]
        edit_rows = self.rows.get("edit, none replaced", all_rows)
        source_rows = all_rows - edit_rows
        if source_rows <= 0:
            return row_s, row_s
        more_s = self.mean_s("edit") - self.mean_s("edit, none replaced")
        # A source row stops at the last replaced layer; in each it saves its edits two projections.
        source_row_s = min(max(0.0, more_s / source_rows), row_s)
        return source_row_s, (row_s * all_rows - source_row_s * source_rows) / edit_rows


class _TimedModel:
    """Calls a model and a judge on some groups, and measures their times."""

    def __init__(self, editor: Editor, judge: Judge | None, groups: Sequence[Group]) -> None:
        self._editor = editor
        self._judge = judge
        self._groups = groups
        self._judged: list[float] = []
        self._latest: EditResult | None = None
        self.unet_rows = 0
        """UNet rows evaluated so far."""
        self.warm_up_s = 0.0

    @property
    def judge_s(self) -> float:
        """Mean seconds of the judge per edit."""
        return fmean(self._judged) if self._judged else 0.0

    def time_calls(self, seconds: float) -> tuple[CallTimes, ...]:
        """Times calls with one group, and with all groups if there are more and time allows it."""
        first_s, second_s = self._one_step_s(), self._one_step_s()
        # The first calls include one-time work of torch, which every worker does once.
        self.warm_up_s = max(0.0, first_s - second_s)
        row_s = second_s / max(1.0, self.unet_rows / 2)
        sizes, steps = self._within(seconds, row_s)
        times = [_Times(groups) for groups in sizes]
        self._judged = []
        began = time.perf_counter()
        for done in range(1, _MOST_ROUNDS + 1):
            for each in times:
                self._round(each, steps)
            if (time.perf_counter() - began) * (done + 1) / done > seconds:
                break
        return tuple(each.summed_up() for each in times)

    def _one_step_s(self) -> float:
        began = time.perf_counter()
        self._round(_Times(self._groups[:1]), 1)
        return time.perf_counter() - began

    def _within(self, seconds: float, row_s: float) -> tuple[list[Sequence[Group]], int]:
        """The call sizes and the number of steps with which one round fits into that time."""
        one, groups = self._groups[:1], self._groups
        both = [one] if len(groups) == 1 else [one, groups]
        for steps in sorted({groups[0].parameters.steps, *_STEPS}, reverse=True):
            if 1 < steps <= max(groups[0].parameters.steps, _STEPS[-1]):
                for sizes in (both, [groups]):
                    if row_s * sum(_rows_of_a_round(size, steps) for size in sizes) <= seconds:
                        return sizes, steps
        return [one], _STEPS[-1]

    def _round(self, into: _Times, steps: int) -> None:
        """Makes every call once."""
        own = into.groups[0].parameters
        fewest = _fewest_steps(own)
        longer, shorter = replace(own, steps=max(steps, fewest)), replace(own, steps=fewest)
        first = self._start(into, "invert, one step", shorter)
        start = self._start(into, "invert", longer)
        self._edit(into, "edit, one step", first, shorter)
        if own.editor is None:
            none_replaced = replace(longer, replaced_fraction=0.0)
            self._edit(into, "edit, none replaced", start, none_replaced)
        self._latest = self._edit(into, "edit", start, longer)
        if self._judge is not None:
            candidates = _candidates(into.groups, self._latest)
            began = time.perf_counter()
            self._judge.judge(candidates)
            self._judged.append((time.perf_counter() - began) / len(candidates))

    def _start(
        self, into: _Times, name: str, parameters: EditParameters
    ) -> Inversion | SyntheticSources:
        prompts = [group.source_prompt for group in into.groups]
        images = [group.image for group in into.groups if group.image is not None]
        fits = [group.fit for group in into.groups if group.fit is not None]
        seeds = [group.seed or 0 for group in into.groups]

        def start() -> Inversion | SyntheticSources:
            if images:
                return self._editor.invert(images, prompts, parameters, fits=fits)
            return self._editor.synthesise(prompts, seeds, parameters)

        return self._timed(into, name, start)

    def _edit(
        self,
        into: _Times,
        name: str,
        start: Inversion | SyntheticSources,
        parameters: EditParameters,
    ) -> EditResult:
        prompts = [[edit.key.target_prompt for edit in group.edits] for group in into.groups]
        inputs = [[group.inputs_of(edit) for edit in group.edits] for group in into.groups]
        return self._timed(
            into, name, lambda: self._editor.edit(start, prompts, parameters, inputs)
        )

    def _timed(self, into: _Times, name: str, call: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        made = call()
        into.seconds.setdefault(name, []).append(time.perf_counter() - began)
        into.rows[name] = getattr(made, "unet_rows", 0)
        self.unet_rows += into.rows[name]
        return made

    def encode(self, image_format: ImageFormat, others: Sequence[Group]) -> ImageFileCost:
        """Encodes the images of the latest call as a run would. They may have fewer steps than the
        job's, but have as much detail. The sources of `others` are encoded too: the job's edits are
        assumed to be larger than these edits by as many bytes as its sources are larger."""
        assert self._latest is not None
        fingerprint = self._editor.checkpoint.fingerprint
        edited, sources = [], []
        began = time.perf_counter()
        images = zip(self._latest.source_images, self._latest.edits, strict=True)
        for group, (source, edits) in zip(self._groups, images, strict=False):
            is_made = group.image is None
            packet = synthetic_source_packet(group, fingerprint) if is_made else None
            sources.append(len(image_format.encode(source, packet)))
            for planned, edit in zip(group.edits, edits, strict=True):
                packet = edit_packet(group, planned.key, group.parameters, fingerprint)
                edited.append(len(image_format.encode(edit.image, packet)))
        seconds = time.perf_counter() - began
        each_s = seconds / (len(edited) + len(sources))
        more = [len(image_format.encode(each.image)) for each in others if each.image is not None]
        source_bytes = fmean([*sources, *more])
        larger = source_bytes - fmean(sources)
        return ImageFileCost(each_s, max(fmean(edited) + larger, min(edited)), source_bytes)


def _fewest_steps(parameters: EditParameters) -> int:
    """The smallest number of steps of which the method samples one."""
    rule = parameters.rule
    shares = [rule.start.strength]
    if rule.blend is not None and isinstance(rule.blend.mask, DifferenceMask):
        shares.append(rule.blend.mask.strength)
    enough = (n for n in range(1, parameters.steps) if all(floor_of(s, n) for s in shares))
    return next(enough, parameters.steps)


def _rows_of_a_round(groups: Sequence[Group], steps: int) -> int:
    """About how many UNet rows a round has: both inversions, the edits with one step, and twice the
    edits with all steps, guided."""
    edits = sum(len(group.edits) for group in groups)
    return (1 + 2 * steps) * (len(groups) + 2 * edits)


def _candidates(groups: Sequence[Group], made: EditResult) -> list[Candidate]:
    return [
        Candidate(planned.key, group.source_prompt, source, edit.image)
        for group, source, edits in zip(groups, made.source_images, made.edits, strict=True)
        for planned, edit in zip(group.edits, edits, strict=True)
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Lets torch use as many threads as a worker of the run has."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


_MOST_UNREADABLE = 64


@dataclass(frozen=True)
class Sample:
    """Decoded groups of one shape with equal parameters. `fetch_s`: mean seconds to read one."""

    groups: tuple[Group, ...]
    fetch_s: float


def sample_groups(
    resolved: ResolvedJob, done: Container[bytes], shape: GroupShape, count: int
) -> Sample:
    """The first `count` groups of a shape that can be edited, without edits in `done`; fewer if
    there are not as many.

    Raises ProbeError if there is none.
    """
    settings = decode_settings(resolved.job)
    found: list[Group] = []
    tried, seconds, failure = 0, 0.0, "the manifest has changed since it was planned"
    for table in _tables_of(resolved, done, shape, count):
        began = time.perf_counter()
        rows = decode(table, settings).to_pylist()
        seconds += time.perf_counter() - began
        tried += len(rows)
        groups = [Group.from_row(place, row) for place, row in enumerate(rows)]
        useless = [group.message if group.failure else _unmade(group) for group in groups]
        failure = next(filter(None, useless), failure)
        found += [group for group, reason in zip(groups, useless, strict=True) if not reason]
        if len(found) >= count or tried >= count + _MOST_UNREADABLE:
            break
    if not found:
        raise ProbeError(
            f"no source to measure with: of the first {tried} none can be used ({failure})"
        )
    return Sample(tuple(found[:count]), seconds / tried)


def _unmade(group: Group) -> str:
    """Why one of its edits cannot be made, such as a mask that is black all over; "" if all can."""
    return next(filter(None, map(group.not_applicable, group.edits)), "")


def _tables_of(
    resolved: ResolvedJob, done: Container[bytes], shape: GroupShape, count: int
) -> Iterator[pa.Table]:
    """Work rows of a shape with equal parameters, `count` at a time."""
    schema = work_schema(pa.schema([]), inputs=resolved.inputs)
    parameters: EditParameters | None = None
    waiting: list[pa.Table] = []
    for groups, carried in resolved.groups(Problems()):
        for group in groups:
            left = tuple(edit for edit in group.edits if edit[0] not in done)
            made, _ = applicable(replace(group, edits=left))
            if not made.edits or shape_of(made) != shape:
                continue
            parameters = parameters or group.source.parameters
            if group.source.parameters == parameters:
                waiting.append(work_table([made], carried, (), schema))
            if len(waiting) == count:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
