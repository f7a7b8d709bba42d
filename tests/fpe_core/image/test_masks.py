"""Masks keep their values, whatever they are saved as, and follow a fitted image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fpe_core import Fit, ImageDecodeError, ImageTooLargeError, fit_image
from fpe_core.image.masks import decode_mask, encode_mask, fit_mask, object_of
from tests.builders.odd_pictures import packed_12_bits, page, png, tiff

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


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_png_of_any_depth_has_the_numbers_that_are_in_it(bits: int) -> None:
    """Pillow multiplies those of 2 and 4 bits by 85 and 17."""
    ids = IDS % 2**bits
    found = decode_mask(png(0, bits, ids), max_pixels=LIMIT)
    assert np.array_equal(found, ids)
    assert np.array_equal(decode_mask(encode_mask(found), max_pixels=LIMIT), ids)


@pytest.mark.parametrize("maxval", [2, 20, 254, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("magic", ["P2", "P5"])
def test_a_pgm_of_any_maxval_has_the_numbers_that_are_in_it(magic: str, maxval: int) -> None:
    ids = IDS % (maxval + 1)
    body = ids.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    if magic == "P2":
        body = " ".join(map(str, ids.ravel())).encode()
    data = f"{magic} 60 40 {maxval}\n".encode() + body
    assert np.array_equal(decode_mask(data, max_pixels=LIMIT), ids)


def test_a_ppm_of_any_maxval_has_the_numbers_that_are_in_it() -> None:
    ids = np.stack([IDS % 20, IDS % 7, IDS * 0], -1)
    data = b"P6 60 40 19\n" + ids.astype(np.uint8).tobytes()
    assert np.array_equal(decode_mask(data, max_pixels=LIMIT), ids)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i1", "i2", "i4", "u4"])
def test_a_tiff_has_the_numbers_that_are_in_it_or_is_refused(
    kind: str, order: str, compression: str | None, photometric: str
) -> None:
    ids = IDS % 101
    stored = ids if photometric == "minisblack" else np.iinfo(kind).max - ids
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        stored.astype(order + kind),
        photometric=photometric,
        compression=compression,
        byteorder=order,
    )
    is_read = kind == "u1" or (kind == "u2" and "<" in order)
    is_read |= photometric == "minisblack" and (kind != "u4" or order == "<")
    if is_read:
        assert np.array_equal(decode_mask(sink.getvalue(), max_pixels=LIMIT), ids)
    else:
        with pytest.raises(ImageDecodeError, match=r"WhiteIsZero|1 x 32 bits, unsigned"):
            decode_mask(sink.getvalue(), max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4"])
def test_negative_numbers_are_refused(kind: str) -> None:
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.full((40, 60), -1, kind), photometric="minisblack")
    with pytest.raises(ImageDecodeError, match=r"outside 0\.\.65535"):
        decode_mask(sink.getvalue(), max_pixels=LIMIT)


def test_twelve_bits_are_numbers_too() -> None:
    data = tiff([page((60, 40), 12)], [packed_12_bits(IDS)])
    assert np.array_equal(decode_mask(data, max_pixels=LIMIT), IDS)


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_colours_of_sixteen_bits_are_refused_instead_of_cut(kind: int) -> None:
    samples = np.stack([IDS] * {2: 3, 4: 2, 6: 4}[kind], -1)
    samples[..., -1] = 65535
    with pytest.raises(ImageDecodeError, match="16 bits"):
        decode_mask(png(kind, 16, samples), max_pixels=LIMIT)


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


@pytest.mark.parametrize("size", [(97, 61), (40, 80)])
@pytest.mark.parametrize("policy", ["crop", "pad"])
def test_what_is_visible_is_the_share_of_pixels_with_their_centre_inside(
    size: tuple[int, int], policy: str
) -> None:
    rng = np.random.default_rng(5)
    fit = fit_image(Image.new("RGB", size), 32, 48, policy).fit
    for share in (0.001, 0.3, 1.0):
        mask = (rng.random(size[::-1]) < share).astype(np.uint8) * 7
        mask[3, 4] = 1
        rows, columns = np.nonzero(mask)
        x, y = fit.scale_x, fit.scale_y
        x, y = (columns + 0.5) * x + fit.offset_x_px, (rows + 0.5) * y + fit.offset_y_px
        expected = float(np.mean((x >= 0) & (x < 32) & (y >= 0) & (y < 48)))
        assert fit_mask(mask, fit, 32, 48).visible == expected
