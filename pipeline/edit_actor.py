"""Third station: one model per actor. Inverts a source once, edits it with all its prompts, has
the edits judged, writes.

`EditActor` is a plain class, so it runs as well without Ray. It takes one block of decoded work
rows and returns its outcomes. Groups with equal parameters go through the model together. If that
raises, they are halved until the row that caused it stands alone, and that row alone fails: a bad
row never costs another. What no row is to blame for (a device gone for good, parameters that do
not fit the model) is raised instead.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa
import torch

from fpe_core import (
    CheckpointError,
    Edit,
    Editor,
    EditResult,
    FPEError,
    Inversion,
    ParameterError,
    SyntheticSources,
    load_checkpoint,
)
from fpe_core.rows import DEVICE_FAILED, is_out_of_memory
from pipeline.annotate import (
    Annotated,
    AnnotationSettings,
    annotate,
    annotation_columns,
    look_at_source,
    with_boxes,
)
from pipeline.errors import LeaseError, RowError
from pipeline.group import Group, PlannedEdit
from pipeline.judge import Candidate, Judge, Judged, JudgeSettings, with_edit_types
from pipeline.lease import Lease
from pipeline.outcome import EditOutcome, FailureCode, outcomes_table
from pipeline.provenance import edit_packet, synthetic_source_packet
from pipeline.storage import Folder
from pipeline.supervisor import Orders, Oversight, StationFigures, Unwatched
from pipeline.write import (
    ImageFormat,
    MetadataLayout,
    PartWriter,
    carried_columns,
    fit_columns,
    judged_columns,
    parameter_columns,
    part_name,
)

_T = TypeVar("_T")
_EDITS_PER_CALL = 64  # with guidance 128 rows, as many as fpe_core puts through a UNet at once

_NO_ROWS_FAULT: tuple[type[Exception], ...] = (*DEVICE_FAILED, ParameterError)
"""The device is gone for good, or what the job asks for does not fit the model."""

WORKER_FIELD = pa.field("worker", pa.string(), nullable=False)
"""Which process made the edit: host:pid. The driver counts with it; the ledger does not keep it."""


@dataclass(frozen=True)
class EditSettings:
    """Everything an actor needs to know. Small and picklable."""

    output: str
    checkpoint: str
    checkpoint_fingerprint: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    allow_pickle: bool = False
    revision: str | None = None
    config: str | None = None
    max_rows: int | None = None
    memory_share: float = 1.0
    threads: int | None = None
    image_format: ImageFormat = field(default_factory=ImageFormat)
    layout: MetadataLayout = field(default_factory=MetadataLayout)
    write_threads: int = 8
    lease: Lease | None = None
    judge: JudgeSettings | None = None
    annotations: AnnotationSettings | None = None


@dataclass(frozen=True)
class _Made:
    """An edit that the model made, on its way to the storage; a rejected one may have no file."""

    group: Group
    edit: PlannedEdit
    notes: str
    unet_rows: float
    seconds: float
    edited_file: Future[str] | None
    source_file: Future[str] | None
    judged: Judged | None = None
    annotated: Annotated | None = None
    mask_files: tuple[Future[str], ...] = ()


@dataclass(frozen=True)
class _Sources:
    """Groups ready to be edited, and what each has cost so far."""

    groups: tuple[Group, ...]
    start: Inversion | SyntheticSources
    unet_rows_each: float
    seconds_each: float

    def select(self, indices: Sequence[int]) -> _Sources:
        start = self.start
        return replace(
            self,
            groups=tuple(self.groups[i] for i in indices),
            start=start.select(indices)
            if isinstance(start, Inversion)
            else replace(
                start,
                noise=start.noise[list(indices)],
                source_prompts=tuple(start.source_prompts[i] for i in indices),
                seeds=tuple(start.seeds[i] for i in indices),
            ),
        )


_Result = _Made | EditOutcome


class EditActor:
    """Loads the checkpoint once and edits block after block."""

    def __init__(self, settings: EditSettings) -> None:
        """Raises CheckpointError and StorageError: without these nothing can be done."""
        if settings.threads is not None:
            torch.set_num_threads(min(settings.threads, _usable_cores()))
        self._settings = settings
        self._folder = Folder.open(settings.output, settings.storage_options)
        checkpoint = load_checkpoint(
            settings.checkpoint,
            device=settings.device,
            dtype=settings.dtype,
            allow_pickle=settings.allow_pickle,
            revision=settings.revision,
            config=settings.config,
        )
        if checkpoint.fingerprint != settings.checkpoint_fingerprint:
            raise CheckpointError(
                f"{settings.checkpoint} is another checkpoint here ({checkpoint.fingerprint}) than "
                f"where the job was planned ({settings.checkpoint_fingerprint}); give all machines "
                "the same files, or name a revision"
            )
        self._editor = Editor(
            checkpoint, max_rows=settings.max_rows, memory_share=settings.memory_share
        )
        device = checkpoint.device
        self._judge = None if settings.judge is None else Judge(settings.judge, device)
        self._pool = ThreadPoolExecutor(settings.write_threads, thread_name_prefix="write")
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._model_seconds = 0.0
        self._figures: StationFigures = {}

    def __call__(self, table: pa.Table, oversight: Oversight | None = None) -> pa.Table:
        """Decoded work rows to OUTCOME_SCHEMA and the worker, one row per edit.

        What it returns as accepted is on the storage and in the part's metadata. In a run that is
        being stopped nothing is made and nothing returned.
        """
        oversight = oversight or Unwatched()
        if oversight.orders.is_stopping:
            table = table.slice(0, 0)
        carried = carried_columns(table)
        rows = table.drop_columns(["carried"] if carried is not None else []).to_pylist()
        groups = [Group.from_row(place, row) for place, row in enumerate(rows)]
        if self._judge is not None:
            groups = with_edit_types(groups, self._judge.settings.edit_type, carried)
        if self._settings.annotations is not None:
            groups = with_boxes(groups, self._settings.annotations, carried)
        self._model_seconds, self._figures = 0.0, {}
        with _sign_of_life_per_call(self._editor.checkpoint.unet, oversight):
            outcomes = self._edit_part(groups, carried, oversight)
        worker = pa.array([self._worker] * outcomes.num_rows, WORKER_FIELD.type)
        return outcomes.append_column(WORKER_FIELD, worker)

    def figures(self) -> StationFigures:
        """What the latest block cost: rows (edits) and seconds of the model, images written, ..."""
        return self._figures

    def _edit_part(
        self, groups: Sequence[Group], carried: pa.Table | None, oversight: Oversight
    ) -> pa.Table:
        planned = [edit.key.edit_id for group in groups for edit in group.edits]
        if not planned:
            return outcomes_table([])
        settings = self._settings
        writer = PartWriter(
            self._folder, part_name(planned), settings.image_format, self._pool, settings.lease
        )
        finished = writer.finished_outcomes()
        if finished is not None:
            return finished
        orders = oversight.orders
        groups = [_unless_quarantined(group, orders) for group in groups]
        results: list[_Result] = []
        for group in groups:
            if group.failure:
                results.extend(e.key.failed(group.failure, group.message) for e in group.edits)
        sound = [group for group in groups if not group.failure]
        for bucket in [[group] for group in sound] if orders.is_careful else _buckets(sound):
            with oversight.focus([group.group_id for group in bucket]):
                made = list(self._edit_groups(bucket, writer))
                if orders.is_careful:  # then whatever a group causes is to happen in its focus
                    wait(_files_of(made))
            results.extend(made)
        place = {edit_id: number for number, edit_id in enumerate(planned)}
        results.sort(key=lambda result: place[_edit_id(result)])
        outcomes = self._finish(writer, results, carried, oversight)
        edited = {"rows": len(planned), "seconds": self._model_seconds}
        self._figures = {"edit": edited, "write": writer.figures()}
        if self._judge is not None:
            self._figures["judge"] = self._judge.take_figures()
        return outcomes

    def _edit_groups(self, groups: Sequence[Group], writer: PartWriter) -> Iterator[_Result]:
        """All edits of groups with equal parameters."""
        try:
            sources = self._prepare(groups)
        except _NO_ROWS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, only the guilty group fails
            if len(groups) == 1:
                yield from (_failed(edit, error) for edit in groups[0].edits)
                return
            for half in _halves(groups):
                yield from self._edit_groups(half, writer)
            return
        diverged = sources.start.diverged if isinstance(sources.start, Inversion) else ()
        for index in (i for i, has_diverged in enumerate(diverged) if has_diverged):
            yield from _diverged(sources, index)
        sound = [i for i in range(len(groups)) if not (diverged and diverged[i])]
        for call in _calls(sources.groups, sound):
            part_of_it = sources.select(call)
            edits = [group.edits for group in part_of_it.groups]
            yield from self._edit_call(part_of_it, edits, writer)

    def _prepare(self, groups: Sequence[Group]) -> _Sources:
        """Real sources are inverted, all together; synthetic ones cost nothing yet."""
        started, parameters = time.monotonic(), groups[0].parameters
        prompts = [group.source_prompt for group in groups]
        if groups[0].image is None:
            seeds = [group.seed or 0 for group in groups]
            start = self._editor.synthesise(prompts, seeds, parameters)
            return _Sources(tuple(groups), start, unet_rows_each=0.0, seconds_each=0.0)
        images = [group.image for group in groups if group.image is not None]
        inversion = self._editor.invert(images, prompts, parameters)
        self._model_seconds += time.monotonic() - started
        return _Sources(
            tuple(groups),
            inversion,
            unet_rows_each=inversion.unet_rows / len(groups),
            seconds_each=(time.monotonic() - started) / len(groups),
        )

    def _edit_call(
        self, sources: _Sources, edits: Sequence[Sequence[PlannedEdit]], writer: PartWriter
    ) -> Iterator[_Result]:
        """One call of the editor; `edits` are those of each source. Halves itself if it raises."""
        started = time.monotonic()
        try:
            prompts = [[edit.key.target_prompt for edit in of_source] for of_source in edits]
            result = self._editor.edit(sources.start, prompts)
        except _NO_ROWS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, only the guilty edit fails
            if len(edits) > 1:
                for half in _halves(range(len(edits))):
                    yield from self._edit_call(
                        sources.select(half), [edits[i] for i in half], writer
                    )
            elif len(edits[0]) > 1:
                for edits_half in _halves(edits[0]):
                    yield from self._edit_call(sources, [edits_half], writer)
            else:
                yield _failed(edits[0][0], error, sources.unet_rows_each)
            return
        seconds = time.monotonic() - started
        self._model_seconds += seconds
        yield from self._write(sources, edits, result, seconds, writer)

    def _write(
        self,
        sources: _Sources,
        edits: Sequence[Sequence[PlannedEdit]],
        result: EditResult,
        seconds: float,
        writer: PartWriter,
    ) -> Iterator[_Result]:
        """Hands the images of one call to the writer's threads; shares its cost out evenly."""
        count = sum(len(of_source) for of_source in edits)
        for index, (group, of_source) in enumerate(zip(sources.groups, edits, strict=True)):
            unet_rows = sources.unet_rows_each / len(group.edits) + result.unet_rows / count
            seconds_each = sources.seconds_each / len(group.edits) + seconds / count
            finite = any(made.is_finite for made in result.edits[index])
            source_file, fingerprint = None, self._settings.checkpoint_fingerprint
            if self._settings.layout.keep_source and finite:
                image = result.source_images[index]
                xmp = synthetic_source_packet(group, fingerprint) if group.image is None else None
                source_file = writer.put_source(group.stem, group.source_id, image, xmp)
            verdicts = self._verdicts(group, of_source, result, index)
            annotations = self._annotations(group, result, index)
            is_wanted = finite and any(map(_may_be_accepted, verdicts))
            mask_files = _put_masks(group, writer) if is_wanted else ()
            answers = zip(of_source, result.edits[index], verdicts, annotations, strict=True)
            for edit, made, judged, annotated in answers:
                if not made.is_finite:
                    yield edit.key.failed(
                        FailureCode.NAN_LATENT,
                        "latent or picture is not finite; try float32 or a lower guidance_scale",
                        unet_rows=unet_rows,
                        seconds=seconds_each,
                    )
                    continue
                if isinstance(judged, Exception):
                    yield _failed(edit, judged, unet_rows, of="the judge")
                    continue
                if isinstance(annotated, Exception):
                    yield _failed(edit, annotated, unet_rows, of="looking at boxes and masks")
                    continue
                xmp = edit_packet(group, edit.key, fingerprint)
                edited_file: Future[str] | None = None
                if judged is None or judged.verdict.is_accepted:
                    edited_file = writer.put_edited(group.stem, edit.key.edit_id, made.image, xmp)
                elif self._judge is not None and self._judge.settings.keep_rejected:
                    edited_file = writer.put_rejected(group.stem, edit.key.edit_id, made.image, xmp)
                cut = _truncation_notes(sources.start, index, made)
                notes = "; ".join(note for note in (group.message, cut) if note)
                yield _Made(
                    group,
                    edit,
                    notes,
                    unet_rows,
                    seconds_each,
                    edited_file,
                    source_file,
                    judged,
                    annotated,
                    mask_files,
                )

    def _verdicts(
        self, group: Group, edits: Sequence[PlannedEdit], result: EditResult, index: int
    ) -> list[Judged | Exception | None]:
        """Of each edit: what the judge says, or why it cannot; None where it is not asked."""
        if self._judge is None:
            return [None] * len(edits)
        source, made = result.source_images[index], result.edits[index]
        candidates = [
            Candidate(edit.key, group.source_prompt, source, each.image)
            for edit, each in zip(edits, made, strict=True)
            if each.is_finite
        ]
        answers = iter(self._judge.judge(candidates) if candidates else ())
        return [next(answers) if each.is_finite else None for each in made]

    def _annotations(
        self, group: Group, result: EditResult, index: int
    ) -> list[Annotated | Exception | None]:
        """Of each edit: the verdicts on its boxes and masks, or why there are none."""
        made, settings = result.edits[index], self._settings.annotations
        if settings is None:
            return [None] * len(made)
        try:
            regions = look_at_source(group, result.source_images[index])
            return [
                annotate(regions, each.image, settings) if each.is_finite else None for each in made
            ]
        except Exception as error:  # noqa: BLE001 - it costs this source only
            return [error] * len(made)

    def _finish(
        self,
        writer: PartWriter,
        results: Sequence[_Result],
        carried: pa.Table | None,
        oversight: Oversight,
    ) -> pa.Table:
        """Waits for the images, writes the part's metadata, returns the outcomes."""
        rows: list[dict[str, Any]] = []
        places: list[int] = []
        outcomes: list[EditOutcome] = []
        for made in results:
            if isinstance(made, EditOutcome):
                outcomes.append(made)
                continue
            try:
                edited_name = made.edited_file.result() if made.edited_file else ""
                source_name = made.source_file.result() if made.source_file else None
                mask_names = [file.result() for file in made.mask_files]
            except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
                outcomes.append(_write_failed(made, error))
                continue
            finally:
                oversight.alive()
            outcome = _outcome_of(made, writer.part, edited_name, source_name)
            outcomes.append(outcome)
            if outcome.part:
                rows.append(
                    self._metadata_row(made, edited_name, source_name)
                    | self._annotation_columns(made, mask_names)
                )
                places.append(made.group.place)
        table = outcomes_table(outcomes)
        if not rows:
            return table
        try:
            inherited = None if carried is None else carried.take(places)
            return writer.finish(self._settings.layout.table(rows, inherited), table)
        except LeaseError:
            raise  # no row is to blame, and nothing of ours may be written here any more
        except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
            unwritten = {m.edit.key.edit_id: m for m in results if isinstance(m, _Made)}
            return outcomes_table(
                _write_failed(unwritten[o.edit_id], error) if o.part else o for o in outcomes
            )

    def _metadata_row(
        self, made: _Made, edited_name: str, source_name: str | None
    ) -> dict[str, Any]:
        group, key, layout = made.group, made.edit.key, self._settings.layout
        return {
            "edited_file_name": edited_name,
            "source_file_name": source_name,
            "edit_id": key.edit_id.hex(),
            "source_id": key.source_id.hex(),
            "group_id": key.group_id.hex(),
            "id": group.id or None,
            "split": group.split or None,
            "source_prompt": group.source_prompt,
            "target_prompt": key.target_prompt,
            **dict(zip(layout.labels, made.edit.labels, strict=True)),
            "seed": group.seed,
            **parameter_columns(group.parameters),
            "checkpoint": self._settings.checkpoint,
            "checkpoint_fingerprint": self._settings.checkpoint_fingerprint,
            **fit_columns(group.fit),
            **judged_columns(key.edit_type, made.judged.scores if made.judged else None),
        }

    def _annotation_columns(self, made: _Made, mask_names: Sequence[str]) -> dict[str, Any]:
        settings = self._settings.annotations
        if settings is None or made.annotated is None:
            return {}
        return annotation_columns(settings, made.group, made.annotated, mask_names)


@contextmanager
def _sign_of_life_per_call(unet: torch.nn.Module, oversight: Oversight) -> Iterator[None]:
    hook = unet.register_forward_hook(lambda *_: oversight.alive())
    try:
        yield
    finally:
        hook.remove()


def _unless_quarantined(group: Group, orders: Orders) -> Group:
    """A group that killed its workers fails like one whose image cannot be read."""
    if group.failure or group.group_id not in orders.quarantined:
        return group
    reason = orders.quarantined[group.group_id]
    return replace(group, failure=FailureCode.WORKER_DIED, message=reason)


def _buckets(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that may go through the model together: equal parameters, all real or synthetic."""
    buckets: dict[tuple[str, bool], list[Group]] = {}
    for group in groups:
        key = (json.dumps(group.parameters.to_dict(), sort_keys=True), group.image is None)
        buckets.setdefault(key, []).append(group)
    return list(buckets.values())


def _calls(groups: Sequence[Group], indices: Sequence[int]) -> Iterator[list[int]]:
    """Groups of one call of the editor, as indices.

    A call should fill the device, and its images should be on their way while the next computes.
    """
    call: list[int] = []
    edits = 0
    for index in indices:
        call.append(index)
        edits += len(groups[index].edits)
        if edits >= _EDITS_PER_CALL:
            yield call
            call, edits = [], 0
    if call:
        yield call


def _files_of(results: Sequence[_Result]) -> Iterator[Future[str]]:
    """The writes that are on their way."""
    for made in results:
        if isinstance(made, _Made):
            if made.edited_file is not None:
                yield made.edited_file
            if made.source_file is not None:
                yield made.source_file
            yield from made.mask_files


def _may_be_accepted(judged: Judged | Exception | None) -> bool:
    return judged is None or (isinstance(judged, Judged) and judged.verdict.is_accepted)


def _put_masks(group: Group, writer: PartWriter) -> tuple[Future[str], ...]:
    return tuple(writer.put_mask(group.stem, mask.png) for mask in group.regions.masks)


def _edit_id(result: _Result) -> bytes:
    return result.edit.key.edit_id if isinstance(result, _Made) else result.edit_id


def _halves(items: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]


def _outcome_of(made: _Made, part: str, edited_name: str, source_name: str | None) -> EditOutcome:
    """Accepted or rejected, as the judge says; accepted without one."""
    key, judged = made.edit.key, made.judged
    scores = judged.scores if judged else None
    source = f"{part}/{source_name}" if source_name else ""
    cost = {"unet_rows": made.unet_rows, "seconds": made.seconds}
    if judged is None or judged.verdict.reason is None:
        return key.accepted(
            part=part,
            edited_file_name=f"{part}/{edited_name}",
            source_file_name=source,
            scores=scores,
            message=made.notes,
            **cost,
        )
    return key.rejected(
        judged.verdict.reason,
        "; ".join(note for note in (judged.verdict.message, made.notes) if note),
        edited_file_name=edited_name,
        source_file_name=source,
        scores=scores,
        **cost,
    )


def _failed(
    edit: PlannedEdit, error: Exception, unet_rows: float = 0.0, of: str = "the model"
) -> EditOutcome:
    code = error.code if isinstance(error, FPEError | RowError) else ""
    if is_out_of_memory(error):
        code = FailureCode.OUT_OF_MEMORY
    message = str(error) if code else f"{of} raised {type(error).__name__}: {error}"
    return edit.key.failed(code or FailureCode.WORKER_DIED, message, unet_rows=unet_rows)


def _diverged(sources: _Sources, index: int) -> Iterator[EditOutcome]:
    group = sources.groups[index]
    for edit in group.edits:
        yield edit.key.failed(
            FailureCode.INVERSION_DIVERGED,
            "the inversion of the source is not finite; try float32 or more steps",
            unet_rows=sources.unet_rows_each / len(group.edits),
            seconds=sources.seconds_each / len(group.edits),
        )


def _write_failed(made: _Made, error: Exception) -> EditOutcome:
    return made.edit.key.failed(
        FailureCode.WRITE_FAILED, str(error), unet_rows=made.unet_rows, seconds=made.seconds
    )


def _truncation_notes(start: Inversion | SyntheticSources, index: int, made: Edit) -> str:
    """What the text encoder did not see, "" if it saw everything."""
    source = start.truncated_prompts[index] if isinstance(start, Inversion) else ""
    pairs = (("target", made.truncated_prompt), ("source", source))
    return "; ".join(f"{which} prompt cut before: {cut}" for which, cut in pairs if cut)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
