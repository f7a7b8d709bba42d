"""The manifest's columns for what an editing method uses besides an image and its prompts.

    edit_mask     where the image is edited: black is kept; of the size of the upright image
    blend_words   words of the source prompt and of the target prompt that say what is edited: a
                  list of the two, a struct with source and target, or a list of these, one for
                  each target prompt
    source_inside, source_outside, target_inside, target_outside
                  see `pipeline.manifest.region_columns`
    strength      how much is changed, 0 to 1, in the place of the editor's own

With masks that bind (a job's `edit.inside`) the mask has another column if the job says so, or is
drawn from a column of boxes; it is then read for every editor.

A column is only read if the job's editor uses it; for other editors it is carried like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import pyarrow as pa

from fpe_core import EditMethod
from fpe_core.image.boxes import Box
from pipeline.errors import JobError
from pipeline.manifest.annotations import BoxColumn, MaskColumn, MaskSource
from pipeline.manifest.arrow_types import is_json, is_list, is_text, plain_type
from pipeline.manifest.columns import KNOWN_COLUMNS, are_prompts, is_image_type
from pipeline.manifest.files import Manifest
from pipeline.manifest.region_columns import REGION_COLUMNS, region_prompts_of
from pipeline.manifest.words import is_fraction

EDIT_MASK, BLEND_WORDS, STRENGTH = "edit_mask", "blend_words", "strength"
EDIT_BOXES = "edit_boxes"
"""The work list's column with boxes from which a mask is drawn."""
_COLUMNS_OF = {
    "mask": (EDIT_MASK,),
    "blend_words": (BLEND_WORDS,),
    "region_prompts": REGION_COLUMNS,
}
CARRIED_INPUTS = (BLEND_WORDS, *REGION_COLUMNS, STRENGTH)
"""Of the columns that are read for an editor, those that are carried to its edits too."""
BlendWords: TypeAlias = tuple[str, str]
"""Words of the source prompt, and those of the target prompt."""
_PAIR = ("source", "target")


def input_columns(
    method: EditMethod | None, binding: BindingColumn | None = None
) -> tuple[str, ...]:
    """The columns that the job's editor reads if a manifest has them; None: it has no editor.

    `binding`: where the masks are that bind its edits. A column of boxes is not among them.
    """
    used = frozenset[str]() if method is None else method.needs | method.takes
    if binding is not None:
        used -= {"mask"}
    names = [name for need, columns in _COLUMNS_OF.items() if need in used for name in columns]
    if binding is not None and binding.mask:
        names.append(binding.mask)
    return (*names, *([STRENGTH] if hasattr(method, STRENGTH) else []))


@dataclass(frozen=True)
class BindingColumn:
    """Where a job says that the masks are that bind its edits.

    Attributes:
        mask: a column of masks; "" if there are boxes.
        boxes: else a column of boxes, or a field of one, and how its numbers are read.
        box_format: see `fpe_core.image.boxes`.
    """

    mask: str = ""
    boxes: str = ""
    box_format: str = "xywh"


@dataclass(frozen=True)
class EditMask:
    """Where an image is edited: a mask, or boxes of the upright original.

    `key`: what identifies it in ids.
    """

    source: MaskSource | None
    key: tuple[str, str]
    boxes: tuple[Box, ...] = ()

    @classmethod
    def of_boxes(cls, boxes: Sequence[Box]) -> Self | None:
        """None without boxes."""
        numbers = [each.write("xyxy") for each in boxes]
        key = ("boxes", json.dumps(numbers, separators=(",", ":")))
        return cls(None, key, tuple(boxes)) if boxes else None


@dataclass(frozen=True)
class InputColumns:
    """Those of the columns that the manifest has and the job's editor uses. Picklable."""

    mask: MaskColumn | None = None
    has_blend_words: bool = False
    has_strength: bool = False
    has_region_prompts: bool = False
    boxes: BoxColumn | None = None

    @property
    def has_masks(self) -> bool:
        """Whether the edits of a row may have a mask, drawn or from boxes."""
        return self.mask is not None or self.boxes is not None

    def of_edits(self, known: Mapping[str, Any], prompts: int) -> list[dict[str, Any]]:
        """What each edit of a row has in these columns, as attributes of a `WantedEdit`.

        Raises ValueError, with the column's name.
        """
        found: list[dict[str, Any]] = [{} for _ in range(prompts)]
        if self.has_blend_words:
            for each, words in zip(found, blend_words_of(known[BLEND_WORDS], prompts), strict=True):
                each["blend_words"] = words
        if self.has_region_prompts:
            for each, four in zip(found, region_prompts_of(known, prompts), strict=True):
                each["region_prompts"] = four
        return found

    @classmethod
    def find(
        cls, manifest: Manifest, method: EditMethod | None, binding: BindingColumn | None = None
    ) -> Self:
        """Raises JobError if a column has another type than it must have, or if the manifest has
        none with masks that bind."""
        found = cls._of_editor(manifest, method, "" if binding is None else binding.mask)
        if binding is None:
            return found
        if binding.boxes:
            column = BoxColumn.find(
                manifest.carried_schema, binding.boxes, binding.box_format, "edit.inside.boxes"
            )
            return replace(found, mask=None, boxes=column)
        if binding.mask in KNOWN_COLUMNS:
            raise JobError(f"edit.inside.column: {binding.mask} has a meaning of its own")
        if binding.mask not in manifest.columns:
            others = sorted(manifest.columns - set(KNOWN_COLUMNS))
            raise JobError(
                f"edit.inside.column: the manifest has no column {binding.mask!r}; there are "
                f"{', '.join(others) or 'none that could be'}"
            )
        return found

    @classmethod
    def _of_editor(cls, manifest: Manifest, method: EditMethod | None, bound: str) -> Self:
        """`bound`: the column of masks that bind, or ""."""
        mask_column = bound or EDIT_MASK
        wanted = {
            mask_column: (_is_mask, "text (a URI), bytes or struct<bytes: binary, path: string>"),
            BLEND_WORDS: (
                _are_words,
                "a list of two texts, struct<source: string, target: string>, or lists of these",
            ),
            STRENGTH: (_is_number, "numbers"),
            **dict.fromkeys(REGION_COLUMNS, (_are_prompts, "text or lists of it")),
        }
        there = []
        for name in input_columns(method, BindingColumn(mask=bound) if bound else None):
            kinds = [f.schema.field(name).type for f in manifest.files if name in f.schema.names]
            fits, expected = wanted[name]
            for kind in kinds:
                if method is not None and not fits(kind):
                    reader = "edit.inside" if name == bound else f"the editor {method.name}"
                    raise JobError(
                        f"the manifest's column {name} is read for {reader} and must be "
                        f"{expected}; it is {kind}"
                    )
            if not all(pa.types.is_null(plain_type(kind)) for kind in kinds):
                there.append(name)
        return cls(
            MaskColumn(mask_column, is_list=False) if mask_column in there else None,
            BLEND_WORDS in there,
            STRENGTH in there,
            any(name in there for name in REGION_COLUMNS),
        )


def blend_words_of(value: Any, prompts: int) -> list[BlendWords | None]:
    """The words of each edit of a row; a pair is that of all edits, null and "" mean none.

    Raises ValueError, with the column's name.
    """
    if value is None or _is_pair(value):
        return [_pair(value)] * prompts
    if len(value) != prompts:
        raise ValueError(f"{BLEND_WORDS} has {len(value)} pairs for {prompts} target prompts")
    return [_pair(each) for each in value]


def _is_pair(value: Any) -> bool:
    is_texts = isinstance(value, list) and any(isinstance(each, str) for each in value)
    return isinstance(value, Mapping) or is_texts


def _pair(value: Any) -> BlendWords | None:
    words: Sequence[Any] = [] if value is None else value
    if isinstance(value, Mapping):
        words = [value[name] for name in _PAIR]
    given = [str(each or "").strip() for each in words]
    if not any(given):
        return None
    if len(given) != 2 or not all(given):
        raise ValueError(
            f"{BLEND_WORDS} must be words of the source prompt and of the target prompt, got "
            f"{list(words)!r}"
        )
    return given[0], given[1]


def _is_mask(kind: pa.DataType) -> bool:
    plain = plain_type(kind)
    return bool(pa.types.is_null(plain)) or (is_image_type(plain) and not is_json(kind))


def _are_words(kind: pa.DataType) -> bool:
    plain = plain_type(kind)
    if is_list(plain) and (_is_pair_type(plain.value_type) or pa.types.is_null(plain.value_type)):
        return True
    return bool(pa.types.is_null(plain)) or _is_pair_type(plain)


def _is_pair_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        return types.keys() == set(_PAIR) and all(map(_is_text, types.values()))
    return is_list(kind) and _is_text(kind.value_type)


def _are_prompts(kind: pa.DataType) -> bool:
    return are_prompts(plain_type(kind))


def _is_text(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_null(kind))


def _is_number(kind: pa.DataType) -> bool:
    return is_fraction(kind) or bool(pa.types.is_integer(kind) or pa.types.is_null(kind))
