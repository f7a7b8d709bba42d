"""The manifest's columns of boxes and masks: finds, checks and reads them, and defines the output
columns that hold the box or mask in the edit, its verdict and its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from fpe_core.errors import ParameterError
from fpe_core.image.boxes import Box
from fpe_core.judging.region_verdict import BOX_RULE, MASK_RULE, VerdictRule
from pipeline.errors import JobError
from pipeline.manifest.arrow_types import is_json, is_list, is_text, plain_type
from pipeline.manifest.columns import KNOWN_COLUMNS, ImageCell, is_image_type
from pipeline.manifest.files import Manifest
from pipeline.manifest.words import is_fraction
from pipeline.storage.folder import resolve_uri

_SHARE_TOLERANCE = 0.05
_EXPECTED = (
    "one box (a list of four numbers) or a list of boxes; of structs name the field, such as "
    "objects.bbox"
)


@dataclass(frozen=True)
class BoxColumn:
    """The manifest's column of boxes.

    Attributes:
        path: a column and the struct fields below it.
        box_format: how the four numbers of a box are read, see `fpe_core.image.boxes`.
        is_list: True if a row has a list of boxes, False if it has one box.
        has_fractions: whether the type of the numbers has fractions; only then can they be shares
            of the picture.
    """

    path: tuple[str, ...]
    box_format: str
    is_list: bool
    has_fractions: bool = False

    @classmethod
    def find(
        cls, schema: pa.Schema, column: str, box_format: str, key: str = "annotations.boxes.column"
    ) -> Self:
        """Raises JobError if there is no such column, or if it does not hold boxes.

        `key`: of the job file, for messages.
        """
        path = (column,) if column in schema.names else tuple(column.split("."))
        if path[0] not in schema.names:
            raise JobError(
                f"{key}: the manifest has no column {path[0]!r}; there are "
                f"{', '.join(schema.names) or 'none that could be'}"
            )
        kind, lists = _plain_list(schema.field(path[0]).type)
        for name in path[1:]:
            if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
                raise JobError(
                    f"{key}: {column!r} is not in the manifest: no field {name!r} in {kind}"
                )
            kind, more = _plain_list(kind.field(name).type)
            lists += more
        if not _is_number(kind) or lists not in (1, 2):
            found = schema.field(path[0]).type
            raise JobError(
                f"{key}: {column!r} must be {_EXPECTED}; it is {found}"
                + (" (JSON has to be written as lists)" if is_text(kind) else "")
            )
        return cls(path, box_format, lists == 2, has_fractions=is_fraction(kind))

    @property
    def name(self) -> str:
        """The name from which the names of its output columns are made."""
        return "_".join(self.path)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output's columns: box in the edited image, verdict, structure, visible share."""

        def of_each(kind: pa.DataType) -> pa.DataType:
            return pa.list_(kind) if self.is_list else kind

        return (
            pa.field(f"edited_{self.name}", of_each(pa.list_(pa.float64()))),
            pa.field(f"{self.name}_verdict", of_each(pa.string())),
            pa.field(f"{self.name}_structure", of_each(pa.float64())),
            pa.field(f"{self.name}_visible", of_each(pa.float64())),
        )

    def cells(self, table: pa.Table) -> list[Any]:
        """The column's cells, one per row: None, a box, or a list of boxes; not checked."""
        values: list[Any] = table[self.path[0]].to_pylist()
        for name in self.path[1:]:
            values = [_field_of(value, name) for value in values]
        return values

    def boxes(self, cell: Any) -> tuple[Box, ...] | None:
        """The boxes of a cell; None for null.

        Raises ParameterError for an invalid box; the message has its place in the list.
        """
        if cell is None:
            return None
        boxes = []
        for number, values in enumerate(cell if self.is_list else [cell]):
            try:
                if values is None:
                    raise ParameterError("a box has four numbers, this one is null")
                boxes.append(Box.read(values, self.box_format))
            except ParameterError as error:
                where = f" (number {number} of its list)" if self.is_list else ""
                raise ParameterError(f"{'.'.join(self.path)}: {error}{where}") from error
        return tuple(boxes)

    def may_be_shares(self, boxes: Sequence[Box]) -> bool:
        """Whether all of these boxes lie within 0..1, but for rounding. In pixels that is the
        corner of the picture."""
        least, most = -_SHARE_TOLERANCE, 1 + _SHARE_TOLERANCE
        return self.has_fractions and all(
            least <= value <= most
            for box in boxes
            for value in (box.left, box.top, box.right, box.bottom)
        )

    def columns(self, per_box: Sequence[tuple[Any, ...]] | None) -> dict[str, Any]:
        """The values of one output row by column. `per_box`: for each box, its values in the order
        of `fields`; None for a row without boxes."""
        names = [item.name for item in self.fields]
        if per_box is None:
            return dict.fromkeys(names)
        if not self.is_list:
            return dict(zip(names, per_box[0], strict=True))
        by_column = zip(*per_box, strict=True) if per_box else ([] for _ in names)
        return {name: list(values) for name, values in zip(names, by_column, strict=True)}


def _plain_list(kind: pa.DataType) -> tuple[pa.DataType, int]:
    """The type inside nested lists, and how many lists are around it."""
    lists = 0
    while is_list(kind):
        kind, lists = kind.value_type, lists + 1
    return kind, lists


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind)) or is_fraction(kind)


def _field_of(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_field_of(each, name) for each in value]
    return None if value is None else value[name]


MOST_MASKS = 1000
"""The most masks of one row. Each is a file of its own; they are fetched one after another."""

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
"""A mask as `decode` returns it: fitted, as PNG, and the visible share of its object."""


@dataclass(frozen=True)
class MaskSource:
    """One mask of the manifest. `uri` is absolute, or "" if the manifest has the bytes (`data`)."""

    uri: str
    data: bytes | None


@dataclass(frozen=True)
class MaskColumn:
    """The manifest's column of masks. `is_list`: a row has a list of masks, else one mask."""

    column: str
    is_list: bool

    @classmethod
    def find(cls, manifest: Manifest, column: str) -> Self:
        """Raises JobError if there is no such column, or if it does not hold masks."""
        if column in KNOWN_COLUMNS:
            raise JobError(f"annotations.masks.column: {column} has a meaning of its own")
        there = [f.schema.field(column).type for f in manifest.files if column in f.schema.names]
        kinds = {_shape_of(kind) for kind in there} - {None}
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
        """The name from which the names of its output columns are made."""
        return "mask"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output's columns. `datasets` opens the first as an image (or images) called mask."""

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
        """The masks of a cell, none for null. Relative URIs are resolved against `base`.

        Raises ValueError for an empty entry of a list, and for more than `MOST_MASKS` masks.
        """
        found = [ImageCell.of(value) for value in (cell or ())] if self.is_list else []
        if not self.is_list and not (single := ImageCell.of(cell)).is_empty:
            found = [single]
        if len(found) > MOST_MASKS:
            raise ValueError(
                f"{self.column} has {len(found)} masks; a row may have {MOST_MASKS}: put the "
                "objects of an image into one mask"
            )
        for number, each in enumerate(found):
            if each.is_empty:
                raise ValueError(f"{self.column} is empty (number {number} of its list)")
        return tuple(
            MaskSource(resolve_uri(each.uri, base) if each.uri else "", each.data) for each in found
        )

    def columns(self, per_mask: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """The values of one output row by column. `per_mask`: for each mask, its values in the
        order of `fields`."""
        names = [item.name for item in self.fields]
        if not self.is_list:
            values = per_mask[0] if per_mask else (None,) * len(names)
            return dict(zip(names, values, strict=True))
        by_column = zip(*per_mask, strict=True) if per_mask else ([] for _ in names)
        return {name: list(values) for name, values in zip(names, by_column, strict=True)}


def mask_names(metadata: pa.Table) -> list[list[str]]:
    """The mask files of each row of a part's metadata, relative to the part."""
    if "mask_file_name" in metadata.column_names:
        return [[name] if name else [] for name in metadata["mask_file_name"].to_pylist()]
    if "mask_file_names" in metadata.column_names:
        return [names or [] for names in metadata["mask_file_names"].to_pylist()]
    return [[] for _ in range(len(metadata))]


def _shape_of(kind: pa.DataType) -> str | None:
    """One of "one", "list" and "other"; None for a column of nulls."""
    plain = plain_type(kind)
    if pa.types.is_null(plain):
        return None
    if is_image_type(plain):
        return "other" if is_json(kind) else "one"
    return "list" if is_list(plain) and is_image_type(plain.value_type) else "other"


@dataclass(frozen=True)
class AnnotationSettings:
    """The manifest's columns of boxes and masks, and the rules of their verdicts. Picklable."""

    boxes: BoxColumn | None = None
    masks: MaskColumn | None = None
    box_rule: VerdictRule = BOX_RULE
    mask_rule: VerdictRule = MASK_RULE

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output's columns."""
        return tuple(
            item for column in (self.boxes, self.masks) if column for item in column.fields
        )
