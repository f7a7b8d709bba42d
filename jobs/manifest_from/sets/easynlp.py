"""The lists of edits that Free-Prompt-Editing's authors published: cars and ImageNet's classes.

Format: alibaba/EasyNLP, diffusion/FreePromptEditing/datasets (arXiv 2403.03431). The source prompt
is spelt `soure_prompt`; fake sets have neither pictures nor seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.manifest_from.files import Pictures, list_of_objects, read_json, text_of
from jobs.manifest_from.source import (
    SEED,
    SOURCE_PROMPT,
    TARGET_PROMPTS,
    Entries,
    Options,
    Row,
    Source,
)
from pipeline.errors import ManifestError

_PROMPTS = ("soure_prompt", "source_prompt", "prompt")
_PICTURES = ("image_name", "image")


def read(source: Path, options: Options) -> Entries:
    file = _file(source, options.mapping)
    entries = list_of_objects(read_json(file), file, ["edit_prompt"])
    has_pictures = any(text_of(entry, *_PICTURES) for entry in entries)
    if not has_pictures and options.seed is None:
        raise ManifestError(
            f"{file} names no pictures: its sources are synthesised, and it has no seeds. Give "
            "one for all of them with --seed"
        )
    if has_pictures and options.seed is not None:
        raise ManifestError(f"{file} names pictures; --seed is for lists without")
    pictures = Pictures([options.images or file.parent])
    columns = (
        (SOURCE_PROMPT, TARGET_PROMPTS)
        if has_pictures
        else (
            SOURCE_PROMPT,
            TARGET_PROMPTS,
            SEED,
        )
    )
    return Entries(columns, _rows(file.stem, entries, pictures, options.seed))


def _file(source: Path, given: Path | None) -> Path:
    """Raises ManifestError unless exactly one file is meant."""
    named = [file for file in (given, source / given) if file.is_file()] if given else []
    if given is not None and not named:
        raise ManifestError(f"{given} is no file, neither here nor in {source}")
    if named or source.is_file():
        return (named or [source])[0]
    found = sorted(source.glob("*_edit.json"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found)
    raise ManifestError(
        f"{source} has several lists of edits: {names}; choose one with --mapping"
        if found
        else f"{source} is not EasyNLP's: it has no file named *_edit.json, such as "
        "ImageNet_real_edit.json"
    )


def _rows(
    stem: str, entries: Sequence[dict[str, Any]], pictures: Pictures, seed: int | None
) -> Iterator[Row]:
    """One row per source, with all of its edits: they share an inversion."""
    rows: dict[tuple[str | None, str | None], Row] = {}
    spoilt = []
    for number, entry in enumerate(entries):
        name, prompt = text_of(entry, *_PICTURES), text_of(entry, *_PROMPTS)
        target = text_of(entry, "edit_prompt")
        lacks = [what for what, value in (("edit_prompt", target),) if value is None]
        lacks += ["soure_prompt"] if prompt is None and seed is not None else []
        lacks += ["image_name"] if name is None and seed is None else []
        row = Row(f"{stem}-{number:05d}")
        if lacks:
            row.problems.append(f"the entry has no {' and no '.join(lacks)}")
            row.values = {"source_prompt": prompt, "target_prompt": [target] if target else None}
            spoilt.append((row, name))
            continue
        row = rows.setdefault((name, prompt), row)
        row.values.setdefault("source_prompt", prompt)
        edits = row.values.setdefault("target_prompt", [])
        if target in edits:
            row.problems.append(f"entry {number} repeats an edit of this source: {target}")
        else:
            edits.append(target)
        if name is None:
            row.values["seed"] = seed
        elif row.image is None:
            pictures.put(row, name, "image_name")
    yield from rows.values()
    for row, name in spoilt:
        if name is not None:
            pictures.put(row, name, "image_name")
        yield row


SOURCE = Source(
    name="easynlp",
    about="one list of edits of alibaba/EasyNLP, such as ImageNet_real_edit.json; pictures in "
    "--images",
    licence="lists Apache-2.0; pictures of ImageNet and Stanford Cars under their own terms",
    read=read,
    takes=frozenset({"mapping", "images", "seed"}),
)
