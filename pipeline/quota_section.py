"""The job file's `quotas`: how many accepted edits each combination of values gets."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.quotas import Quotas, cell_text
from pipeline.section import Section, tuple_from_list


class CellSection(Section):
    """A number for some of the cells."""

    where: dict[str, str | int | float | bool | None] = Field(
        min_length=1, description="columns of `by` with their values; those left out may be any"
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
        description="accepted edits that every cell gets, the first in the order of the manifest; "
        "what is beyond is not made; null: no limit but those of `cells`",
    )
    cells: list[CellSection] = Field(
        default_factory=list,
        description="cells with numbers of their own, {where: {colour: red}, accepted: 20}; the "
        "first that fits counts",
    )

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        if len(set(self.by)) < len(self.by):
            raise ValueError("by names a column twice")
        if self.accepted is None and not self.cells:
            raise ValueError("there is no number: give accepted, or cells with theirs")
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
