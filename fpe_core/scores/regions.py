"""Whether an edit still shows, in a box or under a mask, the object that its source showed there.

    region = region_of_box(source, box)          # once for all edits of a source
    region.structure_in(edit)                    # 0..1; 1 = the same edges, in the same place

A colour, a material or the light may change, but a label only stays valid if the outline stays. So
edges are compared: the structure tensor of a colour image (Di Zenzo 1986, CVGIP 33(1)) gives the
strength and direction of an edge, whichever side is brighter. The region, with a margin, is first
resized to 48 x 48 pixels, so that movements are measured relative to the object's size.

box    two thirds: intersection over union of the extents that the edges have in source and edit (5
       to 95 % of them, across and down), one third: correlation of the edges' strengths. Not all
       of a box is object, and an edit of shape changes its inside although the box still holds.
mask   along the mask's rim: cosine of the two tensors, each normalised with a constant that takes
       out noise, as in normalised gradient fields (Haber and Modersitzki 2006, MICCAI).

No network is needed. `fpe bench boxes` measures how well this works, compared with a ViT's keys in
the region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.errors import ParameterError
from fpe_core.image.boxes import Box

Plane = NDArray[Any]

_SIDE_PX = 48
_BOX_MARGIN, _MASK_MARGIN = 0.10, 0.15  # shares of the region's sides
_SMOOTHINGS = 2  # passes of 1 2 1
_EXTENT_SHARE = 0.05
_EXTENT_WEIGHT = 2 / 3
_NOISE = 0.03  # of the mean strength of the source's edges
_FLAT = 1e-6  # squared steps of 0..1 from pixel to pixel: a quarter of a level


@dataclass(frozen=True)
class BoxRegion:
    """What a source shows inside a box."""

    source_size: tuple[int, int]
    window: tuple[float, float, float, float]
    edges: Plane  # (48, 48), square roots of tensor norms

    def structure_in(self, edit: Image.Image) -> float | None:
        """0..1; None if the source is flat there.

        Raises:
            ParameterError: an edit of another size than the source.
        """
        _check_size(self.source_size, edit)
        if not _is_structured(self.edges):
            return None
        edges = np.sqrt(_strength(_tensor(_cut(edit, self.window))))
        if not _is_structured(edges):
            return 0.0
        likeness = float(np.corrcoef(self.edges.ravel(), edges.ravel())[0, 1])
        place = _extent_iou(_extent(self.edges), _extent(edges))
        return _unit(_EXTENT_WEIGHT * place + (1 - _EXTENT_WEIGHT) * likeness)


@dataclass(frozen=True)
class MaskRegion:
    """What a source shows along the rim of a mask."""

    source_size: tuple[int, int]
    window: tuple[float, float, float, float]
    tensor: Plane  # (48, 48, 3)
    rim: Plane  # (48, 48), >= 0

    def structure_in(self, edit: Image.Image) -> float | None:
        """0..1; None if the mask has no rim, or the source no edge along it.

        Raises:
            ParameterError: an edit of another size than the source.
        """
        _check_size(self.source_size, edit)
        if self.rim.sum() <= 0:
            return None
        noise = _NOISE * float((self.rim * _strength(self.tensor)).sum() / self.rim.sum())
        if noise <= _NOISE * _FLAT:
            return None
        itself = self._agreement(self.tensor, noise)
        return _unit(self._agreement(_tensor(_cut(edit, self.window)), noise) / itself)

    def _agreement(self, other: Plane, noise: float) -> float:
        dot = (self.tensor * other).sum(axis=-1)
        norms = (_strength(each) ** 2 + noise**2 for each in (self.tensor, other))
        cosine = dot / np.sqrt(np.prod(list(norms), axis=0))
        return float((self.rim * cosine).sum() / self.rim.sum())


SourceRegion = BoxRegion | MaskRegion


def region_of_box(source: Image.Image, box: Box) -> BoxRegion:
    """The region of a box that has an area inside the (fitted) source.

    Raises:
        ParameterError: a box without an area in the image.
    """
    window = _window(source, box, _BOX_MARGIN)
    strength = _strength(_tensor(_cut(source, window)))
    return BoxRegion(source.size, window, np.sqrt(strength))


def region_of_mask(source: Image.Image, mask: NDArray[np.bool_]) -> MaskRegion:
    """The region of a mask, (H, W) of the (fitted) source, that is not empty.

    Raises:
        ParameterError: a mask of another size, or an empty one.
    """
    if mask.shape != (source.height, source.width):
        raise ParameterError(
            f"the mask of an image of {source.width} x {source.height} px must have that size, got "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not len(rows):
        raise ParameterError("the mask is empty: there is no region to look at")
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    box = Box(float(left), float(top), float(right), float(bottom))
    window = _window(source, box, _MASK_MARGIN)
    cover = _cut(Image.fromarray(mask.astype(np.uint8) * 255), window)
    rim = np.sqrt(_strength(_tensor(cover)))
    return MaskRegion(source.size, window, _tensor(_cut(source, window)), rim)


def _window(source: Image.Image, box: Box, margin: float) -> tuple[float, float, float, float]:
    inside = box.clipped(source.width, source.height)
    if inside.area <= 0:
        raise ParameterError(f"{box} has no area inside {source.width} x {source.height} px")
    across = margin * (inside.right - inside.left)
    down = margin * (inside.bottom - inside.top)
    wider = Box(
        inside.left - across, inside.top - down, inside.right + across, inside.bottom + down
    ).clipped(source.width, source.height)
    return wider.left, wider.top, wider.right, wider.bottom


def _cut(image: Image.Image, window: tuple[float, float, float, float]) -> Plane:
    """The window as (48, 48, C), 0..1."""
    small = image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR, box=window)
    values = np.asarray(small, dtype=np.float64) / 255.0
    return values[..., None] if values.ndim == 2 else values


def _tensor(image: Plane) -> Plane:
    """The structure tensor, smoothed: (H, W, 3) of xx, yy and root 2 times xy."""
    down, across = np.gradient(image, axis=(0, 1))
    products = [(across * across), (down * down), np.sqrt(2.0) * (across * down)]
    tensor = np.stack([product.sum(axis=-1) for product in products], axis=-1)
    for _ in range(_SMOOTHINGS):
        for axis in (0, 1):
            tensor = _smoothed(tensor, axis)
    return tensor


def _smoothed(plane: Plane, axis: int) -> Plane:
    widths = [(1, 1) if each == axis else (0, 0) for each in range(plane.ndim)]
    padded = np.moveaxis(np.pad(plane, widths, mode="edge"), axis, 0)
    mean: Plane = np.moveaxis((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, 0, axis)
    return mean


def _strength(tensor: Plane) -> Plane:
    norm: Plane = np.linalg.norm(tensor, axis=-1)
    return norm


def _is_structured(edges: Plane) -> bool:
    return bool((edges**2).mean() > _FLAT and edges.std() > 0)


def _extent(edges: Plane) -> tuple[float, float, float, float]:
    """Left, top, right, bottom: beyond each of them lie 5 % of the edges."""
    left, right = _quantiles(edges.sum(axis=0))
    top, bottom = _quantiles(edges.sum(axis=1))
    return left, top, right, bottom


def _quantiles(profile: Plane) -> tuple[float, float]:
    reached = np.concatenate([[0.0], np.cumsum(profile)]) / profile.sum()
    low, high = np.interp([_EXTENT_SHARE, 1 - _EXTENT_SHARE], reached, np.arange(len(reached)))
    return float(low), float(high)


def _extent_iou(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> float:
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (first, second)]
    shared = width * height
    return shared / (sum(areas) - shared)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _check_size(size: tuple[int, int], edit: Image.Image) -> None:
    if edit.size != size:
        raise ParameterError(
            f"source and edit must have the same size, got {size[0]} x {size[1]} and "
            f"{edit.width} x {edit.height} px"
        )
