"""A source and its edits, as they travel: one row of the work list with its pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fpe_core import EditParameters, Fit
from pipeline.outcome import EditKey
from pipeline.regions import Regions


@dataclass(frozen=True)
class PlannedEdit:
    """One edit of a work row."""

    key: EditKey
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class Group:
    """One decoded work row: a source and its edits. `place` is its row in the block.

    `message` says why it failed; where `failure` is "", what was done to the source's colours.
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
