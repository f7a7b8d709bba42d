"""The editing worker. It loads one model and edits block after block: each source is inverted once
and edited with all its prompts; the edits are judged and written.

`EditActor` is a plain class, so it runs without Ray as well. It takes one block of decoded work
rows and returns its outcomes. Groups with equal parameters go through the model together
(`block`). Their images are written to the storage, and then the part's metadata.
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
from pipeline.edit.kept_inversions import KeptInversions
from pipeline.edit.metadata_rows import FileNames, MetadataRows
from pipeline.edit.model_sharing import ModelThread, ThisThread, use_one_openmp_thread
from pipeline.edit.no_editor import NoEditor
from pipeline.edit.phase_clock import ClockedEditor, ModelTime
from pipeline.edit.results import ResultWriter
from pipeline.edit.settings import WORKER_FIELD, EditSettings
from pipeline.errors import LeaseError
from pipeline.judge.gate import ReconstructionGate
from pipeline.judge.judge import Judge, with_edit_types
from pipeline.judge.regions import with_boxes
from pipeline.ledger.outcome import EditOutcome, FailureCode, outcomes_table
from pipeline.pixel_budget import PixelBudget
from pipeline.read.group import Group
from pipeline.storage.folder import Folder
from pipeline.supervision.supervisor import Orders, Oversight, StageFigures, Unwatched
from pipeline.write.encoders import Encoders
from pipeline.write.metadata import carried_columns
from pipeline.write.part import PIXELS_BEING_WRITTEN, PartWriter, part_name


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
    """The result of editing one block.

    Attributes:
        outcomes: OUTCOME_SCHEMA and WORKER_FIELD, one row per edit.
        figures: counts and seconds by stage.
    """

    outcomes: pa.Table
    figures: StageFigures


class EditActor:
    """Loads the checkpoint once and edits block after block.

    Only one thread at a time may use the model (`ModelLock`); `prepare`, and what follows the
    model's work, may run on several threads.
    """

    def __init__(self, settings: EditSettings, thread: ModelThread | None = None) -> None:
        """`thread`: where the models run; None if this actor is only called from one thread.

        Raises CheckpointError if the checkpoint cannot be loaded, StorageError if the run folder
        cannot be opened.
        """
        self._settings = settings
        self._folder = Folder.open(settings.output, settings.storage_options)
        self._models = ThisThread() if thread is None else thread
        self._editor, self._judge = self._models.run(self._load)
        self._kept: KeptInversions | None = None
        if settings.inversions is not None and isinstance(self._editor, ClockedEditor):
            folder = Folder.open(settings.inversions, settings.storage_options)
            self._kept = KeptInversions(self._editor, folder)
        limits = ReconstructionLimits() if settings.judge is None else settings.judge.reconstruction
        self._gate = ReconstructionGate(self._editor, limits)
        encoders = min(settings.encoders, usable_cores())
        self._encoders = Encoders(encoders) if encoders else None
        # As many threads as wait for an encoder, and some more that wait for the storage.
        self._pool = ThreadPoolExecutor(
            settings.write_threads + encoders, thread_name_prefix="write"
        )
        self._being_written = PixelBudget(PIXELS_BEING_WRITTEN)
        self._judging = self._judge_executor()
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

    def _judge_executor(self) -> Executor:
        """A thread for the judge. On a CPU it is the model's own thread, because two threads with
        an OpenMP team each slow each other down (`model_sharing`)."""
        editor, judge = self._editor, self._judge
        if self._settings.threads != 1 and judge is not None and isinstance(editor, ClockedEditor):
            devices = editor.device, judge.models.device
            if all(device.type == "cpu" for device in devices):
                return self._models
        return ThreadPoolExecutor(1, thread_name_prefix="judge")

    def __call__(self, table: pa.Table, oversight: Oversight | None = None) -> pa.Table:
        """Edits decoded work rows and returns their outcomes, see `edit`."""
        return self.edit(self.prepare(table), oversight or Unwatched()).outcomes

    def prepare(self, table: pa.Table) -> Block:
        """Turns decoded work rows into groups with images. Does not need the model."""
        carried = carried_columns(table)
        rows = table.drop_columns(["carried"] if carried is not None else [])
        groups = []
        for place in range(rows.num_rows):  # one at a time: their pixels are copied twice
            (row,) = rows.slice(place, 1).to_pylist()
            groups.append(Group.from_row(place, row))
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
        """Edits a block and returns its outcomes and figures.

        Every edit that is returned as accepted is on the storage and in the part's metadata. If the
        run is being stopped, nothing is edited and no outcome is returned.

        `done_with_model` is called once the model is no longer needed, so that another thread may
        edit the next block. It may be called more than once. It is not called for a block whose
        groups are edited one by one (`orders.is_careful`).
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
            budget=self._being_written,
            encoders=self._encoders,
            progress=oversight.alive,
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
        outcomes = self._finish(writer, results, block.carried)
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
            self._kept or self._editor,
            results,
            self._gate,
            judge=self._judge,
            judging=self._judging,
            makes_edits=self._settings.makes_edits,
            begin_thread=self._begin_thread,
        )

    def _begin_thread(self) -> None:
        if isinstance(self._models, ModelThread):  # else the model runs on that thread itself
            use_one_openmp_thread()

    def _finish(
        self, writer: PartWriter, results: Sequence[Result], carried: pa.Table | None
    ) -> pa.Table:
        """Waits for the images, writes the part's metadata and returns the outcomes."""
        rows = MetadataRows(self._settings)
        outcomes: list[EditOutcome] = []
        for made in results:
            try:
                names = FileNames.of(made)
            except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
                outcomes.append(write_failed(made, error))
                continue
            part = writer.folder_of(is_rejected=made.is_rejected) if names.has_any else ""
            outcome = made.outcome(part, names.edited, names.source)
            outcomes.append(outcome)
            if outcome.part:
                rows.add(made, outcome, names)
        table = outcomes_table(outcomes)
        if rows.is_empty:
            return table
        try:
            accepted, rejected = (
                rows.table(carried, writer, is_rejected=which) for which in (False, True)
            )
            table = writer.finish(accepted, table, rejected)
        except LeaseError:
            raise  # no row caused it, and this run must not write to the folder any more
        except Exception as error:  # noqa: BLE001 - storage drivers raise what they like
            unwritten = {made.edit.key.edit_id: made for made in results}
            return outcomes_table(
                write_failed(unwritten[o.edit_id], error) if o.part else o for o in outcomes
            )
        writer.finish_rejected()
        return table


def _load_editor(settings: EditSettings, thread: ModelThread | ThisThread) -> ClockedEditor:
    """Raises CheckpointError, and StorageError if the checkpoint cannot be fetched."""
    add_ons = settings.store.add_ons(settings.add_ons, allow_pickle=settings.allow_pickle)
    checkpoint = load_checkpoint(
        settings.store.checkpoint(settings.checkpoint, allow_pickle=settings.allow_pickle),
        device=settings.device,
        dtype=settings.dtype,
        allow_pickle=settings.allow_pickle,
        revision=settings.revision,
        config=settings.store.config(settings.config),
        loras=add_ons.loras,
        embeddings=add_ons.embeddings,
        vae=add_ons.vae,
        clip_skip=settings.text_settings.clip_skip,
        long_prompts=settings.text_settings.long_prompts,
    )
    if checkpoint.fingerprint != settings.checkpoint_fingerprint:
        raise CheckpointError(
            f"{settings.checkpoint} is another checkpoint here ({checkpoint.fingerprint}) than "
            f"on the machine that planned the job ({settings.checkpoint_fingerprint}); give all "
            "machines the same files, or name a revision"
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
    """The results of all edits, in no particular order; their files may still be being written."""
    orders = oversight.orders
    results: list[Result] = []
    groups = [
        applicable
        for group in groups
        if (applicable := _applicable(_unless_quarantined(group, orders), results))
    ]
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
            if orders.is_careful:  # so that a crash while writing is blamed on this group
                wait(_files_of(made))
        results.extend(made)
    return results


def _unless_quarantined(group: Group, orders: Orders) -> Group:
    """Marks a quarantined group as failed: it crashed its workers, so it is not edited again."""
    if group.failure or group.group_id not in orders.quarantined:
        return group
    reason = orders.quarantined[group.group_id]
    return replace(group, failure=FailureCode.WORKER_DIED, message=reason)


def _applicable(group: Group, results: list[Result]) -> Group | None:
    """The group without the edits that its editor cannot make, whose results are added; None if
    none is left."""
    edits = []
    for edit in group.edits:
        if reason := group.not_applicable(edit):
            results.append(UnmadeEdit.not_applicable(group, edit, reason))
        else:
            edits.append(edit)
    if len(edits) == len(group.edits):
        return group
    return replace(group, edits=tuple(edits)) if edits else None


def _buckets(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that may go through the model together: those with equal parameters, and either all
    with real sources or all with synthetic ones."""
    buckets: dict[tuple[str, bool], list[Group]] = {}
    for group in groups:
        key = (json.dumps(group.parameters.to_dict(), sort_keys=True), group.image is None)
        buckets.setdefault(key, []).append(group)
    return list(buckets.values())


def _files_of(results: Sequence[Result]) -> Iterator[Future[str]]:
    """The pending writes of these results."""
    for made in results:
        if made.edited_file is not None:
            yield made.edited_file
        if made.source_file is not None:
            yield made.source_file
        yield from made.mask_files
