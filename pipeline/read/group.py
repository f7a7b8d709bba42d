"""One decoded row of the work list: a source, its edits, and its boxes and masks in the pixels of
the fitted image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fpe_core import EditParameters, Fit
from fpe_core.image.boxes import FittedBox
from pipeline.ledger.outcome import EditKey


@dataclass(frozen=True)
class RegionMask:
    """A fitted mask as PNG, and the share of its object that is still visible, 0..1."""

    png: bytes
    visible: float


@dataclass(frozen=True)
class Regions:
    """The annotations of one source, in the order of its row. `boxes` is None if the row has null,
    which the output keeps apart from an empty list."""

    boxes: tuple[FittedBox, ...] | None = None
    masks: tuple[RegionMask, ...] = ()

    @classmethod
    def of_masks(cls, masks: Iterable[Mapping[str, Any]]) -> Regions:
        """From the values of FITTED_MASK_TYPE, as `decode` returns them."""
        return cls(masks=tuple(RegionMask(mask["png"], mask["visible"]) for mask in masks))


@dataclass(frozen=True)
class PlannedEdit:
    """One edit of a work row."""

    key: EditKey
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class Group:
    """One decoded work row: a source and its edits.

    Attributes:
        place: its row in the block.
        image: the fitted source; None for a synthetic one, and for one that failed.
        failure: a FailureCode, or "".
        message: the cause of the failure; without one, what was done to the source's colours.
    """

    place: int
    stem: str
    split: str
    id: str
    source_prompt: str
    seed: int | None
    image: Image.Image | None
    fit: Fit | None
    failure: str
    message: str
    parameters: EditParameters
    edits: tuple[PlannedEdit, ...]
    regions: Regions = field(default_factory=Regions)

    @property
    def group_id(self) -> bytes:
        return self.edits[0].key.group_id

    @property
    def source_id(self) -> bytes:
        return self.edits[0].key.source_id

    @classmethod
    def from_row(cls, place: int, row: dict[str, Any]) -> Group:
        parameters = EditParameters.from_dict(json.loads(row["parameters"]))
        size = (parameters.width_px, parameters.height_px)
        pixels = row["pixels"]
        return cls(
            place=place,
            stem=row["stem"],
            split=row["split"],
            id=row["id"],
            source_prompt=row["source_prompt"],
            seed=row["seed"] if row["synthetic"] else None,
            image=None if pixels is None else Image.frombytes("RGB", size, pixels),
            fit=Fit(**json.loads(row["fit"])) if row["fit"] else None,
            failure=row["failure"],
            message=row["message"],
            parameters=parameters,
            edits=tuple(_planned_edit(row, edit) for edit in row["edits"]),
            regions=Regions.of_masks(row.get("masks") or ()),
        )


def _planned_edit(row: dict[str, Any], edit: dict[str, Any]) -> PlannedEdit:
    key = EditKey(
        edit_id=edit["edit_id"],
        group_id=row["group_id"],
        source_id=row["source_id"],
        row=row["row"],
        target_prompt=edit["target_prompt"],
        edit_type=edit["edit_type"],
    )
    return PlannedEdit(key, tuple(edit["labels"] or ()))
