"""How many hostile cases are tried, and the chance behind each: from its kind and number alone.

A failure names its case, and `chance(kind, number)` makes it again. `make fuzz FUZZ_CASES=200000`
tries more than the tests do: the first cases are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

SHARES = {
    "image": 60,
    "source URI": 15,
    "manifest row": 9,
    "manifest bytes": 11,
    "manifest columns": 5,
}
"""Of a hundred cases. A row costs most: its picture is written, committed and verified."""
DEFAULT_CASES = 6000
tried: Counter[str] = Counter()
"""Cases that came to their end in this process, by kind; printed after the tests."""


def planned(kind: str) -> int:
    """How many cases of a kind are to be tried."""
    total = int(os.environ.get("FUZZ_CASES", DEFAULT_CASES))
    return total * SHARES[kind] // 100


def cases(kind: str) -> Iterator[tuple[int, np.random.Generator]]:
    """Number and chance of every case of a kind; counts those that came to their end."""
    for number in range(planned(kind)):
        yield number, chance(kind, number)
        tried[kind] += 1


def chance(kind: str, number: int) -> np.random.Generator:
    """The same for the same case, on every machine."""
    digest = hashlib.blake2b(f"{kind} {number}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest))
