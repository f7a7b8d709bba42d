"""The job file's `quotas`: how many accepted edits each combination of values gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from pipeline.job.section import Section, tuple_from_list


class CellSection(Section):
    """A quota for some of the cells."""

    where: dict[str, str | int | float | bool | None] = Field(
        min_length=1, description="values of columns in `by`; other columns may have any value"
    )
    accepted: int = Field(ge=0, description="accepted edits that each such cell gets")


class QuotaSection(Section):
    """How many accepted edits each combination of values gets."""

    by: Annotated[tuple[str, ...], BeforeValidator(tuple_from_list)] = Field(
        min_length=1,
        description="labels and manifest columns; each combination of their values is a cell",
    )
    accepted: int | None = Field(
        default=None,
        ge=0,
        description="accepted edits that every cell gets, in the order of the manifest; no more "
        "are made; null: no limit except those of `cells`",
    )
    cells: list[CellSection] = Field(
        default_factory=list,
        description="quotas of single cells, {where: {colour: red}, accepted: 20}; the first that "
        "fits a cell is used",
    )

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        if len(set(self.by)) < len(self.by):
            raise ValueError("by names a column twice")
        if self.accepted is None and not self.cells:
            raise ValueError("no quota is given: set accepted, or cells")
        for cell in self.cells:
            for name in cell.where:
                if name not in self.by:
                    raise ValueError(f"cells: {name} is not among by ({', '.join(self.by)})")
        return self

    def to_quotas(self) -> Quotas:
        cells = tuple(
            ({name: cell_text(value) for name, value in cell.where.items()}, cell.accepted)
            for cell in self.cells
        )
        return Quotas(self.by, self.accepted, cells)


Cell: TypeAlias = tuple[str, ...]
"""A cell: its values, in the order of `Quotas.by`; "" for an empty value."""


@dataclass(frozen=True)
class Quotas:
    """How many accepted edits each cell gets; None: no limit.

    `cells` has pairs of (values of some columns, quota). The first that fits a cell is its quota;
    `accepted` is the quota of all other cells.
    """

    by: tuple[str, ...]
    accepted: int | None
    cells: tuple[tuple[Mapping[str, str], int], ...] = ()

    def quota_of(self, cell: Cell) -> int | None:
        values = self.values_of(cell)
        for where, accepted in self.cells:
            if where.items() <= values.items():
                return accepted
        return self.accepted

    def values_of(self, cell: Cell) -> dict[str, str]:
        return dict(zip(self.by, cell, strict=True))


def cell_text(value: Any) -> str:
    """A column's value as text for a cell. 3 and 3.0 give the same text; empty values give ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
