"""Boxes of the manifest's rows: read, checked, and found out if they are shares of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fpe_core.errors import ParameterError
from fpe_core.image.boxes import Box
from pipeline.manifest.annotations import BoxColumn
from pipeline.manifest.files import ManifestFile


class RowBoxes:
    """Reads the boxes of one column, row by row; what all rows together show is told at the end."""

    def __init__(self, column: BoxColumn) -> None:
        self._column = column
        self._has_pixels = False
        self._first: int | None = None

    def cells(self, carried: pa.Table) -> list[Any]:
        """The column's cells, one per row, not checked. `carried`: the rows' carried columns."""
        return self._column.cells(carried)

    def read(self, row: int, cell: Any, found: list[str]) -> tuple[Box, ...]:
        """The boxes of a row, none for null. What is wrong with one is added to `found`."""
        try:
            boxes = self._column.boxes(cell) or ()
        except ParameterError as error:
            found.append(str(error))
            return ()
        if any(box.area for box in boxes):
            self._has_pixels = self._has_pixels or not self._column.may_be_shares(boxes)
            if self._first is None:
                self._first = row
        return boxes

    def finish(self, files: Sequence[ManifestFile]) -> tuple[ManifestFile, int, str] | None:
        """After the last row: the first row with boxes, its file, and what is wrong with all of
        them; None if nothing is."""
        if self._has_pixels or self._first is None:
            return None
        row = self._first
        file = next(each for each in reversed(files) if each.first_row <= row)
        return (
            file,
            row,
            f"{'.'.join(self._column.path)}: the boxes of this and all other rows lie within 0 to "
            "1, so they are shares of the picture, and boxes have to be in pixels: multiply them "
            "by the picture's width and height",
        )
