"""The job file's `prompts`: target prompts from a template and lists of labels."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.job.section import Section
from pipeline.manifest.prompts import PromptPlan, Template, TemplateError

MAX_COMBINATIONS = 10_000


class PromptsSection(Section):
    """Edits made by expanding one template with lists of labels."""

    target: str = Field(
        description="target prompt; {name} is a label or a manifest column; if a label has the "
        "name of a column, {source_<label>} is the column's own value; {{ and }} are braces"
    )
    source: str | None = Field(
        default=None,
        description="source prompt, from manifest columns; null: the column source_prompt, or an "
        "empty prompt if there is none",
    )
    labels: dict[str, list[str]] = Field(
        default_factory=dict,
        description="a list of values for each label; each label becomes an output column",
    )
    combine: Literal["product", "zip"] = Field(
        default="product",
        description="product: every combination; zip: first with first, and so on",
    )
    skip_unchanged: bool = Field(
        default=True, description="drop the edit whose labels all equal the row's own columns"
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, values in labels.items():
            if not name.isidentifier():
                raise ValueError(f"label {name!r} is not a valid name; use letters, digits and _")
            if not values:
                raise ValueError(f"label {name} has no values")
            if any(not value.strip() for value in values):
                raise ValueError(f"label {name} has an empty value")
        return labels

    @model_validator(mode="after")
    def _check_templates(self) -> Self:
        try:
            target = Template.parse(self.target)
            if self.source is not None:
                Template.parse(self.source)
        except TemplateError as error:
            raise ValueError(str(error)) from error
        for name, values in self.labels.items():
            if len(values) > 1 and name not in target.fields and self.combine == "product":
                raise ValueError(
                    f"label {name} has {len(values)} values, and the target template does not "
                    f"name it, so its edits would be the same: add {{{name}}} to the template"
                )
        lengths = {name: len(values) for name, values in self.labels.items()}
        if self.combine == "zip" and len(set(lengths.values())) > 1:
            raise ValueError(f"combine: zip needs lists of one length, these have {lengths}")
        if math.prod(lengths.values()) > MAX_COMBINATIONS and self.combine == "product":
            raise ValueError(f"the labels make more than {MAX_COMBINATIONS} edits of each row")
        combinations = self.combinations()
        if len(set(combinations)) < len(combinations):
            raise ValueError("a combination of label values appears twice")
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def combinations(self) -> tuple[tuple[str, ...], ...]:
        """The label values of each edit of a row, in the order of `label_names`; one () without
        labels."""
        if self.combine == "zip" and self.labels:
            return tuple(zip(*self.labels.values(), strict=True))
        return tuple(product(*self.labels.values()))

    def to_plan(self) -> PromptPlan:
        """This section as a plan, with its templates parsed."""
        return PromptPlan(
            target=Template.parse(self.target),
            source=None if self.source is None else Template.parse(self.source),
            label_names=self.label_names,
            combinations=self.combinations(),
            skip_unchanged=self.skip_unchanged,
        )
