"""Boxes follow a fitted image exactly."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fpe_core import Fit, ParameterError, decode_image, fit_image
from fpe_core.image.boxes import Box, FittedBox, fit_box
from fpe_core.image.fit import POLICIES
from fpe_core.image.masks import fit_mask

SIDES = st.integers(min_value=40, max_value=180)
SHARES = st.tuples(*[st.floats(min_value=0.0, max_value=1.0)] * 4)


def corners(box: Box) -> tuple[float, ...]:
    return box.left, box.top, box.right, box.bottom


def bounding_box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@given(width=SIDES, height=SIDES, shares=SHARES, policy=st.sampled_from(POLICIES))
def test_a_drawn_rectangle_lies_where_its_box_says(
    width: int, height: int, shares: tuple[float, ...], policy: str
) -> None:
    """The image, the mask and the box of one rectangle, each fitted in its own way."""
    left, top = (
        int(share * (side - 20)) for share, side in zip(shares[:2], (width, height), strict=True)
    )
    right, bottom = (
        near + 20 + int(share * (side - near - 20))
        for share, side, near in zip(shares[2:], (width, height), (left, top), strict=True)
    )
    drawn = np.zeros((height, width), np.uint8)
    drawn[top:bottom, left:right] = 255
    fitted = fit_image(Image.fromarray(drawn).convert("RGB"), 96, 64, policy)
    found = fit_box(Box(left, top, right, bottom), fitted.fit, 96, 64)
    mask = fit_mask(drawn, fitted.fit, 96, 64)
    assert mask.visible == pytest.approx(found.visible, abs=0.12)
    if found.box.right - found.box.left < 2 or found.box.bottom - found.box.top < 2:
        return  # less than two pixels are left, and which of them is a matter of rounding
    picture = np.asarray(fitted.image.convert("L")) > 127
    if policy == "pad":  # there the border repeats the image's rim, and the mask is 0
        x, y = (np.arange(side) + 0.5 for side in (96, 64))
        is_source = (fitted.fit.to_source(x, 0)[0] > 0) & (fitted.fit.to_source(x, 0)[0] < width)
        picture &= is_source[None]
        rows = fitted.fit.to_source(0, y)[1]
        picture &= ((rows > 0) & (rows < height))[:, None]
    for seen in (mask.values > 0, picture):
        assert corners(bounding_box(seen)) == pytest.approx(corners(found.box), abs=1.0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_picture_as_it_is_seen(orientation: int) -> None:
    """A camera stores rows as its sensor has them; the box is drawn on the upright photo."""
    upright = np.zeros((60, 90, 3), np.uint8)
    upright[10:30, 20:70] = 255
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes that undo it
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif, sink = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(sink, "PNG", exif=exif)
    fitted = fit_image(decode_image(sink.getvalue(), max_pixels=10**6), 64, 64)
    found = fit_box(Box(20, 10, 70, 30), fitted.fit, 64, 64)
    seen = bounding_box(np.asarray(fitted.image.convert("L")) > 127)
    assert corners(seen) == pytest.approx(corners(found.box), abs=1.0)


def test_what_is_cut_off_counts() -> None:
    fit = fit_image(Image.new("RGB", (200, 100)), 100, 100).fit  # 50 px go on either side
    assert fit_box(Box(0, 0, 50, 100), fit, 100, 100).visible == 0
    assert fit_box(Box(25, 0, 75, 100), fit, 100, 100) == FittedBox(Box(0, 0, 25, 100), 0.5)
    assert fit_box(Box(60, 10, 90, 20), fit, 100, 100) == FittedBox(Box(10, 10, 40, 20), 1.0)
    assert fit_box(Box(-40, -40, -10, -10), fit, 100, 100).visible == 0
    assert fit_box(Box(60, 20, 60, 30), fit, 100, 100).visible == 0, "no area, nothing to see"


def test_a_box_that_hangs_over_a_padded_source_ends_at_its_rim() -> None:
    fit = fit_image(Image.new("RGB", (100, 50)), 100, 100, "pad").fit
    found = fit_box(Box(80, -10, 120, 20), fit, 100, 100)
    assert corners(found.box) == (80, 25, 100, 45)
    assert found.visible == pytest.approx(20 * 20 / (40 * 30))


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=4, max_size=4))
def test_formats_say_the_same(numbers: list[float]) -> None:
    x, y, width, height = numbers[0], numbers[1], abs(numbers[2]), abs(numbers[3])
    box = Box.read([x, y, width, height], "xywh")
    assert Box.read(box.write("xyxy"), "xyxy") == box
    assert box.write("xywh") == pytest.approx([x, y, width, height], abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, None, 4],
        [1, 2, math.nan, 4],
        [math.inf, 2, 3, 4],
        [1, 2, -3, 4],
        [1, 2, 3, -0.5],
    ],
)
def test_what_is_no_box_is_refused(values: list[float | None]) -> None:
    with pytest.raises(ParameterError, match="box"):
        Box.read(values, "xywh")


def test_corners_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ParameterError, match="negative"):
        Box.read([10, 10, 5, 20], "xyxy")
    with pytest.raises(ParameterError, match="xywh, xyxy"):
        Box.read([10, 10, 5, 20], "yolo")


def test_an_unfitted_picture_leaves_boxes_alone() -> None:
    fit = Fit("crop", 64, 48, 1.0, 1.0, 0.0, 0.0)
    assert fit_box(Box(1.5, 2, 60.25, 48), fit, 64, 48) == FittedBox(Box(1.5, 2, 60.25, 48), 1.0)
