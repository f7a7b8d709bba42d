"""Masks keep their values, whatever they are saved as, and follow a fitted image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fpe_core import Fit, ImageDecodeError, ImageTooLargeError, fit_image
from fpe_core.image.masks import decode_mask, encode_mask, fit_mask, object_of

LIMIT = 10**6
IDS = np.arange(60 * 40).reshape(40, 60)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray((IDS % 251).astype(np.uint8)), IDS % 251),
        (Image.fromarray(IDS.astype(np.uint16) * 20), IDS * 20),
        (Image.fromarray(IDS % 7 > 2), (IDS % 7 > 2) * 255),
        (Image.fromarray((IDS % 251).astype(np.uint8)).convert("RGB"), IDS % 251),
        (Image.fromarray((IDS % 251).astype(np.uint8)).convert("LA"), IDS % 251),
    ],
    ids=["8 bit", "16 bit", "1 bit", "grey as RGB", "opaque alpha"],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_are_read_as_they_are(image: Image.Image, expected: np.ndarray, kind: str) -> None:
    values = decode_mask(saved(image, kind), max_pixels=LIMIT)
    assert np.array_equal(values, expected)
    assert np.array_equal(decode_mask(encode_mask(values), max_pixels=LIMIT), values)


def test_a_palette_is_no_colour_but_numbers() -> None:
    """As Pascal VOC saves its masks: index 15 is a person, whatever it is drawn in."""
    values = (IDS % 21).astype(np.uint8)
    image = Image.new("P", (60, 40))
    image.putdata(values.ravel().tolist())
    image.putpalette(list(np.random.default_rng(1).integers(0, 256, 768)))
    found = decode_mask(saved(image, transparency=0), max_pixels=LIMIT)
    assert np.array_equal(found, values)


def test_colours_that_are_numbers_stay_whole() -> None:
    """As COCO's panoptic masks: an id is R + 256 G + 65536 B."""
    values = np.stack([IDS % 256, IDS // 256, np.full_like(IDS, 3)], -1).astype(np.uint8)
    found = decode_mask(saved(Image.fromarray(values)), max_pixels=LIMIT)
    assert np.array_equal(found, values)
    assert np.array_equal(decode_mask(encode_mask(found), max_pixels=LIMIT), values)
    assert object_of(found).all()


def test_a_fit_makes_no_value_up() -> None:
    picture = fit_image(Image.new("RGB", (60, 40)), 37, 53)
    fitted = fit_mask(IDS.astype(np.uint16), picture.fit, 37, 53).values
    assert (fitted.dtype, fitted.shape) == (np.dtype(np.uint16), (53, 37))
    for row, column in ((0, 0), (52, 36), (20, 11)):
        x, y = picture.fit.to_source(column + 0.5, row + 0.5)
        assert fitted[row, column] == IDS[int(y), int(x)]
    assert len(np.unique(fitted)) > 100


def test_padding_is_no_object() -> None:
    picture = fit_image(Image.new("RGB", (60, 30)), 60, 60, "pad")
    fitted = fit_mask(np.full((30, 60), 255, np.uint8), picture.fit, 60, 60)
    assert fitted.visible == 1.0
    assert (fitted.values[15:45] == 255).all()
    assert not fitted.values[:15].any()
    assert not fitted.values[45:].any()


def test_an_unfitted_picture_leaves_a_mask_alone() -> None:
    values = (IDS % 5).astype(np.uint8)
    fitted = fit_mask(values, Fit("crop", 60, 40, 1.0, 1.0, 0.0, 0.0), 60, 40)
    assert np.array_equal(fitted.values, values)


def test_how_much_of_the_object_is_left() -> None:
    fit = fit_image(Image.new("RGB", (80, 40)), 40, 40).fit  # columns 20 to 59 stay
    mask = np.zeros((40, 80), np.uint8)
    assert fit_mask(mask, fit, 40, 40).visible == 0, "an empty mask"
    mask[:, 10:30] = 1
    assert fit_mask(mask, fit, 40, 40).visible == 0.5
    mask[:, 20:] = 0
    assert fit_mask(mask, fit, 40, 40).visible == 0


def half_clear() -> Image.Image:
    image = Image.fromarray((IDS % 251).astype(np.uint8)).convert("LA")
    image.putpixel((3, 3), (9, 100))
    return image


GREY = Image.fromarray((IDS % 251).astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"not an image", "PNG"),
        (saved(GREY, "JPEG"), "lossless"),
        (saved(GREY.convert("RGB"), "WEBP", lossless=True), "not in a lossless"),
        (saved(GREY)[:100], "decoded"),
        (saved(half_clear()), "transparent"),
        (saved(Image.fromarray(IDS.astype(np.float32)), "TIFF"), "mode F"),
        (saved(GREY.convert("CMYK"), "TIFF"), "mode CMYK"),
        (saved(Image.fromarray(IDS.astype(np.int32) - 5), "TIFF"), "65535"),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageDecodeError, match=said):
        decode_mask(data, max_pixels=LIMIT)


def test_a_mask_that_declares_too_much_is_not_decoded() -> None:
    with pytest.raises(ImageTooLargeError, match="max_pixels"):
        decode_mask(saved(GREY), max_pixels=60 * 40 - 1)


def test_a_mask_of_another_size_is_no_mask_of_the_picture() -> None:
    """For example one that was drawn on the stored rows of a rotated photo."""
    fit = fit_image(Image.new("RGB", (40, 60)), 32, 32).fit
    with pytest.raises(ImageDecodeError, match="60 x 40 px, but its upright image is 40 x 60 px"):
        fit_mask(IDS, fit, 32, 32)
