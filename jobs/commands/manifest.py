"""`fpe manifest from`: a manifest from a benchmark's folder, or from its dataset on the hub."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.terminal import console
from jobs.terminal.exits import guarded

if TYPE_CHECKING:
    from jobs.manifest_from.source import Row, Source
    from jobs.manifest_from.writer import Written

Kind = Annotated[
    str | None,
    typer.Argument(metavar="SET", help="Name of a set. Without one, all sets are listed."),
]
Place = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="Its folder, a file of it, or a hub id.")
]
Output = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--output",
        "-o",
        help="The manifest; default: SET.parquet in the current folder.",
        metavar="FILE",
    ),
]
Embed = Annotated[
    bool, typer.Option("--embed", help="Put the pictures into the manifest, not their paths.")
]
Mapping = Annotated[
    pathlib.Path | None,
    typer.Option(help="The file with the set's entries, if it has several.", metavar="FILE"),
]
Images = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of the pictures, if they are elsewhere.", metavar="FOLDER"),
]
Split = Annotated[str | None, typer.Option(help="Only this split.", metavar="NAME")]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Of sources that are synthesised and have no seed in the set."),
]
NoFrame = Annotated[
    bool,
    typer.Option("--no-frame", help="PIE-Bench: masks without the frame that its evaluation adds."),
]


@guarded
def manifest_from(
    kind: Kind = None,
    place: Place = None,
    *,
    output: Output = None,
    embed: Embed = False,
    mapping: Mapping = None,
    images: Images = None,
    split: Split = None,
    seed: Seed = None,
    no_frame: NoFrame = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Make a manifest from a benchmark. Rows that lack something say what; nothing is guessed."""
    from jobs.manifest_from.hub import folder_of
    from jobs.manifest_from.registry import source_named
    from jobs.manifest_from.source import Options
    from jobs.manifest_from.writer import refuse_existing, write_manifest
    from pipeline.errors import JobError

    if kind is None:
        _print_sources()
        return
    options = Options(mapping, images, split, seed, not no_frame)
    source = source_named(kind, options)
    if place is None:
        raise JobError(f"name the SOURCE: {source.about}")
    if images is not None and not images.is_dir():
        raise JobError(f"--images: {images} is not a folder")
    target = output or pathlib.Path(f"{source.name}.parquet")
    refuse_existing(target)
    editors = EditorCounts()
    with console.err().status(f"Reading {source.name}"):
        entries = source.read(folder_of(source, place, split), options)
        written = write_manifest(target, entries, embed=embed, look=editors.add)
    if as_json:
        console.out().print(json.dumps(_as_json(source, written, editors), indent=2), markup=False)
    else:
        _print(source, written, editors)


class EditorCounts:
    """How many of a manifest's edits each editor can make, with its default parameters."""

    def __init__(self) -> None:
        from fpe_core import EditParameters
        from fpe_core.editors.method import method_named, method_names

        base = EditParameters()
        self._parameters = {name: base.edited_by(method_named(name)()) for name in method_names()}
        self.edits: Counter[str] = Counter(dict.fromkeys(self._parameters, 0))

    def add(self, row: Row) -> None:
        """Counts the edits of a row of the manifest."""
        import numpy as np

        from fpe_core import EditInputs

        values = row.values
        words = values.get("blend_words")
        inputs = EditInputs(
            seed=0,  # a job gives every edit one
            mask=np.ones((1, 1), np.bool_) if values.get("edit_mask") else None,
            blend_words=(words[0], words[1]) if words else None,
        )
        for name, parameters in self._parameters.items():
            column = (
                "instruction" if parameters.method.prompts == "instruction" else "target_prompt"
            )
            given = values.get(column)
            prompts = [given] if isinstance(given, str) else given or []
            for prompt in prompts:
                reason = parameters.not_applicable(
                    values.get("source_prompt") or "", prompt, inputs, synthetic=row.image is None
                )
                self.edits[name] += not reason


def _as_json(source: Source, written: Written, editors: EditorCounts) -> dict[str, Any]:
    return {
        "set": source.name,
        "licence": source.licence,
        "manifest": str(written.manifest),
        "rows": written.rows,
        "edits": written.edits,
        "edit_types": dict(sorted(written.edit_types.items())),
        "rows_with_problems": written.with_problems,
        "rows_left_out": written.unplanned_rows,
        "left_out": None if written.unplanned is None else str(written.unplanned),
        "editors": dict(editors.edits),
    }


def _print(source: Source, written: Written, editors: EditorCounts) -> None:
    from jobs.terminal.texts import count_text
    from jobs.terminal.titled_table import titled_table

    out = console.out()
    out.print(
        f"{written.manifest}: {count_text(written.rows)} rows, {count_text(written.edits)} edits",
        markup=False,
    )
    out.print(f"Licence of {source.name}: {source.licence}", markup=False)
    if any(written.edit_types):
        table = titled_table("Edits by type", ["type", "edits"])
        for name, count in sorted(written.edit_types.items()):
            table.add_row(name or "none", count_text(count))
        out.print(table)
    table = titled_table("Edits that each editor can make", ["editor", "edits"])
    for name, count in editors.edits.items():
        table.add_row(name, count_text(count))
    out.print(table)
    if written.with_problems:
        table = titled_table(
            f"{count_text(written.with_problems)} rows have a problem", ["id", "problem"], texts=2
        )
        for name, problem in written.first_problems:
            table.add_row(name, problem)
        out.print(table)
        out.print("The column problem has all of them.", markup=False)
    if written.unplanned is not None:
        out.print(
            f"{count_text(written.unplanned_rows)} of them are in {written.unplanned} instead: "
            "they lack what every edit needs, and a job would refuse them.",
            markup=False,
        )


def _print_sources() -> None:
    from jobs.manifest_from.registry import sources
    from jobs.terminal.titled_table import titled_table

    table = titled_table("Sets that manifests are made from", ["set", "reads", "licence"], texts=3)
    for source in sources().values():
        table.add_row(source.name, source.about, source.licence)
    console.out().print(table)
