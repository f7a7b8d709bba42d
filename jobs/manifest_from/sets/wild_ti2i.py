"""Wild-TI2I: pictures from the web and generated ones, with up to five target prompts each.

Format: MichalGeyer/plug-and-play (arXiv 2211.12572). There are no source prompts of real pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.manifest_from.files import Pictures, entries_file, list_of_objects, read_yaml, text_of
from jobs.manifest_from.source import (
    SEED,
    SOURCE_PROMPT,
    TARGET_PROMPTS,
    Entries,
    Options,
    Row,
    Source,
)

_NAMES = (
    "wild-ti2i-real.yaml",
    "wild-ti2i-fake.yaml",
    "wild-ti2i/wild-ti2i-real.yaml",
    "wild-ti2i/wild-ti2i-fake.yaml",
)


def read(source: Path, options: Options) -> Entries:
    return read_ti2i(source, options, _NAMES, "Wild-TI2I")


def read_ti2i(source: Path, options: Options, names: Sequence[str], what: str) -> Entries:
    """The entries of a YAML of either set: init_img, or a prompt and a seed; and target_prompts."""
    first = entries_file(source, options.mapping, names, what)
    files = [first]
    if options.mapping is None and source.is_dir():
        files = [source / name for name in names if (source / name).is_file()]
    lists = [(file, list_of_objects(read_yaml(file), file, ["target_prompts"])) for file in files]
    columns = [SOURCE_PROMPT, TARGET_PROMPTS]
    if any("seed" in entry for _, entries in lists for entry in entries):
        columns.append(SEED)
    return Entries(tuple(columns), _rows(lists, source, options))


def _rows(
    lists: Sequence[tuple[Path, list[dict[str, Any]]]], source: Path, options: Options
) -> Iterator[Row]:
    for file, entries in lists:
        roots = [options.images] if options.images else [file.parent, source]
        roots = [root for root in dict.fromkeys(roots) if root.is_dir()]
        pictures = Pictures([*roots, *(root / "data" for root in roots)])
        for number, entry in enumerate(entries):
            yield _row(f"{file.stem}-{number:03d}", entry, pictures)


def _row(name: str, entry: dict[str, Any], pictures: Pictures) -> Row:
    row = Row(name)
    row.values["source_prompt"] = text_of(entry, "source_prompt", "prompt")
    put_prompts(row, entry.get("target_prompts"))
    seed = entry.get("seed")
    if "init_img" in entry or seed is None:
        pictures.put(row, entry.get("init_img"), "init_img")
        return row  # a seed beside a picture would not be its own
    if type(seed) is not int or not 0 <= seed < 2**63:
        row.problems.append(f"seed {seed!r} is not a whole number from 0")
    elif row.values["source_prompt"] is None:
        row.problems.append("the entry has a seed, and neither a picture nor a prompt")
    else:
        row.values["seed"] = seed
    return row


def put_prompts(row: Row, found: Any) -> None:
    """Sets a row's target prompts: a text or a list. Empty and repeated ones are problems."""
    prompts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    kept: list[str] = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            row.problems.append(f"target prompt {number} is empty")
        elif prompt.strip() in kept:
            row.problems.append(f"target prompt {number} is there twice: {prompt.strip()}")
        else:
            kept.append(prompt.strip())
    row.values["target_prompt"] = kept or None


SOURCE = Source(
    name="wild-ti2i",
    about="wild-ti2i-real.yaml and wild-ti2i-fake.yaml beside their pictures",
    licence="not stated; pictures from the web, see MichalGeyer/plug-and-play",
    read=read,
    takes=frozenset({"mapping", "images"}),
)
