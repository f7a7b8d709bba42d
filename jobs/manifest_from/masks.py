"""Masks of benchmarks as PNG: white is edited, black is kept.

A mask is a bool array (height_px, width_px), True where the picture is edited.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask: TypeAlias = NDArray[np.bool_]

_FINER = 5
"""Polygons are drawn so many times larger, and every pixel is what its centre is."""


def png_of(mask: Mask) -> bytes:
    """A PNG of 8 bits, 255 where the mask is True."""
    data = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(data, "PNG")
    return data.getvalue()


def mask_of_runs(runs: Any, width_px: int, height_px: int, *, frame: bool) -> Mask:
    """PIE-Bench's mask: start, length, start, length ... in row-major order.

    `frame`: the outermost pixels on all four sides are edited too, as in the published evaluation
    (evaluation/evaluate.py, mask_decode), which so hides errors of annotation at the edge. Runs
    that reach beyond the end are cut, as there.

    Raises ValueError for what are no such runs.
    """
    pixels = width_px * height_px
    are_numbers = isinstance(runs, list) and all(type(each) is int for each in runs)
    if not are_numbers or len(runs) % 2:
        raise ValueError("the mask is not a list of starts and lengths")
    mask = np.zeros(pixels, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if not 0 <= start < pixels or length < 0:
            raise ValueError(f"the mask has a run of {length} at {start}, outside of its {pixels}")
        mask[start : start + length] = True
    shaped: Mask = mask.reshape(height_px, width_px)
    if frame:
        shaped[[0, -1], :] = True
        shaped[:, [0, -1]] = True
    return shaped


def mask_of_segmentation(segmentation: Any, width_px: int, height_px: int) -> Mask:
    """COCO's mask: polygons (x, y, x, y ...), or run lengths of columns that begin with background.

    Polygons agree with pycocotools but for some pixels of their outline. Raises ValueError for
    anything else, compressed run lengths among them.
    """
    if isinstance(segmentation, Mapping):
        return _mask_of_counts(segmentation, width_px, height_px)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("the segmentation is neither polygons nor run lengths")
    large = Image.new("1", (width_px * _FINER, height_px * _FINER))
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("the segmentation has a polygon of fewer than three points")
        ImageDraw.Draw(large).polygon([value * _FINER for value in polygon], fill=1)
    middle = _FINER // 2
    return np.asarray(large)[middle::_FINER, middle::_FINER].copy()


def _mask_of_counts(runs: Mapping[str, Any], width_px: int, height_px: int) -> Mask:
    counts, size = runs.get("counts"), runs.get("size")
    if not isinstance(counts, Sequence) or isinstance(counts, str):
        raise ValueError("the segmentation has compressed run lengths, which are not read")
    if list(size or ()) != [height_px, width_px] or sum(counts) != width_px * height_px:
        raise ValueError(f"the segmentation's runs are not those of {width_px}x{height_px} px")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width_px, height_px).T.copy()


def mask_of_picture(data: bytes, size: tuple[int, int]) -> Mask:
    """A mask that is a picture: what is transparent is edited, or else what is white.

    Without transparency it must be black and white. It is brought to `size` (width_px, height_px)
    by the nearest pixel.

    Raises ValueError for a picture that shows neither, or that cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except Exception as error:  # Pillow raises from every plugin what it likes
        raise ValueError(f"the mask cannot be read: {error}") from error
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    values = np.asarray(picture)
    if picture.mode == "RGBA" and (values[..., 3] == 0).any():
        return np.asarray(values[..., 3] == 0)
    white, black = (values[..., :3] == 255).all(-1), (values[..., :3] == 0).all(-1)
    if not (white | black).all():
        raise ValueError("the mask is a picture without transparency, not black and white")
    return np.asarray(white)
