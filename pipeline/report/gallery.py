"""Chooses the edits that a report shows, and makes their thumbnails.

The choice is bounded, and depends only on scores, outcomes and ids:

    best         accepted, farthest from every threshold of their type; at most a third of them
    borderline   nearest to a threshold, on either side; at most a third
    rejected     by reason, a sample
    failed       by failure code, a sample
    accepted     a sample, whatever their scores

A sample has the smallest ids. Ids are content hashes, so it is fair, and the same every time. A
picture that is missing or damaged is replaced by the reason; the report is made all the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fpe_core.judging.rules import Rules
from pipeline.errors import StorageError
from pipeline.ledger.outcome import Outcome
from pipeline.report.histogram import bound_of
from pipeline.storage.folder import Folder

GROUPS = ("best", "borderline", "rejected", "failed", "accepted")
_WITHOUT_RULES = "directional_similarity"
"""The scores by which accepted edits are ranked if no rule uses a score."""


@dataclass(frozen=True)
class Chosen:
    """A row of the table of edits, and the groups it was chosen for, in the order of GROUPS."""

    row: int
    groups: tuple[str, ...]


def choose_edits(edits: pa.Table, rules: Rules, *, per_group: int, at_most: int) -> list[Chosen]:
    """At most `per_group` edits of every type, group and reason; at most `at_most` of all.

    If `at_most` does not suffice, the groups take turns, each with its best edits first. `edits`
    has the columns of OUTCOME_SCHEMA and is sorted by id. The result is in the order of groups.
    """
    ranked = list(_ranked(edits, margins(edits, rules), per_group))
    groups_of: dict[int, list[str]] = {}
    for place in range(per_group):
        for group, rows in ranked:
            if place >= len(rows):
                continue
            row = rows[place]
            if row in groups_of:
                groups_of[row].append(group)
            elif len(groups_of) < at_most:
                groups_of[row] = [group]
    chosen = [
        Chosen(row, tuple(group for group in GROUPS if group in groups))
        for row, groups in groups_of.items()
    ]
    return sorted(chosen, key=lambda each: GROUPS.index(each.groups[0]))


def margins(edits: pa.Table, rules: Rules) -> NDArray[np.float64]:
    """How far each edit is from the opposite verdict, (N,); negative if it breaks a rule.

    The smallest distance to a threshold of its type, in standard deviations of that score among the
    edits of the type. NaN if no rule applies to it.
    """
    names, types = _coded(edits["edit_type"])
    result = np.full(len(types), np.nan)
    for edit_type in sorted(names):
        chosen = types == names.index(edit_type)
        for rule in rules.of(edit_type):
            values = _numbers(edits, rule.score)[chosen]
            distance = values - bound_of(rule)
            finite = values[np.isfinite(values)]
            spread = float(np.std(finite)) if len(finite) else 0.0
            signed = (distance if rule.at_least is not None else -distance) / (spread or 1.0)
            result[chosen] = np.fmin(result[chosen], signed)
    return result


def _ranked(
    edits: pa.Table, margin: NDArray[np.float64], per_group: int
) -> Iterable[tuple[str, Sequence[int]]]:
    """The rows of every group, best first; groups of frequent types come before rare ones."""
    members = _members(edits)
    judged: dict[str, _Rows] = {}
    for (edit_type, outcome, _), rows in members.items():
        if outcome in (Outcome.ACCEPTED, Outcome.REJECTED):
            others = judged.get(edit_type, rows[:0])
            judged[edit_type] = np.concatenate([others, rows])
    merit = np.where(np.isnan(margin), _numbers(edits, _WITHOUT_RULES), margin)
    for key in sorted(members, key=lambda key: (-len(members[key]), key)):
        edit_type, outcome, _ = key
        rows = members[key]
        if outcome == Outcome.NOT_APPLICABLE:
            continue
        if outcome != Outcome.ACCEPTED:
            kind = "rejected" if outcome == Outcome.REJECTED else "failed"
            yield kind, rows[:per_group].tolist()
            continue
        scored = rows[~np.isnan(merit[rows])]
        best = scored[np.lexsort((scored, -merit[scored]))]
        yield "best", best[: min(per_group, _third(scored))].tolist()
        yield "accepted", rows[:per_group].tolist()
    for edit_type in sorted(judged, key=lambda name: (-len(judged[name]), name)):
        near = judged[edit_type][np.isfinite(margin[judged[edit_type]])]
        near = near[np.lexsort((near, np.abs(margin[near])))]
        yield "borderline", near[: min(per_group, _third(near))].tolist()


_Rows: TypeAlias = NDArray[np.int64]


def _members(edits: pa.Table) -> dict[tuple[str, str, str], _Rows]:
    """The rows of every type, outcome and reason, in order."""
    coded = [_coded(edits[name]) for name in ("edit_type", "outcome", "reason")]
    sizes = [max(1, len(values)) for values, _ in coded]
    keys = np.ravel_multi_index([codes for _, codes in coded], sizes)
    order = np.argsort(keys, kind="stable")
    found, firsts = np.unique(keys[order], return_index=True)
    names = (
        tuple(
            values[at] for (values, _), at in zip(coded, np.unravel_index(key, sizes), strict=True)
        )
        for key in found
    )
    return dict(zip(names, np.split(order, firsts[1:]) if len(found) else (), strict=True))


def _coded(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """The different values of a column of text, and for each row the place of its value."""
    values = pc.unique(column)
    return values.to_pylist(), pc.index_in(column, value_set=values).to_numpy().astype(np.int64)


def _numbers(edits: pa.Table, name: str) -> NDArray[np.float64]:
    """A column of scores, NaN for null."""
    return np.asarray(edits[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _third(rows: _Rows) -> int:
    return -(-len(rows) // 3)


_QUALITY = 72
_THREADS = 16


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as WebP (`data`), or the reason why there is none (`missing`)."""

    data: bytes = b""
    width_px: int = 0
    height_px: int = 0
    missing: str = ""


_LEFT_OUT = Thumbnail(missing="left out: the report would be too large")


def read_thumbnails(folder: Folder, paths: Iterable[str], side_px: int) -> dict[str, Thumbnail]:
    """The thumbnails of files of a run folder, by path. Each file is read once; "" is skipped."""
    wanted = [path for path in dict.fromkeys(paths) if path]
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(lambda path: read_thumbnail(folder, path, side_px), wanted)
        return dict(zip(wanted, made, strict=True))


def within_bytes(
    pictures: Sequence[Sequence[Thumbnail]], at_most_bytes: int
) -> list[tuple[Thumbnail, ...]]:
    """The pictures of each tile, in order. Once `at_most_bytes` is reached, pictures are left
    out."""
    result, used = [], 0
    for tile in pictures:
        size = sum(len(picture.data) for picture in tile)
        if used + size > at_most_bytes:
            result.append(tuple(p if p.missing else _LEFT_OUT for p in tile))
            continue
        used += size
        result.append(tuple(tile))
    return result


def read_thumbnail(folder: Folder, path: str, side_px: int) -> Thumbnail:
    """An sRGB thumbnail of at most `side_px` x `side_px`; a small picture is not enlarged."""
    try:
        with Image.open(io.BytesIO(folder.read(path))) as opened:
            picture = opened.convert("RGB")
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Thumbnail(missing="the file is gone")
        return Thumbnail(missing=f"cannot be read: {error}")
    except UnidentifiedImageError:  # its message contains a memory address
        return Thumbnail(missing="damaged: not a picture that Pillow can read")
    # what Pillow raises for a damaged file, and for one that claims to be huge
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Thumbnail(missing=f"damaged: {error}")
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=_QUALITY, method=4)
    return Thumbnail(sink.getvalue(), picture.width, picture.height)
