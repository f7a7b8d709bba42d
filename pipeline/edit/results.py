"""Writes the judged edits of one block, or marks them as failed.

`ResultWriter` takes edits whose attempts are judged. It gives the boxes and masks of each their
verdicts, hands its images to the writer's threads, and returns the results from which the block's
metadata and outcomes are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

from fpe_core.judging.rules import Verdict
from pipeline.edit.attempt import (
    Attempt,
    AttemptedEdit,
    AttemptImages,
    MadeEdit,
    Result,
    UnmadeEdit,
    code_of,
    message_of,
)
from pipeline.judge.regions import Annotated, SourceRegions, annotate, source_regions
from pipeline.ledger.outcome import FailureCode
from pipeline.manifest.annotations import AnnotationSettings
from pipeline.read.group import Group
from pipeline.write.part import PartWriter
from pipeline.write.provenance import edit_packet, synthetic_source_packet


class ResultWriter:
    """Writes the images of one block's edits. Used by one thread; other threads write the files."""

    def __init__(
        self,
        writer: PartWriter,
        *,
        fingerprint: str,
        keep_source: bool,
        keeps_rejected: bool = True,
        annotations: AnnotationSettings | None = None,
        makes_edits: bool = True,
    ) -> None:
        """`makes_edits`: False for a `NoEditor`, whose images must not be labelled as made by a
        model."""
        self._writer = writer
        self._fingerprint = fingerprint
        self._keep_source = keep_source
        self._keeps_rejected = keeps_rejected
        self._annotations = annotations
        self._makes_edits = makes_edits
        self._source_files: dict[tuple[int, bool], Future[str]] = {}
        self._mask_files: dict[tuple[int, bool], tuple[Future[str], ...]] = {}

    def write(self, tried: list[AttemptedEdit]) -> Iterator[Result]:
        """The results of one call of the editor; their files are being written.

        Takes every edit out of `tried`, so that its images are freed when they are written. Waits
        while too many images are being written (`PartWriter`).

        A source or a mask is written once for all its accepted edits, and once for all its rejected
        edits.
        """
        seen: dict[int, SourceRegions] = {}
        tried.reverse()
        while tried:
            each = tried.pop()
            kept = each.kept
            if not kept.is_finite:
                yield _not_finite(each)
                continue
            if isinstance(kept.judged, Exception):
                yield _unjudged(each, kept.judged, "the judge")
                continue
            annotated = self._annotated(each, seen)
            if isinstance(annotated, Exception):
                yield _unjudged(each, annotated, "judging boxes and masks")
                continue
            is_rejected = kept.reason is not None
            if is_rejected and not self._keeps_rejected:
                yield MadeEdit.of(each, annotated)
                continue
            place = (each.group.place, is_rejected)
            if self._keep_source and place not in self._source_files:
                self._source_files[place] = self._put_source(each.group, kept, is_rejected)
            if place not in self._mask_files:
                self._mask_files[place] = self._put_masks(each.group, is_rejected)
            yield MadeEdit.of(
                each,
                annotated,
                self._put_edit(each, is_rejected),
                self._source_files.get(place),
                self._mask_files[place],
            )

    def refuse(
        self, group: Group, verdict: Verdict, autoencoder_psnr_db: float | None
    ) -> Iterator[UnmadeEdit]:
        """The edits of a source that the gate rejected: they are rejected without being made.

        The source is written next to rejected edits, so that a person can look at it.
        """
        assert verdict.reason is not None
        source_file = None
        if self._keep_source and self._keeps_rejected and group.image is not None:
            source_file = self._writer.put_source(
                group.stem, group.source_id, group.image, is_rejected=True
            )
        for edit in group.edits:
            yield UnmadeEdit(
                group,
                edit,
                verdict.reason,
                verdict.message,
                autoencoder_psnr_db=autoencoder_psnr_db,
                source_file=source_file,
            )

    def _annotated(
        self, tried: AttemptedEdit, seen: dict[int, SourceRegions]
    ) -> Annotated | Exception | None:
        """The verdicts on its boxes and masks, or the error; each source is analysed once
        (`seen`)."""
        settings, kept = self._annotations, tried.kept
        if settings is None:
            return None
        try:
            if tried.source not in seen:
                seen[tried.source] = source_regions(tried.group, _images_of(kept).source)
            return annotate(seen[tried.source], _images_of(kept).edit, settings)
        except Exception as error:  # noqa: BLE001 - only this edit fails
            return error

    def _put_masks(self, group: Group, is_rejected: bool) -> tuple[Future[str], ...]:
        return tuple(
            self._writer.put_mask(group.stem, mask.png, is_rejected=is_rejected)
            for mask in group.regions.masks
        )

    def _put_source(self, group: Group, attempt: Attempt, is_rejected: bool) -> Future[str]:
        is_synthetic = group.image is None
        xmp = synthetic_source_packet(group, self._fingerprint) if is_synthetic else None
        return self._writer.put_source(
            group.stem, group.source_id, _images_of(attempt).source, xmp, is_rejected=is_rejected
        )

    def _put_edit(self, tried: AttemptedEdit, is_rejected: bool) -> Future[str]:
        group, key, kept = tried.group, tried.edit.key, tried.kept
        xmp = None
        if self._makes_edits:
            xmp = edit_packet(group, key, kept.parameters, self._fingerprint)
        return self._writer.put_edited(
            group.stem, key.edit_id, _images_of(kept).edit, xmp, is_rejected=is_rejected
        )


def _images_of(kept: Attempt) -> AttemptImages:
    assert kept.images is not None  # only retries that are not kept lose them
    return kept.images


def _not_finite(tried: AttemptedEdit) -> UnmadeEdit:
    return UnmadeEdit.failed(
        tried.group,
        tried.edit,
        FailureCode.NAN_LATENT,
        "latent or image is not finite; try float32 or a lower guidance_scale",
        tried.kept.cost,
    )


def _unjudged(tried: AttemptedEdit, error: Exception, raised_by: str) -> UnmadeEdit:
    """An edit that was made, but `raised_by` raised while it was judged."""
    return UnmadeEdit.failed(
        tried.group,
        tried.edit,
        code_of(error, FailureCode.JUDGE_FAILED),
        message_of(error, raised_by),
        tried.kept.cost,
    )
