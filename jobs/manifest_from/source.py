"""What a source of a manifest is: its rows, its pictures, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

TEXT, TEXTS, BYTES = pa.string(), pa.list_(pa.string()), pa.binary()

SOURCE_PROMPT = pa.field("source_prompt", TEXT)
TARGET_PROMPT = pa.field("target_prompt", TEXT)
TARGET_PROMPTS = pa.field("target_prompt", TEXTS)
INSTRUCTION = pa.field("instruction", TEXT)
EDIT_TYPE = pa.field("edit_type", TEXT)
EDIT_MASK = pa.field("edit_mask", BYTES)
BLEND_WORDS = pa.field("blend_words", TEXTS)
SEED = pa.field("seed", pa.int64())
SPLIT = pa.field("split", TEXT)


@dataclass(frozen=True)
class Picture:
    """A picture: where it lies, or ought to lie (`file`), or its encoded bytes (`data`)."""

    file: Path | None = None
    data: bytes | None = None


@dataclass
class Row:
    """One row of a manifest.

    Attributes:
        id: its name in the set; unique.
        image: None if the set names no picture.
        values: the other columns, by the names of `Entries.columns`; absent ones are null.
        reference: the edit that the set gives as the answer.
        problems: what is missing or cannot be read, and where.
    """

    id: str
    image: Picture | None = None
    values: dict[str, Any] = field(default_factory=dict)
    reference: Picture | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """What its edits are asked for: target prompts, or else instructions."""
        for name in ("target_prompt", "instruction"):
            value = self.values.get(name)
            texts = [value] if isinstance(value, str) else list(value or ())
            if found := [text for text in texts if text and text.strip()]:
                return found
        return []

    @property
    def can_be_planned(self) -> bool:
        """Whether a job takes such a row: with another one, the whole manifest is refused."""
        is_synthetic = (
            bool(self.values.get("source_prompt")) and self.values.get("seed") is not None
        )
        return bool(self.prompts) and (self.image is not None or is_synthetic)


@dataclass(frozen=True)
class Options:
    """What the command line says about reading a set; a set uses those that its source names.

    Attributes:
        mapping: which of the set's files lists its entries.
        images: the folder with its pictures.
        split: only the rows of this split.
        seed: of sources that are synthesised and have none in the set.
        frame: whether PIE-Bench's masks get the one-pixel frame of its published evaluation.
    """

    mapping: Path | None = None
    images: Path | None = None
    split: str | None = None
    seed: int | None = None
    frame: bool = True


@dataclass(frozen=True)
class Entries:
    """What was found in a folder.

    Attributes:
        columns: what its rows have besides id, image, reference and problem.
        rows: read while they are taken.
        has_bytes: whether pictures come as bytes, and so are embedded in the manifest.
        has_references: whether the set has answers.
    """

    columns: tuple[pa.Field, ...]
    rows: Iterable[Row]
    has_bytes: bool = False
    has_references: bool = False


@dataclass(frozen=True)
class Source:
    """A kind of folder that manifests are made from.

    Attributes:
        name: as on the command line.
        about: what it reads, for the list of sources.
        licence: what is known about the set's licence, in a line.
        read: finds a set in a folder, or in a file of it. Raises ManifestError if there is none,
            with what was looked for.
        hub_id: of the set on the Hugging Face hub; "" if it is not there.
        takes: which fields of `Options` it uses.
    """

    name: str
    about: str
    licence: str
    read: Callable[[Path, Options], Entries]
    hub_id: str = ""
    takes: frozenset[str] = frozenset()
