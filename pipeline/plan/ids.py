"""Ids and file names. They depend on content alone, not on time, process or order of work.

    source key   what the source is: its id and URI, the hash of its bytes, or its prompt and seed
    base         hash of: source key, source prompt, parameters, seed, checkpoint, algorithm, fit,
                 and the edit's mask if the editor uses one
    group_id     hash of: base
    edit_id      hash of: base, target prompt, and blend words and region prompts if the editor uses
                 them
    source_id    hash of: source key; for a synthetic source the base, which decides what it shows

Rows that are equal in all of that are distinguished by their occurrence: n is hashed for the n-th.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from fpe_core import ALGORITHM_VERSION, EditParameters, RegionPrompts
from pipeline.ledger.id_set import ID_BYTES
from pipeline.redact import without_query

MAX_STEM_CHARS = 60

SourceKey: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class EditContext:
    """What ids depend on and all edits of a run share."""

    fingerprint: str
    fit: str
    algorithm_version: str = ALGORITHM_VERSION


def content_id(kind: str, *parts: object) -> bytes:
    """16 bytes of blake2b over the canonical JSON of [kind, *parts]."""
    return _hashed(canonical_json([kind, *parts]))


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)
_text = json.encoder.encode_basestring
"""Encodes a string as canonical JSON."""


def canonical_json(value: object) -> str:
    """JSON that is equal for equal values: sorted keys, no spaces. Raises ValueError for NaN."""
    return _CANONICAL.encode(value)


@lru_cache(maxsize=4096)
def parameters_json(parameters: EditParameters) -> str:
    """Parameters as canonical JSON, for ids and the work list."""
    return canonical_json(parameters.to_dict())


def source_key_of_uri(row_id: str, uri: str) -> SourceKey:
    return ("uri", row_id, uri)


def source_key_of_bytes(row_id: str, data: bytes) -> SourceKey:
    return ("bytes", row_id, hashlib.blake2b(data, digest_size=ID_BYTES).hexdigest())


def source_key_of_prompt(row_id: str, prompt: str, seed: int) -> SourceKey:
    return ("prompt", row_id, prompt, str(seed))


def base_id(
    key: SourceKey,
    *,
    source_prompt: str,
    parameters: EditParameters,
    seed: int | None,
    context: EditContext,
    edit_mask: tuple[str, str] | None = None,
) -> bytes:
    """The hash of everything that an edit's id depends on, except its target prompt.

    This is the `content_id` of "base", the key as a list, source prompt, parameters_json, seed,
    fingerprint, algorithm version, fit, and the key of the edit's mask if there is one. The JSON
    is assembled here for speed, since planning makes one for every row.
    """
    parts = ",".join(map(_text, key))
    written = "null" if seed is None else int(seed)
    shared = _text(parameters_json(parameters))
    mask = "" if edit_mask is None else f",[{','.join(map(_text, edit_mask))}]"
    return _hashed(
        f'["base",[{parts}],{_text(source_prompt)},{shared},{written},{_context_json(context)}'
        f"{mask}]"
    )


@lru_cache(maxsize=16)
def _context_json(context: EditContext) -> str:
    return ",".join(map(_text, (context.fingerprint, context.algorithm_version, context.fit)))


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).digest()


def edit_id(
    base: bytes,
    target_prompt: str,
    occurrence: int = 0,
    blend_words: tuple[str, str] | None = None,
    region_prompts: RegionPrompts | None = None,
) -> bytes:
    if region_prompts is not None:
        written = canonical_json([target_prompt, blend_words, region_prompts])
        return _derived_id(b"regions", base, occurrence, written)
    if blend_words is None:
        return _derived_id(b"edit", base, occurrence, target_prompt)
    return _derived_id(b"blend", base, occurrence, canonical_json([target_prompt, *blend_words]))


def group_id(base: bytes, occurrence: int = 0) -> bytes:
    return _derived_id(b"group", base, occurrence)


def _derived_id(kind: bytes, base: bytes, occurrence: int, text: str = "") -> bytes:
    """The hash of kind, NUL, base, occurrence and text; all but the last have a fixed length.

    Takes a third of the time of JSON; planning makes one for every edit.
    """
    content = kind + b"\0" + base + occurrence.to_bytes(8, "big") + text.encode()
    return hashlib.blake2b(content, digest_size=ID_BYTES).digest()


def source_id(key: SourceKey, base: bytes) -> bytes:
    if key[0] == "prompt":
        return content_id("source", base.hex())
    return _hashed(f'["source",[{",".join(map(_text, key))}]]')  # equals content_id, but is faster


class Occurrences:
    """Counts occurrences of ids: 0 for the first, 1 for the second. Keeps all ids that it counts.

    `repeated`: the ids that occur more than once, if they are known; then only these are kept.
    """

    def __init__(self, repeated: Container[bytes] | None = None) -> None:
        self._counted = repeated
        self._seen: set[bytes] = set()
        self._repeated: dict[bytes, int] = {}

    def next(self, identity: bytes) -> int:
        if self._counted is not None and identity not in self._counted:
            return 0
        if identity not in self._seen:
            self._seen.add(identity)
            return 0
        self._repeated[identity] = self._repeated.get(identity, 0) + 1
        return self._repeated[identity]

    def __len__(self) -> int:
        return len(self._seen)


def file_stem(row_id: str, path: str, prompt: str) -> str:
    """A readable start of a file name: 1 to 60 characters of [A-Za-z0-9_-].

    Made from the id, the path or the prompt, the first that is not empty. Not unique: an id follows
    it in every name. All other characters (`..`, slashes, control characters, other scripts) are
    replaced.
    """
    name = row_id
    if not name and path:
        path = without_query(path).rstrip("/\\")  # a query may be a signature
        name = re.split(r"[/\\]", path)[-1]
        name = name.rpartition(".")[0] or name
    for text in (name, prompt):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
        stem = re.sub(r"__+", "_", stem).strip("-_")[:MAX_STEM_CHARS].strip("-_")
        if stem:
            return stem
    return "source"
