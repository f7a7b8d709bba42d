"""The manifest's column of masks: found, checked, read; and what the output says of each mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.image_cell import ImageCell
from pipeline.manifest import KNOWN_COLUMNS, Manifest, is_image_type, plain_type
from pipeline.storage import resolve_uri

MOST_MASKS = 1000
"""Of one row. Each is a file of its own, fetched and decoded one after another."""

MASK_SOURCE_TYPE = pa.struct(
    [pa.field("uri", pa.string(), nullable=False), pa.field("bytes", pa.binary())]
)
"""A mask in the work list: an absolute URI, or "" and its bytes."""

FITTED_MASK_TYPE = pa.struct(
    [
        pa.field("png", pa.binary(), nullable=False),
        pa.field("visible", pa.float64(), nullable=False),
    ]
)
"""A mask as `decode` leaves it: fitted, as PNG, and the share of its object that is left."""


@dataclass(frozen=True)
class MaskSource:
    """Where a mask is. `uri` is absolute, "" where the manifest has the bytes."""

    uri: str
    data: bytes | None


@dataclass(frozen=True)
class MaskColumn:
    """Where the masks are. `is_list`: a row has a list of masks; else one."""

    column: str
    is_list: bool

    @classmethod
    def find(cls, manifest: Manifest, column: str) -> Self:
        """Raises JobError where there is no such column, or one without masks."""
        if column in KNOWN_COLUMNS:
            raise JobError(f"annotations.masks.column: {column} has a meaning of its own")
        kinds = {
            _shape_of(plain_type(file.schema.field(column).type))
            for file in manifest.files
            if column in file.schema.names
        } - {None}
        if not kinds:
            known = sorted(manifest.columns - set(KNOWN_COLUMNS))
            raise JobError(
                f"annotations.masks.column: the manifest has no column {column!r}, or it has only "
                f"nulls; there are {', '.join(known) or 'none that could be'}"
            )
        if len(kinds) > 1 or "other" in kinds:
            raise JobError(
                f"annotations.masks.column: {column!r} must be text (a URI), bytes or "
                "struct<bytes: binary, path: string>, or a list of one of these, and the same in "
                "every file"
            )
        return cls(column, is_list=kinds == {"list"})

    @property
    def name(self) -> str:
        """What its output columns are called after."""
        return "mask"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output's columns: `datasets` opens the first as image, or images, called mask."""

        def of_each(kind: pa.DataType) -> pa.DataType:
            return pa.list_(kind) if self.is_list else kind

        ending = "file_names" if self.is_list else "file_name"
        return (
            pa.field(f"{self.name}_{ending}", of_each(pa.string())),
            pa.field(f"{self.name}_verdict", of_each(pa.string())),
            pa.field(f"{self.name}_structure", of_each(pa.float64())),
            pa.field(f"{self.name}_visible", of_each(pa.float64())),
        )

    def masks(self, cell: Any, base: str) -> tuple[MaskSource, ...]:
        """The masks of a cell, none for null; relative URIs are relative to `base`.

        Raises ValueError for an empty place in a list, and for more than `MOST_MASKS`.
        """
        found = [ImageCell.of(value) for value in (cell or ())] if self.is_list else []
        if not self.is_list and not (single := ImageCell.of(cell)).is_empty:
            found = [single]
        if len(found) > MOST_MASKS:
            raise ValueError(
                f"{self.column} has {len(found)} masks; a row may have {MOST_MASKS}: put the "
                "objects of a picture into one mask"
            )
        for number, each in enumerate(found):
            if each.is_empty:
                raise ValueError(f"{self.column} is empty (number {number} of its list)")
        return tuple(
            MaskSource(resolve_uri(each.uri, base) if each.uri else "", each.data) for each in found
        )

    def columns(self, per_mask: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """Values by output column of one row, from those of each mask in the order of `fields`."""
        names = [item.name for item in self.fields]
        if not self.is_list:
            values = per_mask[0] if per_mask else (None,) * len(names)
            return dict(zip(names, values, strict=True))
        by_column = zip(*per_mask, strict=True) if per_mask else ([] for _ in names)
        return {name: list(values) for name, values in zip(names, by_column, strict=True)}


def mask_names(metadata: pa.Table) -> list[list[str]]:
    """The mask files of each row of a part's metadata, within the part."""
    if "mask_file_name" in metadata.column_names:
        return [[name] if name else [] for name in metadata["mask_file_name"].to_pylist()]
    if "mask_file_names" in metadata.column_names:
        return [names or [] for names in metadata["mask_file_names"].to_pylist()]
    return [[] for _ in range(len(metadata))]


def _shape_of(kind: pa.DataType) -> str | None:
    """One of "one", "list" and "other"; None for a column of nulls."""
    if pa.types.is_null(kind):
        return None
    if is_image_type(kind):
        return "one"
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return "list" if is_list and is_image_type(plain_type(kind.value_type)) else "other"
