"""ICC profiles made by hand, and what their colours are in sRGB, computed without LittleCMS."""

from __future__ import annotations

import struct

import numpy as np

D65 = (0.3127, 0.3290)
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Light in 0..1 as 8-bit levels, not rounded; what lies outside is clipped."""
    light = values.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def matrix_to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB with these primaries, white D65, to XYZ: 3 x 3."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    return columns * np.linalg.solve(columns, _white(D65))


def to_srgb_levels(light: np.ndarray, primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB with these primaries (last axis) as levels of sRGB: a matrix and a curve."""
    matrix = np.linalg.solve(matrix_to_xyz(SRGB), matrix_to_xyz(primaries))
    return linear_to_srgb(light @ matrix.T)


def rgb_profile(primaries: tuple[tuple[float, float], ...], curve: bytes, name: str) -> bytes:
    """A version 2 monitor profile, its colorants brought to D50 as the specification says."""
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ _white(D65)))
    colorants = np.linalg.solve(_BRADFORD, scale @ _BRADFORD) @ matrix_to_xyz(primaries)
    tags = {b"desc": _description(name), b"cprt": _text(""), b"wtpt": _xyz(_D50)}
    for letter, column in zip((b"r", b"g", b"b"), colorants.T, strict=True):
        tags |= {letter + b"XYZ": _xyz(column), letter + b"TRC": curve}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(curve: bytes, name: str = "a grey") -> bytes:
    tags = {b"desc": _description(name), b"cprt": _text(""), b"wtpt": _xyz(_D50), b"kTRC": curve}
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def cmyk_profile(corners: np.ndarray) -> bytes:
    """A printer whose 16 corners (2 x 2 x 2 x 2 x Lab) are given, linear between them."""
    lab = corners.reshape(-1, 3)
    cells = np.stack([lab[:, 0] * 255 / 100, lab[:, 1] + 128, lab[:, 2] + 128], -1).round()
    ramp = bytes(range(256))
    table = b"mft1" + struct.pack(">I4B9i", 0, 4, 3, 2, 0, *(np.eye(3, dtype=int) << 16).ravel())
    table += ramp * 4 + cells.astype(np.uint8).tobytes() + ramp * 3
    tags = {b"desc": _description("a press"), b"cprt": _text(""), b"wtpt": _xyz(_D50)}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags | {b"A2B0": table, b"A2B1": table})


def lab_to_srgb_levels(lab: np.ndarray) -> np.ndarray:
    """CIELAB with white D50 as levels of sRGB, whose white it becomes."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    scale = np.diag((_BRADFORD @ _white(D65)) / (_BRADFORD @ _D50))
    at_d65 = xyz @ np.linalg.solve(_BRADFORD, scale @ _BRADFORD).T
    return linear_to_srgb(at_d65 @ np.linalg.inv(matrix_to_xyz(SRGB)).T)


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))


def srgb_curve() -> bytes:
    """The curve of sRGB as a table of 1024 values."""
    values = (srgb_to_linear(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2")
    return b"curv" + struct.pack(">II", 0, 1024) + values.tobytes()


def _white(xy: tuple[float, float]) -> np.ndarray:
    x, y = xy
    return np.array([x / y, 1, (1 - x - y) / y])


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50) + bytes(48)
    return header + table + body


def _fixed(numbers: np.ndarray) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _xyz(numbers: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(numbers)


def _text(text: str) -> bytes:
    return b"text" + bytes(4) + text.encode("ascii") + b"\0"


def _description(name: str) -> bytes:
    content = name.encode("ascii") + b"\0"
    return b"desc" + struct.pack(">II", 0, len(content)) + content + bytes(78)
