"""What the model made of an edit, try by try, and the outcome that comes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import ClassVar

from PIL import Image

from fpe_core import Edit, EditParameters, FPEError, Inversion, SyntheticSources
from fpe_core.device import is_out_of_memory
from fpe_core.judging.rules import RejectReason, Verdict
from fpe_core.scores.edit_scores import EditScores
from pipeline.errors import RowError
from pipeline.judge.judge import Judged
from pipeline.judge.regions import Annotated
from pipeline.ledger.outcome import EditOutcome, FailureCode, TryRecord
from pipeline.read.group import Group, PlannedEdit


@dataclass(frozen=True)
class PreparedSources:
    """Groups ready to be edited.

    Attributes:
        unet_rows_each, seconds_each: what each has cost so far.
        autoencoder_psnr_db: of each, as the gate measured it; None where no gate asks.
    """

    groups: tuple[Group, ...]
    start: Inversion | SyntheticSources
    unet_rows_each: float
    seconds_each: float
    autoencoder_psnr_db: tuple[float | None, ...]

    def select(self, indices: Sequence[int]) -> PreparedSources:
        """Some of them, in the given order."""
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


@dataclass(frozen=True)
class Attempt:
    """One try of an edit.

    Attributes:
        source: the picture it was made from, as the model saw it.
        notes: what the text encoder did not see, "" if it saw everything.
        unet_rows, seconds: its own share; the first try's has the source's share in it.
        judged: what the judge says, or why it cannot; None where it was not asked.
        trouble: why a further try is none: not finite, or not to be judged.
    """

    parameters: EditParameters
    made: Edit
    source: Image.Image
    notes: str
    unet_rows: float
    seconds: float
    judged: Judged | Exception | None = None
    trouble: str = ""

    @property
    def reason(self) -> RejectReason | None:
        """Why it was rejected; None where it was not, or nobody could say."""
        return self.judged.verdict.reason if isinstance(self.judged, Judged) else None

    def to_record(self) -> TryRecord:
        judged = self.judged if isinstance(self.judged, Judged) else None
        said = self.trouble if judged is None else judged.verdict.message
        return TryRecord(
            parameters=json.dumps(self.parameters.to_dict(), sort_keys=True),
            reason=TryRecord.FAILED if judged is None else judged.verdict.reason or "",
            message="; ".join(note for note in (said, self.notes) if note),
            unet_rows=self.unet_rows,
            seconds=self.seconds,
            scores=EditScores() if judged is None else judged.scores,
        )


@dataclass(frozen=True)
class TriedEdit:
    """An edit and its tries so far. `source` is the place of its group among the sources of the
    call; `trouble` says why a further try came to nothing."""

    group: Group
    source: int
    edit: PlannedEdit
    attempts: tuple[Attempt, ...]
    autoencoder_psnr_db: float | None = None
    trouble: str = ""

    @property
    def kept(self) -> Attempt:
        """The accepted try; without one the first, which is what was asked for."""
        latest = self.attempts[-1]
        return self.attempts[0] if latest.reason or latest.trouble else latest

    def with_attempt(self, attempt: Attempt) -> TriedEdit:
        return replace(self, attempts=(*self.attempts, attempt))

    def with_trouble(self, why: str) -> TriedEdit:
        return replace(self, trouble=f"no further try: {why}")


@dataclass(frozen=True)
class MadeEdit:
    """An edit on its way to the storage; a rejected one may have no file."""

    tried: TriedEdit
    edited_file: Future[str] | None
    source_file: Future[str] | None
    annotated: Annotated | None = None
    mask_files: tuple[Future[str], ...] = ()

    @property
    def group(self) -> Group:
        return self.tried.group

    @property
    def edit(self) -> PlannedEdit:
        return self.tried.edit

    @property
    def judged(self) -> Judged | None:
        judged = self.tried.kept.judged
        assert not isinstance(judged, Exception)  # such an edit has failed
        return judged

    @property
    def unet_rows(self) -> float:
        return sum(attempt.unet_rows for attempt in self.tried.attempts)

    @property
    def seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.tried.attempts)

    @property
    def parameters(self) -> EditParameters:
        return self.tried.kept.parameters

    @property
    def is_rejected(self) -> bool:
        return self.judged is not None and self.judged.verdict.reason is not None

    @property
    def notes(self) -> str:
        tried = self.tried
        return "; ".join(n for n in (tried.group.message, tried.kept.notes, tried.trouble) if n)

    def outcome(self, part: str, edited_name: str, source_name: str) -> EditOutcome:
        """Accepted or rejected, as the judge says; accepted without one.

        `part` is the folder of its files, "" where it has none.
        """
        judged, attempts = self.judged, self.tried.attempts
        scores = judged.scores if judged else None
        source = f"{part}/{source_name}" if source_name else ""
        tries = tuple(each.to_record() for each in attempts) if len(attempts) > 1 else ()
        if judged is None or judged.verdict.reason is None:
            return self.edit.key.accepted(
                part=part,
                edited_file_name=f"{part}/{edited_name}",
                source_file_name=source,
                scores=scores,
                autoencoder_psnr_db=self.tried.autoencoder_psnr_db,
                message=self.notes,
                tries=tries,
                unet_rows=self.unet_rows,
                seconds=self.seconds,
            )
        return self.edit.key.rejected(
            judged.verdict.reason,
            "; ".join(note for note in (judged.verdict.message, self.notes) if note),
            part=part,
            edited_file_name=f"{part}/{edited_name}" if edited_name else "",
            source_file_name=source,
            scores=scores,
            autoencoder_psnr_db=self.tried.autoencoder_psnr_db,
            tries=tries,
            unet_rows=self.unet_rows,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class UnmadeEdit:
    """An edit of a source that the model cannot reconstruct: rejected, and never made."""

    group: Group
    edit: PlannedEdit
    verdict: Verdict
    autoencoder_psnr_db: float | None
    source_file: Future[str] | None

    unet_rows: ClassVar = 0.0
    seconds: ClassVar = 0.0
    edited_file: ClassVar[None] = None
    mask_files: ClassVar[tuple[Future[str], ...]] = ()
    judged: ClassVar[None] = None
    annotated: ClassVar[None] = None
    is_rejected: ClassVar = True

    @property
    def parameters(self) -> EditParameters:
        """What it would have been made with."""
        return self.group.parameters

    def outcome(self, part: str, edited_name: str, source_name: str) -> EditOutcome:
        assert self.verdict.reason is not None
        return self.edit.key.rejected(
            self.verdict.reason,
            "; ".join(note for note in (self.verdict.message, self.group.message) if note),
            part=part,
            edited_file_name=f"{part}/{edited_name}" if edited_name else "",
            source_file_name=f"{part}/{source_name}" if source_name else "",
            autoencoder_psnr_db=self.autoencoder_psnr_db,
            unet_rows=self.unet_rows,
            seconds=self.seconds,
        )


Result = MadeEdit | UnmadeEdit | EditOutcome


def write_failed(edit: MadeEdit | UnmadeEdit, error: Exception) -> EditOutcome:
    """The outcome of an edit whose files or metadata could not be written."""
    return edit.edit.key.failed(
        FailureCode.WRITE_FAILED, str(error), unet_rows=edit.unet_rows, seconds=edit.seconds
    )


def edit_id_of(result: Result) -> bytes:
    return result.edit_id if isinstance(result, EditOutcome) else result.edit.key.edit_id


def failed(edit: PlannedEdit, error: Exception, unet_rows: float = 0.0) -> EditOutcome:
    """The outcome of an edit that the model, or something around it, raised for."""
    code = _code_of(error, FailureCode.WORKER_DIED)
    return edit.key.failed(code, told(error), unet_rows=unet_rows)


def unjudged(
    edit: PlannedEdit, error: Exception, unet_rows: float, of: str = "the judge"
) -> EditOutcome:
    """The outcome of an edit that was made and could not be judged, nor its boxes and masks."""
    code = _code_of(error, FailureCode.JUDGE_FAILED)
    return edit.key.failed(code, told(error, of), unet_rows=unet_rows)


def _code_of(error: Exception, otherwise: FailureCode) -> str:
    code = error.code if isinstance(error, FPEError | RowError) else ""
    return FailureCode.OUT_OF_MEMORY if is_out_of_memory(error) else code or otherwise


def told(error: Exception, of: str = "the model") -> str:
    """What an error says; of one that is none of ours, its kind as well."""
    is_ours = isinstance(error, FPEError | RowError) or is_out_of_memory(error)
    return str(error) if is_ours else f"{of} raised {type(error).__name__}: {error}"


def not_finite(tried: TriedEdit) -> EditOutcome:
    first = tried.attempts[0]
    return tried.edit.key.failed(
        FailureCode.NAN_LATENT,
        "latent or picture is not finite; try float32 or a lower guidance_scale",
        unet_rows=first.unet_rows,
        seconds=first.seconds,
    )


def diverged(sources: PreparedSources, index: int) -> list[EditOutcome]:
    """The outcomes of a source whose inversion is not finite."""
    group = sources.groups[index]
    return [
        edit.key.failed(
            FailureCode.INVERSION_DIVERGED,
            "the inversion of the source is not finite; try float32 or more steps",
            unet_rows=sources.unet_rows_each / len(group.edits),
            seconds=sources.seconds_each / len(group.edits),
        )
        for edit in group.edits
    ]


def truncation_notes(start: Inversion | SyntheticSources, index: int, made: Edit) -> str:
    """What the text encoder did not see, "" if it saw everything."""
    source = start.truncated_prompts[index] if isinstance(start, Inversion) else ""
    pairs = (("target", made.truncated_prompt), ("source", source))
    return "; ".join(f"{which} prompt cut before: {cut}" for which, cut in pairs if cut)
