"""Prompt templates: a template and lists of labels become the edits of a manifest row."""

from __future__ import annotations

import string
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Self

from fpe_core import EditMethod
from pipeline.manifest.words import are_equal_numbers

SOURCE_PREFIX = "source_"
"""Prefix of a column that a label replaces, both in the output and in templates."""


class TemplateError(ValueError):
    """A template is not valid, or a row has no value for one of its fields."""


@dataclass(frozen=True)
class Template:
    """Text with {fields}; {{ and }} are literal braces. Fields are plain names, without formats or
    attributes."""

    text: str
    parts: tuple[tuple[str, str], ...]  # (literal text, name of the field after it or "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises TemplateError; the message quotes the template and the problem."""
        if not text.strip():
            raise TemplateError("the template is empty")
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"template {text!r}: {error}; write {{{{ for a brace") from error
        parts: list[tuple[str, str]] = []
        for literal, field, spec, conversion in pieces:
            if field is not None and (spec or conversion or not field.isidentifier()):
                written = (
                    field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                )
                raise TemplateError(
                    f"template {text!r}: {{{written}}} does not name a label or column"
                )
            parts.append((literal, field or ""))
        return cls(text, tuple(parts))

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(name for _, name in self.parts if name)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced. Raises TemplateError if a value is missing."""
        missing = sorted(name for name in self.fields if not values.get(name, "").strip())
        if missing:
            names = ", ".join(f"{{{name}}}" for name in missing)
            raise TemplateError(f"the template needs {names}, which is empty here")
        return "".join(literal + (values[name] if name else "") for literal, name in self.parts)


def lacks_prompt(method: EditMethod, prompt: str) -> str:
    """Why an edit with such a prompt is not applicable, "" if it is: its row has only a prompt for
    editors that read prompts of the other kind."""
    if prompt:
        return ""
    return "no instruction" if method.prompts == "instruction" else "no target prompt"


@dataclass(frozen=True)
class PromptPlan:
    """A job's prompts section, parsed once: turns a row's column values into its edits."""

    target: Template
    source: Template | None
    label_names: tuple[str, ...]
    combinations: tuple[tuple[str, ...], ...]
    skip_unchanged: bool

    def values_of(self, label: str) -> tuple[str, ...]:
        """The new values of a label, each once."""
        place = self.label_names.index(label)
        return tuple(dict.fromkeys(labels[place] for labels in self.combinations))

    def columns(self, manifest_columns: frozenset[str]) -> frozenset[str]:
        """The manifest columns whose values `expand` and `source_prompt` need.

        Raises TemplateError for a field that is neither a label nor a column.
        """
        needed = set(self.label_names) & manifest_columns
        for template, labels in ((self.target, frozenset(self.label_names)), (self.source, None)):
            for name in () if template is None else sorted(template.fields):
                if labels is not None and name in labels:
                    continue
                column = self._column_of(name, manifest_columns)
                if column is None:
                    known = sorted(manifest_columns | (labels or frozenset()))
                    where = "a label or manifest column" if labels is not None else "a column"
                    raise TemplateError(
                        f"the template names {{{name}}}, which is not {where}; "
                        f"there are {', '.join(known)}"
                    )
                needed.add(column)
        return frozenset(needed)

    def _column_of(self, name: str, manifest_columns: frozenset[str]) -> str | None:
        if name in manifest_columns:
            return name
        column = name.removeprefix(SOURCE_PREFIX)
        is_replaced = column in self.label_names and column in manifest_columns
        return column if column != name and is_replaced else None

    def expand(
        self, row: Mapping[str, str], numbers: Container[str] = frozenset()
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The edits of a row as (target prompt, values of the labels), in the job's order.

        `row` maps columns to text, "" for null. `numbers`: the columns whose values are compared as
        numbers: a label 1.50 does not change 1.5. Raises TemplateError.
        """
        own = tuple(row.get(name) for name in self.label_names)
        fractions = [name in numbers for name in self.label_names]
        values = self._values(row)
        edits = []
        for labels in self.combinations:
            if self.skip_unchanged and labels and all(map(_is_same, labels, own, fractions)):
                continue
            values.update(zip(self.label_names, labels, strict=True))
            edits.append((self.target.fill(values), labels))
        return tuple(edits)

    def source_prompt(self, row: Mapping[str, str]) -> str | None:
        """The source prompt of a row; None if the job has no template for it."""
        return None if self.source is None else self.source.fill(self._values(row))

    def _values(self, row: Mapping[str, str]) -> dict[str, str]:
        replaced = {SOURCE_PREFIX + n: row[n] for n in self.label_names if n in row}
        return {**replaced, **row}


def _is_same(label: str, own: str | None, is_fraction: bool) -> bool:
    return label == own or (is_fraction and own is not None and are_equal_numbers(label, own))
