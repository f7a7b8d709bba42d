"""Gives each box and mask of a source a verdict in each of its edits: keep, review or drop.

Boxes and masks are fitted exactly like the image, so they are the same for all edits of a source.
The verdict says whether an edit still shows what the source showed inside the region. It follows
from the share of the source's structure that `fpe_core.scores.regions` finds there, by the rules in
`region_verdict`. It concerns the box or mask only: an edit is accepted even if all its boxes are
dropped, unless the judge rejects it.
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
    """The regions of one source, analysed once for all of its edits. A region is None if nothing of
    it is visible."""

    group: Group
    boxes: tuple[SourceRegion | None, ...]
    masks: tuple[SourceRegion | None, ...]


@dataclass(frozen=True)
class Annotated:
    """(verdict, structure) for each box and each mask of one edit; structure None: not visible."""

    boxes: tuple[tuple[str, float | None], ...]
    masks: tuple[tuple[str, float | None], ...]


def with_boxes(
    groups: Sequence[Group], settings: AnnotationSettings, carried: pa.Table | None
) -> list[Group]:
    """The groups with their boxes, in the pixels of the fitted image."""
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


def source_regions(group: Group, source: Image.Image) -> SourceRegions:
    """Analyses the boxes and masks of a source; `source` is the fitted image."""
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
    """The verdict on every box and mask of the source in one of its edits."""
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
    """The values of the columns `settings.fields` for one edit."""
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
