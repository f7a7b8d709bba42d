"""Editing blocks: one model per actor. Inverts a source once, edits it with all its prompts, has
the edits judged, writes.

`EditActor` is a plain class, so it runs as well without Ray. It takes one block of decoded work
rows and returns its outcomes: groups with equal parameters go through the model together
(`block_editor`), their images and at last the part's metadata to the storage.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from fpe_core import CheckpointError, Editor, load_checkpoint
from fpe_core.device import usable_cores
from fpe_core.judging.reconstruction import ReconstructionLimits
from pipeline.edit.attempt import Result, UnmadeEdit, write_failed
from pipeline.edit.block import BlockEditor
from pipeline.edit.metadata_rows import FileNames, MetadataRows
from pipeline.edit.model_sharing import ModelThread, ThisThread
from pipeline.edit.no_editor import NoEditor
from pipeline.edit.phase_clock import ClockedEditor, ModelTime
from pipeline.edit.results import ResultWriter
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import LeaseError
from pipeline.judge.gate import ReconstructionGate
from pipeline.judge.judge import Judge, with_edit_types
from pipeline.judge.regions import with_boxes
from pipeline.ledger.outcome import EditOutcome, FailureCode, outcomes_table
from pipeline.read.group import Group
from pipeline.storage.folder import Folder
from pipeline.supervision.supervisor import Orders, Oversight, StageFigures, Unwatched
from pipeline.write.metadata import carried_columns
from pipeline.write.part import PartWriter, part_name


@dataclass(frozen=True)
class Block:
    """The decoded rows of a block, ready for the model; `carried` are their other columns."""

    groups: tuple[Group, ...]
    carried: pa.Table | None

    @property
    def edit_ids(self) -> list[bytes]:
        return [edit.key.edit_id for group in self.groups for edit in group.edits]


@dataclass(frozen=True)
class EditedBlock:
    """OUTCOME_SCHEMA and the worker, one row per edit, and what they cost."""

    outcomes: pa.Table
    figures: StageFigures


class EditActor:
    """Loads the checkpoint once and edits block after block.

    One thread at a time may have the model (`turns`); what comes before and after it, several.
    """

    def __init__(self, settings: EditSettings, thread: ModelThread | None = None) -> None:
        """`thread`: for the models; None for a program that calls this from one thread only.

        Raises CheckpointError and StorageError: without these nothing can be done.
        """
        self._settings = settings
        self._folder = Folder.open(settings.output, settings.storage_options)
        self._models = ThisThread() if thread is None else thread
        self._editor, self._judge = self._models.run(self._load)
        limits = ReconstructionLimits() if settings.judge is None else settings.judge.reconstruction
        self._gate = ReconstructionGate(self._editor, limits)
        self._pool = ThreadPoolExecutor(settings.write_threads, thread_name_prefix="write")
        self._judging = self._thread_of_judge()
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def _load(self) -> tuple[ClockedEditor | NoEditor, Judge | None]:
        settings = self._settings
        if settings.threads is not None:
            torch.set_num_threads(min(settings.threads, usable_cores()))
        if not settings.makes_edits:
            return NoEditor(), None  # a job without an editor has no judge
        editor = _load_editor(settings, self._models)
        if settings.judge is None:
            return editor, None
        return editor, Judge(settings.judge, editor.device, settings.memory_share)

    def _thread_of_judge(self) -> Executor:
        """One of its own; but on a CPU no second one that has a team (`model_thread`)."""
        editor, judge = self._editor, self._judge
        if self._settings.threads != 1 and judge is not None and isinstance(editor, ClockedEditor):
            devices = editor.device, judge.models.device
            if all(device.type == "cpu" for device in devices):
                return self._models
        return ThreadPoolExecutor(1, thread_name_prefix="judge")

    def __call__(self, table: pa.Table, oversight: Oversight | None = None) -> pa.Table:
        """The outcomes of decoded work rows, see `edit`."""
        return self.edit(self.prepare(table), oversight or Unwatched()).outcomes

    def prepare(self, table: pa.Table) -> Block:
        """What can be done before the model is free: decoded work rows as groups with pictures."""
        carried = carried_columns(table)
        rows = table.drop_columns(["carried"] if carried is not None else []).to_pylist()
        groups = [Group.from_row(place, row) for place, row in enumerate(rows)]
        if self._judge is not None:
            groups = with_edit_types(groups, self._judge.settings.edit_type, carried)
        if self._settings.annotations is not None:
            groups = with_boxes(groups, self._settings.annotations, carried)
        return Block(tuple(groups), carried)

    def edit(
        self,
        block: Block,
        oversight: Oversight,
        done_with_model: Callable[[], None] = lambda: None,
    ) -> EditedBlock:
        """The outcomes of a block and the worker, and what they cost.

        What is returned as accepted is on the storage and in the part's metadata. In a run that is
        being stopped nothing is made and nothing returned. `done_with_model` is called, from then
        on another thread may call this; not for a block that is made with care.
        """
        edited = EditedBlock(outcomes_table([]), {})
        if block.edit_ids and not oversight.orders.is_stopping:
            edited = self._edit_part(block, oversight, done_with_model)
        worker = pa.array([self._worker] * len(edited.outcomes), WORKER_FIELD.type)
        return replace(edited, outcomes=edited.outcomes.append_column(WORKER_FIELD, worker))

    def _edit_part(
        self, block: Block, oversight: Oversight, done_with_model: Callable[[], None]
    ) -> EditedBlock:
        planned = block.edit_ids
        settings = self._settings
        keeps_rejected = settings.judge is not None and settings.judge.keep_rejected
        writer = PartWriter(
            self._folder,
            part_name(planned),
            settings.image_format,
            self._pool,
            settings.lease,
            keeps_rejected=keeps_rejected,
        )
        finished = writer.finished_outcomes()
        if finished is not None:
            writer.finish_rejected()
            return EditedBlock(finished, {})
        results_to = ResultWriter(
            writer,
            fingerprint=settings.checkpoint_fingerprint,
            keep_source=settings.layout.keep_source,
            keeps_rejected=keeps_rejected,
            annotations=settings.annotations,
            makes_edits=settings.makes_edits,
        )
        editor = self._block_editor(results_to)
        with ModelTime(self._editor, oversight) as spent:

            def hand_over() -> None:
                spent.close()
                done_with_model()

            results = _results(block.groups, editor, oversight, hand_over)
        place = {edit_id: number for number, edit_id in enumerate(planned)}
        results.sort(key=lambda result: place[result.edit.key.edit_id])
        outcomes = self._finish(writer, results, block.carried, oversight)
        phases = {f"{name}_seconds": s for name, s in spent.seconds.items()}
        edited = {"rows": len(planned), "seconds": editor.model_seconds, **phases}
        if spent.unet_rows:
            edited["unet_rows"] = spent.unet_rows
        figures = {"edit": edited, "write": writer.figures()}
        if self._judge is not None:
            figures["judge"] = self._judge.take_figures()
        return EditedBlock(outcomes, figures)

    def _block_editor(self, results: ResultWriter) -> BlockEditor:
        return BlockEditor(
            self._editor,
            results,
            self._gate,
            judge=self._judge,
            judging=self._judging,
            makes_edits=self._settings.makes_edits,
        )

    def _finish(
        self,
        writer: PartWriter,
        results: Sequence[Result],
        carried: pa.Table | None,
        oversight: Oversight,
    ) -> pa.Table:
        """Waits for the images, writes the part's metadata, returns the outcomes."""
        rows = MetadataRows(self._settings)
        outcomes: list[EditOutcome] = []
        for made in results:
            try:
                names = FileNames.of(made)
            except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
                outcomes.append(write_failed(made, error))
                continue
            finally:
                oversight.alive()
            part = writer.folder_of(is_rejected=made.is_rejected) if names.has_any else ""
            outcome = made.outcome(part, names.edited, names.source)
            outcomes.append(outcome)
            if outcome.part:
                rows.add(made, outcome, names)
        table = outcomes_table(outcomes)
        if rows.is_empty:
            return table
        try:
            accepted, rejected = (rows.table(carried, is_rejected=which) for which in (False, True))
            table = writer.finish(accepted, table, rejected)
        except LeaseError:
            raise  # no row is to blame, and nothing of ours may be written here any more
        except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
            unwritten = {made.edit.key.edit_id: made for made in results}
            return outcomes_table(
                write_failed(unwritten[o.edit_id], error) if o.part else o for o in outcomes
            )
        writer.finish_rejected()
        return table


def _load_editor(settings: EditSettings, thread: ModelThread | ThisThread) -> ClockedEditor:
    """Raises CheckpointError."""
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
    editor = Editor(
        checkpoint,
        max_rows=settings.max_rows,
        memory_share=settings.memory_share,
    )
    return ClockedEditor(editor, thread)


def _results(
    groups: Sequence[Group],
    editor: BlockEditor,
    oversight: Oversight,
    done_with_model: Callable[[], None],
) -> list[Result]:
    """Of every edit, in no order; files may still be on their way."""
    orders = oversight.orders
    groups = [_unless_quarantined(group, orders) for group in groups]
    results: list[Result] = []
    for group in groups:
        if group.failure:
            results.extend(
                UnmadeEdit.failed(group, edit, group.failure, group.message) for edit in group.edits
            )
    sound = [group for group in groups if not group.failure]
    buckets = [[group] for group in sound] if orders.is_careful else _buckets(sound)
    for bucket in buckets:
        is_last = bucket is buckets[-1] and not orders.is_careful
        with oversight.focus([group.group_id for group in bucket]):
            made = list(editor.edit(bucket, *([done_with_model] if is_last else [])))
            if orders.is_careful:  # then whatever a group causes is to happen in its focus
                wait(_files_of(made))
        results.extend(made)
    return results


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


def _files_of(results: Sequence[Result]) -> Iterator[Future[str]]:
    """The writes that are on their way."""
    for made in results:
        if made.edited_file is not None:
            yield made.edited_file
        if made.source_file is not None:
            yield made.source_file
        yield from made.mask_files
