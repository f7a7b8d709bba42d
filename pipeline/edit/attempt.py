"""The attempts at an edit, what each cost, and the outcome that follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

from PIL import Image

from fpe_core import Edit, EditParameters, FPEError, Inversion, SyntheticSources
from fpe_core.device import is_out_of_memory
from fpe_core.judging.rules import RejectReason
from fpe_core.scores.edit_scores import EditScores
from pipeline.errors import RowError
from pipeline.judge.judge import Judged
from pipeline.judge.regions import Annotated
from pipeline.ledger.outcome import AttemptRecord, EditOutcome, FailureCode
from pipeline.read.group import Group, PlannedEdit


@dataclass(frozen=True)
class ModelCost:
    """What an attempt or an edit cost: UNet rows, and seconds of the model's time."""

    unet_rows: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: ModelCost) -> ModelCost:
        return ModelCost(self.unet_rows + other.unet_rows, self.seconds + other.seconds)

    def __truediv__(self, shares: int) -> ModelCost:
        return ModelCost(self.unet_rows / shares, self.seconds / shares)


@dataclass(frozen=True)
class PreparedSources:
    """Groups ready to be edited.

    Attributes:
        start: the inversions or the sampled noise, one per group.
        cost_each: what each group has cost so far.
        autoencoder_psnr_db: PSNR in dB of each source, as the gate measured it; None if it was not
            measured.
    """

    groups: tuple[Group, ...]
    start: Inversion | SyntheticSources
    cost_each: ModelCost
    autoencoder_psnr_db: tuple[float | None, ...]

    def select(self, indices: Sequence[int]) -> PreparedSources:
        """The groups at these indices, in the given order."""
        if list(indices) == list(range(len(self.groups))):
            return self  # without another copy of their trajectories
        start = self.start
        return replace(
            self,
            groups=tuple(self.groups[i] for i in indices),
            autoencoder_psnr_db=tuple(self.autoencoder_psnr_db[i] for i in indices),
            start=start.select(indices)
            if isinstance(start, Inversion)
            else replace(
                start,
                noise=start.noise[list(indices)],
                source_prompts=tuple(start.source_prompts[i] for i in indices),
                seeds=tuple(start.seeds[i] for i in indices),
            ),
        )


class AttemptImages(NamedTuple):
    """The image that an attempt made, and the one it was made from, as the model saw it."""

    source: Image.Image
    edit: Image.Image


@dataclass(frozen=True)
class Attempt:
    """One attempt at an edit.

    Attributes:
        images: None once they cannot be written any more.
        is_finite: False if the latent or the image has a NaN or infinity.
        notes: the parts of the prompts that were too long for the text encoder, "" if none were.
        cost: its share of the call; that of attempt 1 includes a share of the source's inversion.
        judged: the judge's scores and verdict, or the error that it raised; None if the attempt
            was not judged.
        trouble: why a retry does not count: it is not finite, or could not be judged.
    """

    parameters: EditParameters
    images: AttemptImages | None
    is_finite: bool
    notes: str
    cost: ModelCost
    judged: Judged | Exception | None = None
    trouble: str = ""

    @property
    def reason(self) -> RejectReason | None:
        """Why it was rejected; None if it was accepted, or not judged."""
        return self.judged.verdict.reason if isinstance(self.judged, Judged) else None

    def to_record(self) -> AttemptRecord:
        judged = self.judged if isinstance(self.judged, Judged) else None
        reported = self.trouble if judged is None else judged.verdict.message
        return AttemptRecord(
            parameters=json.dumps(self.parameters.to_dict(), sort_keys=True),
            reason=AttemptRecord.FAILED if judged is None else judged.verdict.reason or "",
            message="; ".join(note for note in (reported, self.notes) if note),
            unet_rows=self.cost.unet_rows,
            seconds=self.cost.seconds,
            scores=EditScores() if judged is None else judged.scores,
        )


@dataclass(frozen=True)
class AttemptedEdit:
    """An edit and its attempts so far.

    Attributes:
        source: index of its group among the sources of the call.
        trouble: why the latest retry does not count; "" if it does.
    """

    group: Group
    source: int
    edit: PlannedEdit
    attempts: tuple[Attempt, ...]
    autoencoder_psnr_db: float | None = None
    trouble: str = ""

    @property
    def kept(self) -> Attempt:
        """The accepted attempt. If none was accepted, attempt 1: it has the job's parameters."""
        latest = self.attempts[-1]
        return self.attempts[0] if latest.reason or latest.trouble else latest

    def with_attempt(self, attempt: Attempt) -> AttemptedEdit:
        """With a further attempt. Images stay of the first one, which is kept if none is accepted,
        and of this one."""
        first, *others = self.attempts
        dropped = (replace(each, images=None) for each in others)
        return replace(self, attempts=(first, *dropped, attempt))

    def with_trouble(self, why: str) -> AttemptedEdit:
        return replace(self, trouble=f"a retry failed: {why}")


@dataclass(frozen=True)
class MadeEdit:
    """An edit whose files are being written; a rejected one may have no files. It has no image of
    its own: thousands of these may wait for the end of a part.

    Attributes:
        parameters, judged, notes: those of the attempt that is kept.
        cost: of all attempts together.
        tries: all attempts, if there was more than one.
    """

    group: Group
    edit: PlannedEdit
    parameters: EditParameters
    judged: Judged | None
    notes: str
    cost: ModelCost
    tries: tuple[AttemptRecord, ...]
    autoencoder_psnr_db: float | None
    edited_file: Future[str] | None = None
    source_file: Future[str] | None = None
    annotated: Annotated | None = None
    mask_files: tuple[Future[str], ...] = ()

    @classmethod
    def of(
        cls,
        tried: AttemptedEdit,
        annotated: Annotated | None,
        edited_file: Future[str] | None = None,
        source_file: Future[str] | None = None,
        mask_files: tuple[Future[str], ...] = (),
    ) -> Self:
        """The result of an edit whose kept attempt was judged, or made without a judge."""
        kept, attempts = tried.kept, tried.attempts
        assert not isinstance(kept.judged, Exception)  # then it is an UnmadeEdit
        notes = (tried.group.message, kept.notes, tried.trouble)
        return cls(
            tried.group,
            tried.edit,
            kept.parameters,
            kept.judged,
            "; ".join(note for note in notes if note),
            sum((attempt.cost for attempt in attempts), ModelCost()),
            tuple(each.to_record() for each in attempts) if len(attempts) > 1 else (),
            tried.autoencoder_psnr_db,
            edited_file,
            source_file,
            annotated,
            mask_files,
        )

    @property
    def is_rejected(self) -> bool:
        return self.judged is not None and self.judged.verdict.reason is not None

    def outcome(self, part: str, edited_name: str, source_name: str) -> EditOutcome:
        """Accepted or rejected, as the judge decided; accepted if the run has no judge.

        `part` is the folder of its files, "" if it has none.
        """
        judged, cost = self.judged, self.cost
        scores = judged.scores if judged else None
        source = f"{part}/{source_name}" if source_name else ""
        if judged is None or judged.verdict.reason is None:
            return self.edit.key.accepted(
                part=part,
                edited_file_name=f"{part}/{edited_name}",
                source_file_name=source,
                scores=scores,
                autoencoder_psnr_db=self.autoencoder_psnr_db,
                message=self.notes,
                tries=self.tries,
                unet_rows=cost.unet_rows,
                seconds=cost.seconds,
            )
        return self.edit.key.rejected(
            judged.verdict.reason,
            "; ".join(note for note in (judged.verdict.message, self.notes) if note),
            part=part,
            edited_file_name=f"{part}/{edited_name}" if edited_name else "",
            source_file_name=source,
            scores=scores,
            autoencoder_psnr_db=self.autoencoder_psnr_db,
            tries=self.tries,
            unet_rows=cost.unet_rows,
            seconds=cost.seconds,
        )


@dataclass(frozen=True)
class UnmadeEdit:
    """An edit without an image: the gate rejected its source, something failed, or its editor
    cannot make it.

    Attributes:
        reason: a RejectReason if the gate rejected the source, a FailureCode if it failed; None if
            it is not applicable.
        cost: what was spent on it before it failed.
        source_file: the rejected source, being written; None if it is not written.
    """

    group: Group
    edit: PlannedEdit
    reason: RejectReason | FailureCode | None
    message: str
    cost: ModelCost = ModelCost()
    autoencoder_psnr_db: float | None = None
    source_file: Future[str] | None = None

    edited_file: ClassVar[None] = None
    mask_files: ClassVar[tuple[Future[str], ...]] = ()
    judged: ClassVar[None] = None
    annotated: ClassVar[None] = None

    @classmethod
    def failed(
        cls, group: Group, edit: PlannedEdit, code: str, message: str, cost: ModelCost | None = None
    ) -> Self:
        """An edit that failed. `cost` None: nothing was spent on it.

        Raises ValueError if `code` is not a FailureCode.
        """
        return cls(group, edit, FailureCode(code), message, cost or ModelCost())

    @classmethod
    def not_applicable(cls, group: Group, edit: PlannedEdit, message: str) -> Self:
        """An edit that its editor cannot make."""
        return cls(group, edit, None, message)

    @property
    def is_rejected(self) -> bool:
        return isinstance(self.reason, RejectReason)

    @property
    def parameters(self) -> EditParameters:
        """The parameters that it would have been made with."""
        return self.group.parameters

    def outcome(self, part: str, edited_name: str, source_name: str) -> EditOutcome:
        """Rejected, failed or not applicable. `part` is the folder of its files, or ""."""
        rows, seconds = self.cost.unet_rows, self.cost.seconds
        if self.reason is None:
            return self.edit.key.not_applicable(self.message)
        if isinstance(self.reason, FailureCode):
            return self.edit.key.failed(self.reason, self.message, unet_rows=rows, seconds=seconds)
        return self.edit.key.rejected(
            self.reason,
            "; ".join(note for note in (self.message, self.group.message) if note),
            part=part,
            edited_file_name=f"{part}/{edited_name}" if edited_name else "",
            source_file_name=f"{part}/{source_name}" if source_name else "",
            autoencoder_psnr_db=self.autoencoder_psnr_db,
            unet_rows=rows,
            seconds=seconds,
        )


Result = MadeEdit | UnmadeEdit


def write_failed(made: Result, error: Exception) -> EditOutcome:
    """The outcome of an edit whose files or metadata could not be written."""
    return UnmadeEdit.failed(
        made.group, made.edit, FailureCode.WRITE_FAILED, str(error), made.cost
    ).outcome("", "", "")


def code_of(error: Exception, otherwise: FailureCode = FailureCode.WORKER_DIED) -> str:
    """The failure code of an error; `otherwise` if the error has none."""
    code = error.code if isinstance(error, FPEError | RowError) else ""
    return FailureCode.OUT_OF_MEMORY if is_out_of_memory(error) else code or otherwise


def message_of(error: Exception, raised_by: str = "the model") -> str:
    """The message of an error. For errors of other libraries it names their type and
    `raised_by`."""
    is_ours = isinstance(error, FPEError | RowError) or is_out_of_memory(error)
    return str(error) if is_ours else f"{raised_by} raised {type(error).__name__}: {error}"


def notes_of(start: Inversion | SyntheticSources, index: int, made: Edit) -> str:
    """Which prompts were too long for the text encoder, and where they were cut, and how well
    null-text inversion went; "" if there is nothing to say."""
    source = start.truncated_prompts[index] if isinstance(start, Inversion) else ""
    pairs = (("target", made.truncated_prompt), ("source", source))
    notes = [f"{which} prompt cut before: {cut}" for which, cut in pairs if cut]
    if isinstance(start, Inversion) and start.null_text is not None:
        notes.append(start.null_text.in_words(index))
    return "; ".join(notes)
