"""One decoded row of the work list: a source, its edits, and its boxes and masks in the pixels of
the fitted image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core import EditInputs, EditParameters, Fit, RegionPrompts
from fpe_core.editors.method import NOTHING
from fpe_core.image.bound import binds_nothing, edited_area
from fpe_core.image.boxes import FittedBox
from fpe_core.image.masks import object_of
from pipeline.ledger.outcome import EditKey
from pipeline.manifest.edit_inputs import BLEND_WORDS, EDIT_MASK, BlendWords
from pipeline.manifest.prompts import lacks_prompt
from pipeline.manifest.region_columns import REGION_PROMPTS


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
    blend_words: BlendWords | None = None
    region_prompts: RegionPrompts | None = None


@dataclass(frozen=True)
class Group:
    """One decoded work row: a source and its edits.

    Attributes:
        place: its row in the block.
        image: the fitted source; None for a synthetic one, and for one that failed.
        failure: a FailureCode, or "".
        message: the cause of the failure; without one, what was done to the source's colours.
        edit_mask: where it is edited, as PNG; None without a mask, and if the source failed.
        has_edit_mask: whether its row has such a mask.
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
    edit_mask: bytes | None = None
    has_edit_mask: bool = False

    @property
    def group_id(self) -> bytes:
        return self.edits[0].key.group_id

    @property
    def source_id(self) -> bytes:
        return self.edits[0].key.source_id

    def inputs_of(self, edit: PlannedEdit) -> EditInputs:
        """What the editor gets for an edit besides its prompts. Its noise is that of its id, so
        that it does not depend on the other edits."""
        if self.parameters.editor is None and self.parameters.inside is None:
            return NOTHING
        return EditInputs(
            seed=int.from_bytes(edit.key.edit_id[:8]) >> 1,
            mask=self._edited_pixels,
            blend_words=edit.blend_words,
            region_prompts=edit.region_prompts,
        )

    def not_applicable(self, edit: PlannedEdit) -> str:
        """Why the editor cannot make an edit, "" if it can."""
        if self._useless_mask:
            return self._useless_mask
        if lacks := lacks_prompt(self.parameters.method, edit.key.target_prompt):
            return lacks
        inputs = self.inputs_of(edit)
        if self.failure and self.has_edit_mask:  # which was not read
            inputs = replace(inputs, mask=np.ones((1, 1), np.bool_))
        return self.parameters.not_applicable(
            self.source_prompt,
            edit.key.target_prompt,
            inputs,
            synthetic=self.image is None and not self.failure,
        )

    @cached_property
    def _useless_mask(self) -> str:
        """Why its mask is none to edit with, in words; "" if it is, and without one."""
        mask, inside = self._edited_pixels, self.parameters.inside
        if mask is None:
            return ""
        if inside is not None and self.fit is not None:
            return binds_nothing(edited_area(mask, self.fit, inside), self.fit)
        if mask.any():
            return ""
        return "edit_mask is black all over the fitted image, so there is nothing to edit"

    @cached_property
    def _edited_pixels(self) -> NDArray[np.bool_] | None:
        """(height_px, width_px)."""
        if self.edit_mask is None:
            return None
        with Image.open(io.BytesIO(self.edit_mask)) as mask:
            return object_of(np.asarray(mask))

    @classmethod
    def from_row(cls, place: int, row: dict[str, Any]) -> Group:
        parameters = EditParameters.from_dict(json.loads(row["parameters"]))
        size = (parameters.width_px, parameters.height_px)
        pixels, masks = row["pixels"], list(row.get("masks") or ())
        edit_mask = masks.pop()["png"] if row.get(EDIT_MASK) and masks else None
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
            regions=Regions.of_masks(masks),
            edit_mask=edit_mask,
            has_edit_mask=bool(row.get(EDIT_MASK)),
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
    words, regions = edit.get(BLEND_WORDS), edit.get(REGION_PROMPTS)
    return PlannedEdit(
        key,
        tuple(edit["labels"] or ()),
        tuple(words) if words else None,
        RegionPrompts(*regions) if regions else None,
    )
