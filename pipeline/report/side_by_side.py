"""Puts several runs side by side that made the same edits, such as one for each editing method.

Edits are matched as in `comparison`: by source, target prompt and labels.

    facts = read_side_by_side([Folder.open("out/fpe"), Folder.open("out/p2p"), Folder.open(...)])
    [(run.name, run.counts.accepted_share) for run in facts.runs]
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ledger.by_id import RowsById, numbered
from pipeline.ledger.outcome import SCORE_COLUMNS
from pipeline.redact import redact_url
from pipeline.report.comparison import KEYS, RunSide, numbered_apart, pair_keys
from pipeline.report.facts import Counts, Edit, ReportLimits, counts_of, picture_of
from pipeline.report.gallery import Thumbnail, read_thumbnails, within_bytes
from pipeline.storage.folder import Folder


@dataclass(frozen=True)
class RunOfMany:
    """One of the runs.

    Attributes:
        name: a letter, A for the first.
        editor: the name of its editing method; "" if unknown.
        edits: of the whole run.
        counts: of the edits that all runs have.
        scores: mean of each score over the edits for which all runs have it.
        rows_per_edit, seconds_per_edit: UNet rows, and seconds of the model, of the edits that all
            runs have; NaN without edits.
    """

    name: str
    url: str
    editor: str
    edits: int
    counts: Counts
    scores: Mapping[str, float]
    rows_per_edit: float
    seconds_per_edit: float


@dataclass(frozen=True)
class RowOfPictures:
    """An edit in every run. The source's picture is that of the first run that has one."""

    edits: tuple[Edit, ...]
    source_picture: Thumbnail
    pictures: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class SideBySideFacts:
    """What several runs made of the same edits.

    Attributes:
        common: number of edits that all runs have.
        scored: by score, the number of edits for which all runs have it.
        rows: a sample of the common edits.
    """

    runs: tuple[RunOfMany, ...]
    common: int
    scored: Mapping[str, int]
    rows: tuple[RowOfPictures, ...]
    notes: tuple[str, ...]


def read_side_by_side(
    folders: Sequence[Folder], limits: ReportLimits | None = None
) -> SideBySideFacts:
    """Compares run folders. Raises StorageError if one is not a run folder, and LedgerError."""
    limits = limits or ReportLimits()
    sides = [RunSide.read(folder, limits) for folder in folders]
    common = _common_rows(sides)
    tables = [
        side.edits.rows.take(pa.array(common[:, number])) for number, side in enumerate(sides)
    ]
    means, scored = _means(tables)
    names = [*string.ascii_uppercase, *map(str, range(27, len(sides) + 1))][: len(sides)]
    runs = tuple(
        RunOfMany(
            name=name,
            url=redact_url(folder.url),
            editor=side.run.editor,
            edits=len(side.edits.rows),
            counts=counts_of(name, table),
            scores=scores,
            rows_per_edit=_mean(table, "unet_rows"),
            seconds_per_edit=_mean(table, "seconds"),
        )
        for name, folder, side, table, scores in zip(
            names, folders, sides, tables, means, strict=True
        )
    )
    return SideBySideFacts(
        runs=runs,
        common=len(common),
        scored=scored,
        rows=_pictures(sides, common, limits),
        notes=tuple(
            f"{name}: {note}"
            for name, side in zip(names, sides, strict=True)
            for note in side.run.notes
        ),
    )


def _common_rows(sides: Sequence[RunSide]) -> NDArray[np.int64]:
    """(edits, runs): the rows of the edits that all runs have, in the order of the first one's."""
    found = [np.empty((0, len(sides)), np.int64)]
    with ExitStack() as stack:
        keys = [stack.enter_context(RowsById(KEYS)) for _ in sides]
        for side, into in zip(sides, keys, strict=True):
            for table in pair_keys(side.edits):
                into.add(table)
        for tables in zip(*(each.buckets() for each in keys), strict=True):
            _, places = numbered(*tables)
            numbers: list[NDArray[np.int64]] = []
            rows: list[NDArray[np.int64]] = []
            for table, place in zip(tables, places, strict=True):
                of_table, number = numbered_apart(table, place)
                rows.append(of_table)
                numbers.append(number)
            shared = numbers[0]
            for others in numbers[1:]:
                shared = np.intersect1d(shared, others)
            columns = []
            for of_table, number in zip(rows, numbers, strict=True):
                order = np.argsort(number)
                columns.append(of_table[order][np.searchsorted(number[order], shared)])
            found.append(np.stack(columns, axis=1))
    together = np.concatenate(found)
    return together[np.argsort(together[:, 0])]


def _means(tables: Sequence[pa.Table]) -> tuple[list[dict[str, float]], dict[str, int]]:
    """For each run the means of its scores, and for each score the number of edits behind it."""
    means: list[dict[str, float]] = [{} for _ in tables]
    scored: dict[str, int] = {}
    for score in SCORE_COLUMNS:
        values = [np.asarray(table[score].to_numpy(), np.float64) for table in tables]
        there = np.isfinite(np.stack(values)).all(axis=0)
        if not there.any():
            continue
        scored[score] = int(there.sum())
        for into, of_run in zip(means, values, strict=True):
            into[score] = float(of_run[there].mean())
    return means, scored


def _mean(table: pa.Table, column: str) -> float:
    values = np.asarray(table[column].to_numpy(), np.float64)
    return float(values.mean()) if len(values) else float("nan")


def _pictures(
    sides: Sequence[RunSide], common: NDArray[np.int64], limits: ReportLimits
) -> tuple[RowOfPictures, ...]:
    """A sample, evenly spaced, of as many edits as have as many pictures as other reports."""
    count = min(len(common), max(1, limits.tiles // (len(sides) + 1)))
    sample = common[np.linspace(0, len(common) - 1, count).astype(np.int64)] if count else common
    edits = [[side.edit(int(row)) for row in sample[:, n]] for n, side in enumerate(sides)]
    read = [
        read_thumbnails(
            side.run.folder,
            [path for e in of_side if e for path in (e.source_file_name, e.edited_file_name)],
            limits.thumbnail_px,
        )
        for side, of_side in zip(sides, edits, strict=True)
    ]
    lines: list[tuple[Edit, ...]] = []
    pictures = []
    for of_edit in zip(*edits, strict=True):
        line = tuple(edit for edit in of_edit if edit is not None)
        sources = [
            picture_of(edit.source_file_name, found, of_source=True, edit=edit)
            for edit, found in zip(line, read, strict=True)
        ]
        source = next((each for each in sources if each.data), sources[0])
        made = [
            picture_of(edit.edited_file_name, found, of_source=False, edit=edit)
            for edit, found in zip(line, read, strict=True)
        ]
        lines.append(line)
        pictures.append((source, *made))
    fitting = within_bytes(pictures, limits.picture_bytes)
    return tuple(
        RowOfPictures(line, shown[0], tuple(shown[1:]))
        for line, shown in zip(lines, fitting, strict=True)
    )
