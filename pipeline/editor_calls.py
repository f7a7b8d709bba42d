"""How many edits go through the editor together, and how those of some sources are divided.

A call should be large enough to fill the device. It should be small enough that its images, which
are in memory until they are written, take little, and that they are written while the next call
computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

EDITS_PER_CALL = 64  # with guidance 128 rows, the most that fpe_core puts through a UNet at once
_PIXELS_PER_CALL = 32 * 2**20  # 128 MB of images: 64 of up to 724 px, 32 of 1024 px

Call = list[tuple[int, range]]
"""The indices of sources in ascending order, each with the numbers of its edits in the call."""


def edits_per_call(width_px: int, height_px: int) -> int:
    """The most edits of this size in one call; the larger they are, the fewer."""
    return max(1, min(EDITS_PER_CALL, _PIXELS_PER_CALL // (width_px * height_px)))


def calls_of_source(edits: int, most: int) -> int:
    """The number of calls that the edits of one source take. Only a source with more than `most`
    edits is divided: each further call costs the rows that all edits of a source share."""
    return math.ceil(edits / most)


def call_by_call(edits: Sequence[int], indices: Sequence[int], most: int) -> Iterator[Call]:
    """Divides sources among calls of at most `most` edits. The calls of a source that is divided
    are its own, and about equally large.

    `edits`: the number of edits of each source; `indices`: of the sources to take.
    """
    call: Call = []
    in_call = 0
    for index in indices:
        if call and in_call + edits[index] > most:
            yield call
            call, in_call = [], 0
        if edits[index] > most:
            yield from ([(index, part)] for part in _parts(edits[index], most))
            continue
        call.append((index, range(edits[index])))
        in_call += edits[index]
    if call:
        yield call


def _parts(edits: int, most: int) -> Iterator[range]:
    calls = calls_of_source(edits, most)
    edges = [edits * number // calls for number in range(calls + 1)]
    yield from map(range, edges, edges[1:])
