"""Compares two runs that made the same edits in different ways.

Edits are paired by source, target prompt and labels, because their ids depend on the parameters.
Edits that are equal in all three are paired in the order of the manifest.

    facts = read_comparison(Folder.open("out/a"), Folder.open("out/b"))
    facts.verdicts["accepted", "rejected"], facts.differences[0].mean_difference
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ledger.by_id import RowsById, numbered
from pipeline.ledger.outcome import ID_TYPE, SCORE_COLUMNS
from pipeline.plan.ids import content_id
from pipeline.redact import redact_url
from pipeline.report.edit_table import LABEL_PREFIX, EditTable, read_edits
from pipeline.report.facts import (
    Counts,
    Edit,
    ReportLimits,
    RunFolder,
    counts_of,
    edit_of,
    picture_of,
    read_run_folder,
    types_of,
)
from pipeline.report.gallery import Thumbnail, read_thumbnails, within_bytes
from pipeline.report.histogram import Histogram, histogram_of
from pipeline.storage.folder import Folder

_ROWS_AT_ONCE = 4096
PAIR_GROUPS = ("flipped", "most changed", "only in A", "only in B", "sample")
_RANKED_BY = ("directional_similarity", "structure_distance", *SCORE_COLUMNS)
"""The scores by which pairs are ranked: the first that both runs have is used."""


@dataclass(frozen=True)
class ScoreDifference:
    """How one score differs (B minus A) over the pairs of one type that have it in both runs.

    `higher_in_b` and `lower_in_b` count pairs. `histogram` is that of the differences; its
    `rejected` counts the pairs that B did not accept.
    """

    edit_type: str
    score: str
    pairs: int
    mean_a: float
    mean_b: float
    mean_difference: float
    median_difference: float
    higher_in_b: int
    lower_in_b: int
    histogram: Histogram


@dataclass(frozen=True)
class PairTile:
    """An edit in both runs, or in one of them. The source's picture is taken from either run."""

    a: Edit | None
    b: Edit | None
    group: str
    source_picture: Thumbnail
    a_picture: Thumbnail
    b_picture: Thumbnail

    @property
    def either(self) -> Edit:
        edit = self.a or self.b
        assert edit is not None
        return edit


@dataclass(frozen=True)
class ComparisonFacts:
    """What differs between run A and run B.

    Attributes:
        verdicts: number of pairs by (outcome in A, outcome in B).
        flips: (type, outcome in A, outcome in B, number) of pairs whose outcomes differ, most
            frequent first.
        types_left_out: number of edit types without `differences`, because of the limits.
        changed_keys: (dotted key, value in A, value in B) of keys in config.yaml that differ.
    """

    url_a: str
    url_b: str
    counts_a: Counts
    counts_b: Counts
    pairs: int
    only_a: int
    only_b: int
    verdicts: Mapping[tuple[str, str], int]
    flips: tuple[tuple[str, str, str, int], ...]
    differences: tuple[ScoreDifference, ...]
    types_left_out: int
    tiles: tuple[PairTile, ...]
    changed_keys: tuple[tuple[str, str, str], ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunSide:
    """One of the two runs."""

    run: RunFolder
    edits: EditTable

    @classmethod
    def read(cls, folder: Folder, limits: ReportLimits) -> RunSide:
        run = read_run_folder(folder, limits)
        return cls(run, read_edits(folder, run.labels))

    def edit(self, row: int | None) -> Edit | None:
        if row is None:
            return None
        (found,) = self.edits.rows.slice(row, 1).to_pylist()
        return edit_of(found, self.edits.labels, self.run.rules)


def read_comparison(a: Folder, b: Folder, limits: ReportLimits | None = None) -> ComparisonFacts:
    """Compares two run folders. Raises StorageError if one is not a run folder, and LedgerError."""
    limits = limits or ReportLimits()
    first, second = RunSide.read(a, limits), RunSide.read(b, limits)
    matched = _match(first.edits, second.edits)
    counted = matched.counts()
    flips = {key: pairs for key, pairs in counted.items() if key[1] != key[2]}
    verdicts: Counter[tuple[str, str]] = Counter()
    for (_, *both), pairs in counted.items():
        verdicts[both[0], both[1]] += pairs
    return ComparisonFacts(
        url_a=redact_url(a.url),
        url_b=redact_url(b.url),
        counts_a=counts_of("A", first.edits.rows),
        counts_b=counts_of("B", second.edits.rows),
        pairs=len(matched.pairs),
        only_a=len(matched.only_a),
        only_b=len(matched.only_b),
        verdicts=verdicts,
        flips=tuple((*key, count) for key, count in sorted(flips.items(), key=_commonest)),
        differences=tuple(_differences(matched, types_of(matched.in_a)[: limits.types])),
        types_left_out=max(0, len(types_of(matched.in_a)) - limits.types),
        tiles=_tiles(first, second, _choose(matched, limits), limits),
        changed_keys=_changed_keys(first.run.job, second.run.job),
        labels=tuple(dict.fromkeys([*first.edits.labels, *second.edits.labels])),
        notes=tuple(
            f"{name}: {n}" for name, s in (("A", first), ("B", second)) for n in s.run.notes
        ),
    )


def _commonest(item: tuple[Any, int]) -> tuple[int, Any]:
    return -item[1], item[0]


def _match(a: EditTable, b: EditTable) -> _Matched:
    """The pairs, and the edits that only one run has, in the order of A's ids."""
    pairs, only_a, only_b = [np.empty((0, 2), np.int64)], [_NO_ROWS], [_NO_ROWS]
    with RowsById(KEYS) as keys_a, RowsById(KEYS) as keys_b:
        for edits, keys in ((a, keys_a), (b, keys_b)):
            for table in pair_keys(edits):
                keys.add(table)
        for in_a, in_b in zip(keys_a.buckets(), keys_b.buckets(), strict=True):
            _, (place_a, place_b) = numbered(in_a, in_b)
            rows_a, numbers_a = numbered_apart(in_a, place_a)
            rows_b, numbers_b = numbered_apart(in_b, place_b)
            _, of_a, of_b = np.intersect1d(numbers_a, numbers_b, return_indices=True)
            pairs.append(np.stack([rows_a[of_a], rows_b[of_b]], axis=1))
            only_a.append(np.delete(rows_a, of_a))
            only_b.append(np.delete(rows_b, of_b))
    together = np.concatenate(pairs)
    together = together[np.argsort(together[:, 0])]
    in_a, in_b = (
        each.rows.select(_COMPARED).take(pa.array(rows))
        for each, rows in ((a, together[:, 0]), (b, together[:, 1]))
    )
    alone_a, alone_b = (np.sort(np.concatenate(rows)) for rows in (only_a, only_b))
    return _Matched(together, alone_a, alone_b, in_a, in_b)


_Rows: TypeAlias = NDArray[np.int64]
_NO_ROWS = np.empty(0, np.int64)
_COMPARED = ["edit_type", "outcome", *SCORE_COLUMNS]
KEYS = pa.schema(
    [
        pa.field("edit_id", ID_TYPE, nullable=False),
        pa.field("at", pa.int64()),
        pa.field("row", pa.int64()),
    ]
)
"""`edit_id`: a hash that is the same in any run; the row in the table, and in the manifest."""


def pair_keys(edits: EditTable) -> Iterator[pa.Table]:
    """A hash for each edit of its source, target prompt and labels, some edits at a time."""
    names, at = sorted(edits.labels), 0
    columns = ["source_key", "target_prompt", *(f"{LABEL_PREFIX}{name}" for name in names)]
    for batch in edits.rows.select([*columns, "row"]).to_batches(_ROWS_AT_ONCE):
        keys = []
        for source, prompt, *values in zip(
            *(batch[name].to_pylist() for name in columns), strict=True
        ):
            labels = [pair for pair in zip(names, values, strict=True) if pair[1] is not None]
            keys.append(content_id("pair", source.hex(), prompt, labels))
        places = pa.array(range(at, at + len(keys)), pa.int64())
        yield pa.table([pa.array(keys, ID_TYPE), places, batch["row"]], schema=KEYS)
        at += len(keys)


def numbered_apart(keys: pa.Table, place: _Rows) -> tuple[_Rows, _Rows]:
    """(rows, a number for each). Equal keys get different numbers, in the manifest's order; the
    n-th of them has the same number in both runs."""
    at, manifest_row = (keys[name].to_numpy() for name in ("at", "row"))
    order = np.lexsort((at, manifest_row, place))
    ordered = place[order]
    repetition = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return at[order], ordered + (repetition << 32)


def _differences(matched: _Matched, types: Sequence[str]) -> list[ScoreDifference]:
    """The differences by type, then by score."""
    in_a, in_b = matched.in_a, matched.in_b
    is_accepted = pc.equal(in_b["outcome"], "accepted").to_numpy()
    found = []
    for kind in types:
        chosen = pc.equal(in_a["edit_type"], kind).to_numpy()
        for score in SCORE_COLUMNS:
            values_a, values_b = _numbers(in_a, score)[chosen], _numbers(in_b, score)[chosen]
            found.append(_difference(kind, score, values_a, values_b, is_accepted[chosen]))
    return [each for each in found if each is not None]


def _difference(
    edit_type: str,
    score: str,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    is_accepted: NDArray[np.bool_],
) -> ScoreDifference | None:
    both = np.isfinite(a) & np.isfinite(b)  # an infinite PSNR has no mean
    a, b = a[both], b[both]
    histogram = histogram_of(score, edit_type, b - a, is_accepted[both], ())
    if histogram is None:
        return None
    return ScoreDifference(
        edit_type=edit_type,
        score=score,
        pairs=len(a),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        mean_difference=float((b - a).mean()),
        median_difference=float(np.median(b - a)),
        higher_in_b=int((b > a).sum()),
        lower_in_b=int((b < a).sum()),
        histogram=histogram,
    )


@dataclass(frozen=True)
class _Matched:
    """Rows of A and B: `pairs`, (n, 2), are the same edits; `in_a` and `in_b` are their rows, in
    that order."""

    pairs: _Rows
    only_a: _Rows
    only_b: _Rows
    in_a: pa.Table
    in_b: pa.Table

    def counts(self) -> dict[tuple[str, str, str], int]:
        """The number of pairs by (type, outcome in A, outcome in B)."""
        columns = [self.in_a["edit_type"], self.in_a["outcome"], self.in_b["outcome"]]
        table = pa.table(columns, names=["type", "a", "b"])
        counted = table.group_by(["type", "a", "b"]).aggregate([([], "count_all")]).to_pylist()
        return {(row["type"], row["a"], row["b"]): row["count_all"] for row in counted}

    def with_outcomes(self, a: str, b: str, at_most: int) -> list[int]:
        """The first pairs with these outcomes."""
        is_it = pc.and_(pc.equal(self.in_a["outcome"], a), pc.equal(self.in_b["outcome"], b))
        found: list[int] = np.flatnonzero(is_it.to_numpy())[:at_most].tolist()
        return found


_Chosen = tuple[str, int | None, int | None]
"""Group, row of A, row of B."""


def _choose(matched: _Matched, limits: ReportLimits) -> list[_Chosen]:
    """Chooses flips of every kind, the pairs whose score changed most, and edits of only one run.

    If no pair has scores, a sample in the order of ids takes the place of the second group.
    """
    by_flip: Counter[tuple[str, str]] = Counter()
    for (_, in_a, in_b), pairs in matched.counts().items():
        if in_a != in_b:
            by_flip[in_a, in_b] += pairs
    moved = _moved(matched.in_a, matched.in_b)
    scored = np.flatnonzero(np.isfinite(moved))
    ranked = scored[np.lexsort((scored, -moved[scored]))]
    chosen: dict[int, str] = {}
    each = limits.tiles_per_group
    for flip in sorted(by_flip, key=lambda flip: (-by_flip[flip], flip)):
        chosen |= dict.fromkeys(matched.with_outcomes(*flip, each), "flipped")
    for group, numbers in (
        ("most changed", ranked),
        ("sample", np.arange(0 if len(scored) else len(moved))),
    ):
        enough = numbers[: each + len(chosen)].tolist()
        fresh = [n for n in enough if n not in chosen]
        chosen |= dict.fromkeys(fresh[:each], group)
    result: list[_Chosen] = [
        (group, *matched.pairs[number].tolist()) for number, group in chosen.items()
    ]
    result += [("only in A", row, None) for row in matched.only_a[:each].tolist()]
    result += [("only in B", None, row) for row in matched.only_b[:each].tolist()]
    return result[: limits.tiles]


def _moved(in_a: pa.Table, in_b: pa.Table) -> NDArray[np.float64]:
    """The change of the score of each pair, NaN if one side has none."""
    for score in _RANKED_BY:
        moved = np.abs(_numbers(in_b, score) - _numbers(in_a, score))
        if np.isfinite(moved).any():
            return moved
    return np.full(len(in_a), np.nan)


def _tiles(
    a: RunSide, b: RunSide, chosen: Sequence[_Chosen], limits: ReportLimits
) -> tuple[PairTile, ...]:
    edits = [(a.edit(row_a), b.edit(row_b)) for _, row_a, row_b in chosen]
    read_a = _read(a, [first for first, _ in edits], limits)
    read_b = _read(b, [second for _, second in edits], limits)
    pictures = []
    for first, second in edits:
        source_a, edited_a = _pictures(first, read_a)
        source_b, edited_b = _pictures(second, read_b)
        pictures.append((source_a if source_a.data else source_b, edited_a, edited_b))
    fitting = within_bytes(pictures, limits.picture_bytes)
    return tuple(
        PairTile(first, second, group, *three)
        for (first, second), (group, _, _), three in zip(edits, chosen, fitting, strict=True)
    )


def _read(
    side: RunSide, edits: Sequence[Edit | None], limits: ReportLimits
) -> dict[str, Thumbnail]:
    paths = [path for e in edits if e for path in (e.source_file_name, e.edited_file_name)]
    return read_thumbnails(side.run.folder, paths, limits.thumbnail_px)


def _pictures(edit: Edit | None, read: Mapping[str, Thumbnail]) -> tuple[Thumbnail, Thumbnail]:
    if edit is None:
        missing = Thumbnail(missing="not in this run")
        return missing, missing
    return (
        picture_of(edit.source_file_name, read, of_source=True, edit=edit),
        picture_of(edit.edited_file_name, read, of_source=False, edit=edit),
    )


def _changed_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    return tuple(
        (key, flat_a.get(key, "(not set)"), flat_b.get(key, "(not set)"))
        for key in sorted({*flat_a, *flat_b})
        if flat_a.get(key) != flat_b.get(key)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", str(value)))
    return found


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(rows[name].to_numpy(), np.float64)
