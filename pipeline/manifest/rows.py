"""Reads a row of the manifest into a source and its edits, and checks it."""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from fpe_core import EditParameters, ParameterError, RegionPrompts
from pipeline.errors import JobError, ManifestError
from pipeline.manifest.annotations import BoxColumn, MaskColumn, MaskSource
from pipeline.manifest.arrow_types import is_json, plain_type
from pipeline.manifest.columns import (
    EDIT_TYPE,
    KNOWN_COLUMNS,
    OTHER_PROMPT,
    PROMPT_COLUMNS,
    ImageCell,
)
from pipeline.manifest.edit_inputs import (
    STRENGTH,
    BlendWords,
    EditMask,
    InputColumns,
)
from pipeline.manifest.features import class_names, features_of
from pipeline.manifest.files import MAX_PROBLEMS, Manifest, ManifestBatch, ManifestFile
from pipeline.manifest.labels import TARGET_LABELS, are_numbers, label_words, labels_of_row
from pipeline.manifest.prompts import SOURCE_PREFIX, PromptPlan, TemplateError
from pipeline.manifest.row_boxes import RowBoxes
from pipeline.manifest.words import Words, has_words, is_fraction, whole_number, words_of
from pipeline.storage.file_uris import with_slashes
from pipeline.storage.folder import resolve_uri
from pipeline.storage.signatures import without_signature

OVERRIDES = ("steps", "guidance_scale", "negative_prompt", "replaced_fraction")
MAX_SEED = 2**63 - 1
_MAX_CACHED_PARAMETERS = 4096


@dataclass(frozen=True)
class WantedEdit:
    """One edit of a row: its prompt, and the values of the labels, in the order of the labels.

    `edit_type` is set if the manifest has a list with one type per edit, else "". `blend_words` and
    `region_prompts` are set if the job's editor uses them. `target_prompt` is the instruction for
    an editor that reads instructions; "" if the row has only prompts for editors of the other kind.
    """

    target_prompt: str
    labels: tuple[str | None, ...] = ()
    edit_type: str = ""
    blend_words: BlendWords | None = None
    region_prompts: RegionPrompts | None = None


@dataclass(frozen=True)
class SourceRow:
    """A checked row.

    Attributes:
        uri: absolute; "" if the manifest holds the image (`image_bytes`), or if there is none
            (`is_synthetic`).
        uri_key: the form of the URI that goes into ids.
        path: the name of the image in messages.
        edits: empty if no edit of the row would change anything.
        edit_mask: where the image is edited, if the job's editor uses a mask, or a mask binds.
    """

    row: int
    id: str
    uri: str
    uri_key: str
    image_bytes: bytes | None
    path: str
    source_prompt: str
    seed: int | None
    split: str
    parameters: EditParameters
    edits: tuple[WantedEdit, ...]
    masks: tuple[MaskSource, ...] = ()
    edit_mask: EditMask | None = None

    @property
    def is_synthetic(self) -> bool:
        return not self.uri and self.image_bytes is None


@dataclass
class Problems:
    """The problems of a manifest's rows: the first MAX_PROBLEMS of them, and their total."""

    lines: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, file: ManifestFile, row: int, text: str) -> None:
        self.total += 1
        if len(self.lines) < MAX_PROBLEMS:
            self.lines.append(f"row {row} ({file.label}, row {row - file.first_row}): {text}")

    def raise_if_any(self) -> None:
        """Raises ManifestError with the problems, if there are any."""
        if self.total:
            count = "1 problem" if self.total == 1 else f"{self.total} problems"
            raise ManifestError(
                f"the manifest has {count} (rows count from 0):", self.lines, total=self.total
            )


class _Places:
    """The folders that a file's URIs are relative to, computed once per file."""

    def __init__(self, file: ManifestFile) -> None:
        self.base, self.key_base = file.base, file.key_base


class _BadRowError(ValueError):
    """One thing wrong with a row."""


class RowReader:
    """Reads the rows of a manifest for one job, in order. Remembers ids, to find repeated ones."""

    def __init__(
        self,
        manifest: Manifest,
        parameters: EditParameters,
        prompts: PromptPlan | None,
        boxes: BoxColumn | None = None,
        masks: MaskColumn | None = None,
        *,
        inputs: InputColumns | None = None,
        repeated_ids: Container[bytes] | None = None,
    ) -> None:
        """`repeated_ids`: digests (`row_id_digest`) of the ids that appear more than once, if they
        are known already; then only these are remembered.

        Raises JobError if a prompt template names something that is not a label or column.
        """
        self._parameters = parameters
        self._prompts = prompts
        self._boxes, self._masks = None if boxes is None else RowBoxes(boxes), masks
        self._inputs = inputs or InputColumns()
        edited = self._inputs.boxes
        self._edit_boxes = None if edited is None else RowBoxes(edited)
        self._rows_of_ids: dict[bytes, int] = {}
        self._repeated_ids = repeated_ids
        self._parameters_of: dict[tuple[Any, ...], EditParameters] = {}
        self._labels = tuple(item.name for item in manifest.labels)
        self._prompt_column = PROMPT_COLUMNS.get(manifest.prompts, "target_prompt")
        self._label_words: Mapping[str, Words] = {}
        self._fractions: frozenset[str] = frozenset()
        if prompts is None:
            refuse_label_names(TARGET_LABELS, self._labels, manifest.columns)
            self._text_columns = manifest.columns & frozenset(self._labels)
        else:
            self._text_columns = template_columns(manifest, prompts)

    def read(self, batch: ManifestBatch, problems: Problems) -> Iterator[SourceRow]:
        """The rows of a batch. A row with a problem is added to `problems` and left out."""
        texts = {name: self._texts_of(batch, name, problems) for name in self._text_columns}
        self._fractions = _fractions_of(batch.file.schema, self._text_columns)
        self._label_words = label_words(batch.file.schema) if self._labels else {}
        boxes = self._boxes.cells(batch.carried) if self._boxes else [None] * batch.rows
        has_drawings = self._boxes is not None or self._masks is not None
        edited = self._edit_boxes.cells(batch.carried) if self._edit_boxes else None
        names, places = tuple(batch.known), _Places(batch.file)
        for index, values in enumerate(zip(*batch.known.values(), strict=True)):
            row = batch.first_row + index
            known = dict(zip(names, values, strict=True))
            text = {name: of[index] for name, of in texts.items()}
            found: list[str] = []
            try:
                checked = self._read_row(places, row, known, text, found)
                if checked is not None and has_drawings:
                    self._check_boxes(checked, boxes[index], found)
                if checked is not None and edited is not None and self._edit_boxes:
                    drawn = self._edit_boxes.read(row, edited[index], found)
                    checked = replace(checked, edit_mask=EditMask.of_boxes(drawn))
            except _BadRowError as error:
                found.append(str(error))
                checked = None
            for problem in found:
                problems.add(batch.file, row, problem)
            if checked is not None and not found:
                yield checked

    def _read_row(
        self,
        places: _Places,
        row: int,
        known: Mapping[str, Any],
        text: Mapping[str, str],
        found: list[str],
    ) -> SourceRow | None:
        """The row; adds its problems to `found`. Raises for a problem that prevents further
        checks."""
        row_id = _id_text(known["id"])
        if row_id and self._repeated_ids != frozenset():
            self._check_id(row_id, row, found)
        seed = _whole_number("seed", known["seed"])
        if seed is not None and not 0 <= seed <= MAX_SEED:
            found.append(f"seed must be 0 to 2^63-1, got {seed}")
        parameters = self._row_parameters(known)
        source_prompt, edits = self._row_prompts(known, text)
        if self._inputs.has_blend_words or self._inputs.has_region_prompts:
            edits = _with_inputs(edits, self._inputs, known)
        image = ImageCell.of(known["image"])
        if image.is_empty and (not source_prompt.strip() or seed is None):
            raise _BadRowError("has neither an image nor both source_prompt and seed")
        return SourceRow(
            row=row,
            id=row_id,
            uri=resolve_uri(image.uri, places.base) if image.uri else "",
            uri_key=_uri_key(image.uri, places.key_base) if image.uri else "",
            image_bytes=image.data,
            path=image.path,
            source_prompt=source_prompt,
            seed=seed,
            split=known["split"] or "",
            parameters=parameters,
            edits=edits,
            masks=() if self._masks is None else self._row_masks(places, known, found),
            edit_mask=self._edit_mask(places, known),
        )

    def _edit_mask(self, places: _Places, known: Mapping[str, Any]) -> EditMask | None:
        column = self._inputs.mask
        if column is None or not (found := column.masks(known[column.column], places.base)):
            return None
        (mask,) = found
        if mask.data is not None:
            return EditMask(mask, ("bytes", hashlib.blake2b(mask.data).hexdigest()))
        cell = ImageCell.of(known[column.column])
        return EditMask(mask, ("uri", _uri_key(cell.uri, places.key_base)))

    def _row_masks(
        self, places: _Places, known: Mapping[str, Any], found: list[str]
    ) -> tuple[MaskSource, ...]:
        if self._masks is None:
            return ()
        try:
            return self._masks.masks(known[self._masks.column], places.base)
        except ValueError as error:
            found.append(str(error))
            return ()

    def _check_boxes(self, row: SourceRow, cell: Any, found: list[str]) -> None:
        """Checks the boxes of a row, and that a synthetic source has no boxes and no masks."""
        boxes = self._boxes.read(row.row, cell, found) if self._boxes else ()
        if row.is_synthetic and (boxes or row.masks):
            found.append("has boxes or masks, but no image to which they could belong")

    def finish(self, files: Sequence[ManifestFile], problems: Problems) -> None:
        """Adds the problems that only all rows together show; to be called after the last row."""
        for each in (self._boxes, self._edit_boxes):
            if each is not None and (problem := each.finish(files)):
                problems.add(*problem)

    def _check_id(self, row_id: str, row: int, found: list[str]) -> None:
        digest = row_id_digest(row_id)
        if self._repeated_ids is not None and digest not in self._repeated_ids:
            return
        first = self._rows_of_ids.setdefault(digest, row)
        if first != row:
            found.append(f"id {row_id!r} is also the id of row {first}")

    def _texts_of(self, batch: ManifestBatch, name: str, problems: Problems) -> list[str]:
        """The words of a column's values, "" for null. A value that has none is a problem."""
        schema = batch.file.schema
        if name not in schema.names:
            return [""] * batch.rows
        is_known = name in batch.known
        values = batch.known[name] if is_known else batch.carried[name].to_pylist()
        words = self._words_of(schema, name, is_read=is_known or name == EDIT_TYPE)
        texts = []
        for index, value in enumerate(values):
            try:
                texts.append(words(value))
            except ValueError as error:
                problems.add(batch.file, batch.first_row + index, f"column {name}: {error}")
                texts.append("")
        return texts

    def _words_of(self, schema: pa.Schema, name: str, *, is_read: bool) -> Words:
        """How the values of a column become words. Those of a class label are its names, unless the
        job's labels have its numbers. `is_read`: JSON and class labels are text already."""
        kind = schema.field(name).type
        classes = class_names(features_of(schema).get(name))
        if is_read and (is_json(kind) or classes):
            return _known_text
        if self._prompts is not None and name in self._prompts.label_names:
            values = self._prompts.values_of(name)
            if not set(values) <= set(classes) and are_numbers(pa.int64(), values):
                classes = ()
        return words_of(kind, classes if pa.types.is_integer(plain_type(kind)) else ())

    def _row_parameters(self, known: Mapping[str, Any]) -> EditParameters:
        strength = _number(known[STRENGTH]) if self._inputs.has_strength else None
        if strength is None and all(known[name] is None for name in OVERRIDES):
            return self._parameters
        overrides = {
            "steps": _whole_number("steps", known["steps"]),
            "guidance_scale": _number(known["guidance_scale"]),
            "negative_prompt": known["negative_prompt"],
            "replaced_fraction": _number(known["replaced_fraction"]),
        }
        key = (*overrides.values(), strength)
        if len(self._parameters_of) > _MAX_CACHED_PARAMETERS:
            self._parameters_of.clear()
        if key not in self._parameters_of:
            given = {name: value for name, value in overrides.items() if value is not None}
            try:
                self._parameters_of[key] = _with_strength(
                    replace(self._parameters, **given), strength
                )
            except ParameterError as error:
                raise _BadRowError(str(error)) from error
        return self._parameters_of[key]

    def _row_prompts(
        self, known: Mapping[str, Any], text: Mapping[str, str]
    ) -> tuple[str, tuple[WantedEdit, ...]]:
        source_prompt = known["source_prompt"] or ""
        if self._prompts is None:
            return source_prompt, self._edits_of_columns(known, text)
        try:
            template_prompt = self._prompts.source_prompt(text)
            edits = tuple(WantedEdit(*edit) for edit in self._prompts.expand(text, self._fractions))
        except TemplateError as error:
            raise _BadRowError(str(error)) from error
        _refuse_repeated([edit.target_prompt for edit in edits])
        return source_prompt if template_prompt is None else template_prompt, edits

    def _edits_of_columns(
        self, known: Mapping[str, Any], text: Mapping[str, str]
    ) -> tuple[WantedEdit, ...]:
        given = known["target_prompt"]
        if not _texts_in(given) and _texts_in(known.get(OTHER_PROMPT)):
            # Meant for editors of the other kind: an edit that is not applicable.
            return (WantedEdit("", (None,) * len(self._labels)),)
        prompts = _prompts_of_column(given, self._prompt_column)
        types = _types_of_column(known.get(EDIT_TYPE), len(prompts))
        try:
            labels = labels_of_row(
                known[TARGET_LABELS], len(prompts), self._labels, text, self._label_words
            )
        except ValueError as error:
            raise _BadRowError(str(error)) from error
        return tuple(map(WantedEdit, prompts, labels, types))


def _with_strength(parameters: EditParameters, strength: float | None) -> EditParameters:
    """Raises ParameterError for a strength that is out of range."""
    if strength is None:
        return parameters
    changed: Any = {STRENGTH: strength}
    return parameters.edited_by(replace(parameters.method, **changed))


def _with_inputs(
    edits: Sequence[WantedEdit], inputs: InputColumns, known: Mapping[str, Any]
) -> tuple[WantedEdit, ...]:
    try:
        of_edits = inputs.of_edits(known, len(edits))
    except ValueError as error:
        raise _BadRowError(str(error)) from error
    return tuple(replace(edit, **own) for edit, own in zip(edits, of_edits, strict=True))


def row_id_digest(row_id: str) -> bytes:
    """A digest of 16 bytes by which an id of the manifest is remembered."""
    return hashlib.blake2b(row_id.encode(), digest_size=16).digest()


def template_columns(manifest: Manifest, prompts: PromptPlan) -> frozenset[str]:
    """The manifest columns that the job's templates and labels read. Raises JobError."""
    columns = manifest.columns
    try:
        needed = prompts.columns(columns)
    except TemplateError as error:
        raise JobError(f"prompts: {error}") from error
    refuse_label_names("prompts.labels", prompts.label_names, columns)
    for name in sorted(needed):
        files = [file for file in manifest.files if name in file.schema.names]
        for file in files:
            kind = file.schema.field(name).type
            if not has_words(kind):
                raise JobError(
                    f"prompts: column {name} is {kind}; a template needs text or numbers"
                )
        without = [f.label for f in files if not class_names(features_of(f.schema).get(name))]
        if 0 < len(without) < len(files):
            raise JobError(
                f"prompts: column {name} has the names of its classes (datasets.ClassLabel) in "
                f"some files of the manifest, and not in {without[0]}: write all files with "
                "datasets, or none"
            )
    return needed


def refuse_label_names(where: str, labels: Sequence[str], columns: frozenset[str]) -> None:
    """Raises JobError for a label with the name of a column of the manifest or of the output.

    `where`: the key or column that defines the labels, for the message.
    """
    for label in labels:
        if label in KNOWN_COLUMNS:
            raise JobError(f"{where}.{label}: this name has a meaning of its own; rename it")
        if label in columns and SOURCE_PREFIX + label in columns:
            raise JobError(
                f"{where}.{label}: the manifest's column {label} would be carried as "
                f"{SOURCE_PREFIX}{label}, and there is such a column already; rename one of them"
            )


def _known_text(value: Any) -> str:
    if isinstance(value, list):
        raise ValueError("is a list; a template needs text or numbers")
    return "" if value is None else str(value)


def _fractions_of(schema: pa.Schema, names: Iterable[str]) -> frozenset[str]:
    """Those of the columns that have numbers with several ways of writing them."""
    there = (name for name in names if name in schema.names)
    return frozenset(name for name in there if is_fraction(schema.field(name).type))


def _uri_key(uri: str, key_base: str) -> str:
    """The form of a URI that goes into ids: without the signature of a signed URL, and relative
    ones joined to `key_base`."""
    uri = with_slashes(uri)
    if "://" in uri or uri.startswith("/"):
        return without_signature(uri)
    if "://" in key_base:
        return resolve_uri(uri, key_base)
    return posixpath.normpath(posixpath.join(key_base, uri))


def _texts_in(value: Any) -> list[str]:
    """The texts of a cell with one or several, without empty ones."""
    texts = [value] if isinstance(value, str) else list(value or ())
    return [text for text in texts if text is not None and text.strip()]


def _prompts_of_column(value: Any, column: str) -> list[str]:
    prompts = [value] if isinstance(value, str) else list(value or ())
    if not prompts:
        raise _BadRowError(f"{column} is empty")
    for number, prompt in enumerate(prompts):
        if prompt is None or not prompt.strip():
            where = f" (number {number} of its list)" if len(prompts) > 1 else ""
            raise _BadRowError(f"{column} is empty{where}")
    _refuse_repeated(prompts)
    return prompts


def _types_of_column(value: Any, prompts: int) -> list[str]:
    """The type of each edit. A text is the type of all edits; null and "" mean no type."""
    types = list(value) if isinstance(value, list) else [value] * prompts
    if len(types) != prompts:
        raise _BadRowError(f"{EDIT_TYPE} has {len(types)} entries for {prompts} target prompts")
    return [str(each or "") for each in types]


def _refuse_repeated(prompts: list[str]) -> None:
    if len(set(prompts)) < len(prompts):
        repeated = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise _BadRowError(f"target prompt {repeated!r} appears twice in this row")


def _id_text(value: Any) -> str:
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value)
    if math.isnan(value):
        return ""
    if (number := whole_number(value)) is None:
        raise _BadRowError(f"id must be text or a whole number, got {value!r}")
    return str(number)


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _whole_number(name: str, value: Any) -> int | None:
    if value is None or isinstance(value, int):
        return value
    if math.isnan(value):
        return None
    if (number := whole_number(value)) is None:
        raise _BadRowError(f"{name} must be a whole number, got {value!r}")
    return number
