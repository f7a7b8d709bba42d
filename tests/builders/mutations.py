"""Ways to damage bytes: what bad disks, cut connections and ill will make of a file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

Chance = np.random.Generator
HEADER_BYTES = 64
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 65535 << 8)


def mutated(data: bytes, chance: Chance, others: list[bytes] | None = None) -> bytes:
    """The bytes after one to four mutations; `others` may be spliced in."""
    for _ in range(int(chance.integers(1, 5))):
        mutation = _MUTATIONS[int(chance.integers(len(_MUTATIONS)))]
        data = mutation(data, chance) if data else data
    if others and chance.random() < 0.05:
        other = others[int(chance.integers(len(others)))]
        data = data[: _place(data, chance)] + other[_place(other, chance) :]
    return data


def with_right_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now, so that a decoder reads on."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + png[at:])


def _place(data: bytes, chance: Chance) -> int:
    """Somewhere in the bytes; half of the time in the header, where it matters most."""
    end = min(len(data), HEADER_BYTES) if chance.random() < 0.5 else len(data)
    return int(chance.integers(0, max(1, end)))


def _span(data: bytes, chance: Chance) -> tuple[int, int]:
    start = _place(data, chance)
    return start, min(len(data), start + int(2 ** chance.uniform(0, 7)))


def _flip_bits(data: bytes, chance: Chance) -> bytes:
    out = bytearray(data)
    for _ in range(int(chance.integers(1, 9))):
        out[_place(data, chance)] ^= 1 << int(chance.integers(8))
    return bytes(out)


def _put_extreme(data: bytes, chance: Chance) -> bytes:
    """A number that is too large, in either order of bytes, two or four wide."""
    value = _EXTREMES[int(chance.integers(len(_EXTREMES)))]
    width = int(chance.choice([2, 4]))
    order = "big" if chance.random() < 0.5 else "little"
    start = _place(data, chance)
    number = (value & (2 ** (8 * width) - 1)).to_bytes(width, order)
    return data[:start] + number + data[start + width :]


def _put_noise(data: bytes, chance: Chance) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + chance.bytes(end - start) + data[end:]


def _put_zeros(data: bytes, chance: Chance) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + bytes(end - start) + data[end:]


def _cut_off(data: bytes, chance: Chance) -> bytes:
    return data[: _place(data, chance)]


def _leave_out(data: bytes, chance: Chance) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[end:]


def _repeat(data: bytes, chance: Chance) -> bytes:
    start, end = _span(data, chance)
    return data[:end] + data[start:end] * int(chance.integers(1, 30)) + data[end:]


def _put_in(data: bytes, chance: Chance) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + chance.bytes(end - start) + data[start:]


_MUTATIONS: tuple[Callable[[bytes, Chance], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _put_extreme,
    _put_extreme,
    _put_noise,
    _put_zeros,
    _cut_off,
    _leave_out,
    _repeat,
    _put_in,
)
