"""Deletion vectors of Delta tables, which deltalake 1.6 reads and does not write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pyroaring import BitMap


def roaring(dead: Sequence[int]) -> bytes:
    """A deletion vector as Delta's protocol has it ("Deletion Vector Format"): little-endian."""
    return struct.pack("<IqI", 1681511377, 1, 0) + BitMap(dead).serialize()


def z85(data: bytes) -> str:
    """Base85 as ZeroMQ has it (rfc.zeromq.org/spec/32), which Delta uses."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    words = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]
    return "".join(digits[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))
