"""Compares two runs that made the same edits in different ways.

Edits are paired by source, target prompt and labels, because their ids depend on the parameters.
Edits that are equal in all three are paired in the order of the manifest.

    facts = read_comparison(Folder.open("out/a"), Folder.open("out/b"))
    facts.verdicts["accepted", "rejected"], facts.differences[0].mean_difference
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ledger.outcome import SCORE_COLUMNS
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
class _Side:
    """One of the two runs."""

    run: RunFolder
    edits: EditTable

    @classmethod
    def read(cls, folder: Folder, limits: ReportLimits) -> _Side:
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
    first, second = _Side.read(a, limits), _Side.read(b, limits)
    matched = _match(first.edits, second.edits)
    outcomes, types = matched.outcomes, matched.in_a["edit_type"].to_pylist()
    flips = Counter(
        (edit_type, *both)
        for edit_type, both in zip(types, outcomes, strict=True)
        if both[0] != both[1]
    )
    return ComparisonFacts(
        url_a=redact_url(a.url),
        url_b=redact_url(b.url),
        counts_a=counts_of("A", first.edits.rows),
        counts_b=counts_of("B", second.edits.rows),
        pairs=len(matched.pairs),
        only_a=len(matched.only_a),
        only_b=len(matched.only_b),
        verdicts=Counter(outcomes),
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
    of_b = {key: row for row, key in enumerate(_keys(b))}
    pairs, only_a = [], []
    for row, key in enumerate(_keys(a)):
        other = of_b.pop(key, None)
        if other is None:
            only_a.append(row)
        else:
            pairs.append((row, other))
    in_a, in_b = (
        each.rows.take(pa.array(places, pa.int64()))  # typed, for an empty list of pairs
        for each, places in ((a, [i for i, _ in pairs]), (b, [j for _, j in pairs]))
    )
    return _Matched(pairs, only_a, sorted(of_b.values()), in_a, in_b)


def _keys(edits: EditTable) -> list[tuple[Any, ...]]:
    """A key for each edit that is the same in any run. Equal ones get a number, in the manifest's
    order."""
    names = sorted(edits.labels)
    columns = [
        edits.rows[name].to_pylist()
        for name in ("source_key", "target_prompt", *(f"{LABEL_PREFIX}{n}" for n in names))
    ]
    bare = list(zip(*columns, strict=True))
    seen: Counter[tuple[Any, ...]] = Counter()
    keys: list[tuple[Any, ...]] = [()] * len(bare)
    manifest_rows = edits.rows["row"].to_pylist()
    for row in sorted(range(len(bare)), key=lambda row: (manifest_rows[row], row)):
        labels = tuple(
            pair for pair in zip(names, bare[row][2:], strict=True) if pair[1] is not None
        )
        key = (*bare[row][:2], labels)
        keys[row] = (*key, seen[key])
        seen[key] += 1
    return keys


def _differences(matched: _Matched, types: Sequence[str]) -> list[ScoreDifference]:
    """The differences by type, then by score."""
    in_a, in_b = matched.in_a, matched.in_b
    kinds = np.asarray(in_a["edit_type"].to_pylist(), object)
    is_accepted = np.asarray(in_b["outcome"].to_pylist(), object) == "accepted"
    found = []
    for kind in types:
        chosen = kinds == kind
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
    """Rows of A and B: `pairs` are the same edits; `in_a` and `in_b` are their rows, in that
    order."""

    pairs: Sequence[tuple[int, int]]
    only_a: Sequence[int]
    only_b: Sequence[int]
    in_a: pa.Table
    in_b: pa.Table

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        both = (self.in_a["outcome"].to_pylist(), self.in_b["outcome"].to_pylist())
        return list(zip(*both, strict=True))


_Chosen = tuple[str, int | None, int | None]
"""Group, row of A, row of B."""


def _choose(matched: _Matched, limits: ReportLimits) -> list[_Chosen]:
    """Chooses flips of every kind, the pairs whose score changed most, and edits of only one run.

    If no pair has scores, a sample in the order of ids takes the place of the second group.
    """
    by_flip: dict[tuple[str, str], list[int]] = {}
    for number, both in enumerate(matched.outcomes):
        if both[0] != both[1]:
            by_flip.setdefault(both, []).append(number)
    moved = _moved(matched.in_a, matched.in_b)
    scored = [n for n in range(len(moved)) if np.isfinite(moved[n])]
    ranked = sorted(scored, key=lambda n: (-moved[n], n))
    chosen: dict[int, str] = {}
    each = limits.tiles_per_group
    for flip in sorted(by_flip, key=lambda flip: (-len(by_flip[flip]), flip)):
        chosen |= dict.fromkeys(by_flip[flip][:each], "flipped")
    for group, numbers in (
        ("most changed", ranked),
        ("sample", range(0 if scored else len(moved))),
    ):
        fresh = [n for n in numbers if n not in chosen]
        chosen |= dict.fromkeys(fresh[:each], group)
    result: list[_Chosen] = [(group, *matched.pairs[number]) for number, group in chosen.items()]
    result += [("only in A", row, None) for row in matched.only_a[:each]]
    result += [("only in B", None, row) for row in matched.only_b[:each]]
    return result[: limits.tiles]


def _moved(in_a: pa.Table, in_b: pa.Table) -> NDArray[np.float64]:
    """The change of the score of each pair, NaN if one side has none."""
    for score in _RANKED_BY:
        moved = np.abs(_numbers(in_b, score) - _numbers(in_a, score))
        if np.isfinite(moved).any():
            return moved
    return np.full(len(in_a), np.nan)


def _tiles(
    a: _Side, b: _Side, chosen: Sequence[_Chosen], limits: ReportLimits
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


def _read(side: _Side, edits: Sequence[Edit | None], limits: ReportLimits) -> dict[str, Thumbnail]:
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
