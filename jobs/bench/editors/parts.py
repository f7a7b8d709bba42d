"""Judged edits in Parquet, a file per method, setting and few scenes: what a run goes on from.

A file's name holds a digest of all that decides its edits, so files of another checkpoint, or of
other settings, are never taken for these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fpe_core import Checkpoint, Editor, EditParameters
from fpe_core.still_life.benchmark.benchmark import JudgedOutput, run_benchmark
from fpe_core.still_life.benchmark.edits import FIRST_SEED, BenchmarkEdit, edits_of_scene
from fpe_core.still_life.scene import FACTORS
from jobs.bench.editors.methods import Compared

SCENES_AT_ONCE = 2
_FORMAT = 1  # of the files; another one is never read

ROW_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("parameters", pa.string()),  # JSON
        ("seed", pa.int64()),
        ("factor", pa.string()),
        ("source_value", pa.string()),
        ("target_value", pa.string()),
        ("source_prompt", pa.string()),
        ("target_prompt", pa.string()),
        ("not_applicable", pa.string()),  # why; "" for an edit that was made
        ("read_value", pa.string()),
        ("success", pa.bool_()),
        ("structure", pa.float64()),
        ("score", pa.float64()),
        ("psnr_db", pa.float64()),
        ("kept_psnr_db", pa.float64()),
        ("unet_rows", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
"""One row per edit. Judgements, rows and seconds are null if the method is not applicable."""

PART_SCHEMA = ROW_SCHEMA.append(pa.field("png", pa.binary()))
"""`png` is the output of the edits that pictures may show (`is_shown`), else null."""

Row = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """A method with parameters."""

    compared: Compared
    parameters: EditParameters


class Parts:
    """Edits of scenes by settings: made once, and read from files after that."""

    def __init__(self, folder: pathlib.Path, editor: Editor, instructed: Editor) -> None:
        """
        Args:
            folder: where the files are; it is made when the first one is written.
            editor: of the checkpoint that edits.
            instructed: of the checkpoint for methods that read instructions.
        """
        self._folder = folder
        self._editor = editor
        self._instructed = instructed

    def editor_of(self, compared: Compared) -> Editor:
        """The one that a method edits with."""
        return self._instructed if compared.reads_instructions else self._editor

    def rows(self, settings: Sequence[Setting], seeds: Sequence[int], what: str) -> list[Row]:
        """The rows of all settings and scenes; what is not there yet is edited and written.

        Args:
            settings: the settings, all different.
            seeds: of the scenes; five edits of each.
            what: the scenes in words, for log lines.

        Returns:
            rows of PART_SCHEMA, of the first setting for the first scenes, then of the next one.
        """
        chunks = [seeds[at : at + SCENES_AT_ONCE] for at in range(0, len(seeds), SCENES_AT_ONCE)]
        total = len(chunks) * len(settings)
        for number, chunk in enumerate(chunks):
            for made in self._make(settings, chunk):
                _log.info("%s: %d of %d parts", what, number * len(settings) + made, total)
        return [row for each in settings for chunk in chunks for row in self._read(each, chunk)]

    def _make(self, settings: Sequence[Setting], chunk: Sequence[int]) -> Iterator[int]:
        """Edits the scenes by the settings that have no file yet; says how many have one."""
        missing = [each for each in settings if not self._path(each, chunk).exists()]
        arms = [
            dataclasses.replace(each.compared.arm(each.parameters), name=str(number))
            for number, each in enumerate(missing)
        ]
        judged = itertools.chain.from_iterable(
            run_benchmark(editor, chunk, [arms[number] for number in numbers])
            for editor, numbers in itertools.groupby(
                range(len(missing)), key=lambda number: self.editor_of(missing[number].compared)
            )
        )
        for number, outputs in _by_setting(judged, len(missing)):
            edits = [edit for seed in chunk for edit in edits_of_scene(seed)]
            rows = [_row(missing[number], edit, outputs.get(edit)) for edit in edits]
            self._write(rows, self._path(missing[number], chunk))
            yield len(settings) - len(missing) + number + 1

    def _read(self, setting: Setting, chunk: Sequence[int]) -> list[Row]:
        rows: list[Row] = pq.read_table(self._path(setting, chunk)).to_pylist()
        return rows

    def _write(self, rows: Sequence[Row], path: pathlib.Path) -> None:
        """Written beside its place and renamed: a file that is there is whole."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(list(rows), schema=PART_SCHEMA), unfinished)
        unfinished.replace(path)

    def _path(self, setting: Setting, chunk: Sequence[int]) -> pathlib.Path:
        identity = json.dumps(
            [
                _FORMAT,
                _identity(self.editor_of(setting.compared).checkpoint),
                setting.parameters.to_dict(),
            ],
            sort_keys=True,
        )
        digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        name = setting.compared.name.replace(", ", "-")
        return self._folder / f"{chunk[0]}-{chunk[-1]}-{name}-{digest}.parquet"


def write_edits(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Writes one row per column, method and edit: ROW_SCHEMA behind "column", without pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([pa.field("column", pa.string()), *ROW_SCHEMA])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def is_shown(edit: BenchmarkEdit) -> bool:
    """Whether pictures show this edit: one of each of the first test scenes, of another factor
    every time."""
    return edit.seed - FIRST_SEED["test"] == list(FACTORS).index(edit.factor)


def _by_setting(
    judged: Iterable[JudgedOutput], settings: int
) -> Iterator[tuple[int, dict[BenchmarkEdit, JudgedOutput]]]:
    """The outputs of every setting, whose number is the arm's name; of some there may be none."""
    expected = 0
    for name, outputs in itertools.groupby(judged, key=lambda each: each.arm):
        for empty in range(expected, int(name)):
            yield empty, {}
        yield int(name), {each.edit: each for each in outputs}
        expected = int(name) + 1
    for empty in range(expected, settings):
        yield empty, {}


def _row(setting: Setting, edit: BenchmarkEdit, made: JudgedOutput | None) -> Row:
    """Of PART_SCHEMA; what an edit that was not made lacks is null."""
    row: Row = {
        "method": setting.compared.name,
        "parameters": json.dumps(setting.parameters.to_dict()),
        "seed": edit.seed,
        "factor": edit.factor,
        "source_value": edit.source_value,
        "target_value": edit.target_value,
        "source_prompt": edit.source_prompt,
        "target_prompt": edit.prompt_for(setting.parameters.method),
        "not_applicable": "",
    }
    if made is None:
        arm = setting.compared.arm(setting.parameters)
        return {**row, "not_applicable": arm.not_applicable(edit, edit.source_prompt)}
    return {
        **row,
        **dataclasses.asdict(made.judgement),
        "score": made.judgement.score,
        "unet_rows": made.unet_rows,
        "seconds": made.seconds,
        "png": png_of(made.output) if is_shown(edit) else None,
    }


def png_of(image: Image.Image) -> bytes:
    """The image as an optimised PNG."""
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _identity(checkpoint: Checkpoint) -> list[str]:
    """What decides an edit besides its setting: the checkpoint, its dtype and kind of device."""
    return [
        checkpoint.name,
        checkpoint.fingerprint,
        str(checkpoint.dtype),
        checkpoint.device.type,
    ]
