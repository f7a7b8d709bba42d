"""Beside the judge: what becomes of a source's boxes and masks in each of its edits.

Boxes and masks follow the picture through the fit exactly, so they are the same for all edits of a
source. Whether an edit still shows there what the source showed is another question, and its
answer is the verdict: `region_verdict`, from the structure that `fpe_core.scores.regions` finds
inside the region. A verdict is the box's, not the edit's: an edit whose boxes are all dropped is
accepted all the same, unless the judge says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from PIL import Image

from fpe_core.image.boxes import fit_box
from fpe_core.image.masks import decode_mask, object_of
from fpe_core.judging.region_verdict import VerdictRule
from fpe_core.scores.regions import SourceRegion, region_of_box, region_of_mask
from pipeline.manifest.annotations import AnnotationSettings, BoxColumn
from pipeline.read.group import Group


@dataclass(frozen=True)
class SourceRegions:
    """The regions of one source, looked at once for all of its edits; None: nothing left of it."""

    group: Group
    boxes: tuple[SourceRegion | None, ...]
    masks: tuple[SourceRegion | None, ...]


@dataclass(frozen=True)
class Annotated:
    """Of one edit, (verdict, structure) of each box and of each mask of its source."""

    boxes: tuple[tuple[str, float | None], ...]
    masks: tuple[tuple[str, float | None], ...]


def with_boxes(
    groups: Sequence[Group], settings: AnnotationSettings, carried: pa.Table | None
) -> list[Group]:
    """Groups that know their boxes, in the pixels of the fitted picture."""
    column = settings.boxes
    if column is None or carried is None:
        return list(groups)
    cells = column.cells(carried)
    return [_with_boxes(group, column, cells[group.place]) for group in groups]


def _with_boxes(group: Group, column: BoxColumn, cell: Any) -> Group:
    found = column.boxes(cell)
    if found is None or (found and group.fit is None):  # the latter: a source that failed
        return group
    size = (group.parameters.width_px, group.parameters.height_px)
    boxes = tuple(fit_box(box, group.fit, *size) for box in found if group.fit is not None)
    return replace(group, regions=replace(group.regions, boxes=boxes))


def look_at_source(group: Group, source: Image.Image) -> SourceRegions:
    """`source` is the fitted picture."""
    regions = group.regions
    pixels = source.width * source.height
    return SourceRegions(
        group,
        tuple(
            region_of_box(source, each.box) if each.visible > 0 else None
            for each in regions.boxes or ()
        ),
        tuple(
            region_of_mask(source, object_of(decode_mask(each.png, max_pixels=pixels)))
            if each.visible > 0
            else None
            for each in regions.masks
        ),
    )


def annotate(sources: SourceRegions, edit: Image.Image, settings: AnnotationSettings) -> Annotated:
    """The verdict on every region of the source in one of its edits."""
    regions = sources.group.regions

    def judged(
        region: SourceRegion | None, visible: float, rule: VerdictRule
    ) -> tuple[str, float | None]:
        structure = None if region is None else region.structure_in(edit)
        return rule.verdict(visible, structure).value, structure

    return Annotated(
        tuple(
            judged(region, each.visible, settings.box_rule)
            for region, each in zip(sources.boxes, regions.boxes or (), strict=True)
        ),
        tuple(
            judged(region, each.visible, settings.mask_rule)
            for region, each in zip(sources.masks, regions.masks, strict=True)
        ),
    )


def annotation_columns(
    settings: AnnotationSettings, group: Group, annotated: Annotated, mask_names: Sequence[str]
) -> dict[str, Any]:
    """Values of `settings.fields` for one edit."""
    columns: dict[str, Any] = {}
    regions = group.regions
    if settings.boxes is not None:
        box_format = settings.boxes.box_format
        columns |= settings.boxes.columns(
            None
            if regions.boxes is None
            else [
                (each.box.write(box_format), *judged, each.visible)
                for each, judged in zip(regions.boxes, annotated.boxes, strict=True)
            ]
        )
    if settings.masks is not None:
        columns |= settings.masks.columns(
            [
                (name, *judged, each.visible)
                for name, each, judged in zip(
                    mask_names, regions.masks, annotated.masks, strict=True
                )
            ]
        )
    return columns
