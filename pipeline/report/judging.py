"""Figures about judging, in addition to scores: retries, the reconstruction gate, boxes and masks.

They are read from the outcomes of a run, its job and, for boxes and masks, the parts' metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.ledger.by_id import numbered
from pipeline.ledger.outcome import GATE_COLUMN, Outcome
from pipeline.ledger.parts import METADATA_FILE
from pipeline.run.stats import Retries
from pipeline.storage.folder import Folder

_THREADS = 16
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ReconstructionFigures:
    """PSNR in dB of sources after encoding and decoding, against themselves, from the gate.

    Attributes:
        sources: number of sources that were measured.
        lowest, median: NaN if no source's figure is a number.
        at_least: the job's threshold; None if it has none.
        below: number of sources below the threshold; 0 without one.
    """

    sources: int
    lowest: float
    median: float
    at_least: float | None
    below: int


@dataclass(frozen=True)
class RegionCounts:
    """How many boxes, or masks, of the accepted edits have each verdict.

    `keep_at_least` and `review_at_least` are the job's thresholds of structure, 0..1.
    """

    kind: str
    column: str
    keep: int
    review: int
    drop: int
    keep_at_least: float | None
    review_at_least: float | None

    @property
    def total(self) -> int:
        return self.keep + self.review + self.drop


def retries_by_reason(rows: pa.Table) -> dict[str, Retries]:
    """The results of retries, by the reason of the first rejection, the most frequent first."""
    found: dict[str, Retries] = {}
    for batch in rows.select(["tries"]).to_batches(_ROWS_AT_ONCE):
        for tries in batch["tries"].drop_null().to_pylist():
            if tries:
                found.setdefault(tries[0]["reason"], Retries()).add(tries)
    return dict(sorted(found.items(), key=lambda item: (-item[1].edits, item[0])))


def reconstruction_figures(
    rows: pa.Table, judge: Mapping[str, Any]
) -> ReconstructionFigures | None:
    """The figures of the gate, each source counted once; None if it measured nothing.

    `rows`: a table with the columns of OUTCOME_SCHEMA. `judge`: the job's section `judge`.
    """
    measured = rows.select(["source_id", GATE_COLUMN]).filter(pc.is_valid(rows[GATE_COLUMN]))
    if not measured.num_rows:
        return None
    sources, (place,) = numbered(measured.rename_columns(["edit_id", GATE_COLUMN]))
    values = np.empty(len(sources))
    values[place] = measured[GATE_COLUMN].to_numpy()
    numbers = values[~np.isnan(values)]
    at_least = _number(_mapping(judge.get("reconstruction")).get(f"{GATE_COLUMN}_at_least"))
    return ReconstructionFigures(
        sources=len(values),
        lowest=float(numbers.min()) if len(numbers) else float("nan"),
        median=float(np.median(numbers)) if len(numbers) else float("nan"),
        at_least=at_least,
        below=0 if at_least is None else int((~(values >= at_least)).sum()),
    )


def region_counts(
    folder: Folder, rows: pa.Table, annotations: Mapping[str, Any], notes: list[str]
) -> tuple[RegionCounts, ...]:
    """Counts of the verdicts on boxes and on masks.

    `annotations`: the job's section of that name, {} without one. Adds a line to `notes` if parts
    have no metadata. Raises StorageError if a part's metadata is damaged.
    """
    columns = _verdict_columns(annotations)
    if not columns:
        return ()
    accepted = rows.filter(pc.equal(rows["outcome"], Outcome.ACCEPTED.value))
    parts = sorted(pc.unique(accepted["part"]).to_pylist())
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda part: _verdicts(folder, part, columns), parts))
    counted = [each for each in found if each is not None]
    if len(counted) < len(parts):
        notes.append(
            f"{len(parts) - len(counted):,} of {len(parts):,} parts have no metadata: their boxes "
            "and masks are not counted"
        )
    return tuple(
        _region_counts(kind, _mapping(annotations[kind]), [each[kind] for each in counted])
        for kind in columns
    )


def _verdict_columns(annotations: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The possible names of each column of verdicts: a dot in the job's key can mean a struct
    field or be part of the column's name."""
    columns: dict[str, tuple[str, ...]] = {}
    if boxes := _mapping(annotations.get("boxes")).get("column"):
        columns["boxes"] = (f"{boxes}_verdict", f"{boxes}_verdict".replace(".", "_"))
    if _mapping(annotations.get("masks")).get("column"):
        columns["masks"] = ("mask_verdict",)
    return columns


def _region_counts(
    kind: str, section: Mapping[str, Any], counted: Sequence[Mapping[str, int]]
) -> RegionCounts:
    return RegionCounts(
        kind=kind,
        column=str(section["column"]),
        keep=sum(each.get("keep", 0) for each in counted),
        review=sum(each.get("review", 0) for each in counted),
        drop=sum(each.get("drop", 0) for each in counted),
        keep_at_least=_number(section.get("keep_at_least")),
        review_at_least=_number(section.get("review_at_least")),
    )


def _verdicts(
    folder: Folder, part: str, columns: Mapping[str, Sequence[str]]
) -> dict[str, Mapping[str, int]] | None:
    """The number of each verdict in a part, by kind; None if its metadata is gone."""
    path = f"{part}/{METADATA_FILE}"
    if not folder.exists(path):
        return None
    try:
        with folder.open_read(path) as opened:
            file = pq.ParquetFile(opened)
            there = set(file.schema_arrow.names)
            wanted = {kind: [n for n in names if n in there] for kind, names in columns.items()}
            table = file.read(columns=sorted({name for n in wanted.values() for name in n[:1]}))
    except pa.ArrowException as error:
        raise StorageError(f"{folder.url_of(path)} is damaged: {error}") from error
    return {kind: _counted(table[n[0]]) if n else {} for kind, n in wanted.items()}


def _counted(verdicts: pa.ChunkedArray) -> Mapping[str, int]:
    """Counts the verdicts of a column, which has one verdict or a list of them per row."""
    values = verdicts.combine_chunks()
    is_list = pa.types.is_list(values.type)
    return Counter((values.flatten() if is_list else values).drop_null().to_pylist())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
