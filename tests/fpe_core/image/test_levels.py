"""Levels are what the file says: every kind is read right or refused, and content changes nothing.

Odd TIFFs are written by tifffile 2026.3.3; what they mean is TIFF 6.0's text.
"""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from fpe_core import ImageDecodeError, decode_image, fit_image
from fpe_core.image.levels import STRIP_PIXELS
from tests.builders import odd_pictures
from tests.builders.odd_pictures import packed_12_bits, page, png, tiff

RAMP = np.tile(np.linspace(0, 1, 52), (6, 1))
DARK = RAMP / 4
"""Nothing in it is brighter than a quarter: what must not become white."""
COLOURS = np.stack([DARK, DARK[:, ::-1], np.full_like(DARK, 0.25)], -1)


def levels_of(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, max_pixels=10**6), int)


def assert_is(data: bytes, share: np.ndarray, within: float = 1.01) -> None:
    """The image has these shares (H, W) or (H, W, 3) of white, to one level."""
    expected = share[..., None] if share.ndim == 2 else share
    assert np.abs(levels_of(data) - 255 * expected).max() < within


def written(samples: np.ndarray, **options: object) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, samples, **options)
    return sink.getvalue()


@pytest.mark.parametrize("picture", [DARK, RAMP], ids=["dark", "full"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_a_grey_tiff_is_read_right_or_refused(
    picture: np.ndarray, order: str, compression: str | None, photometric: str, kind: str
) -> None:
    white = 1 if kind[0] == "f" else np.iinfo(kind).max
    shares = picture if photometric == "minisblack" else 1 - picture
    samples = shares * white if kind[0] == "f" else np.rint(shares * white)
    data = written(
        samples.astype(order + kind),
        photometric=photometric,
        compression=compression,
        byteorder=order,
    )
    is_read = kind in ("u1", "f4") or (order == "<" and kind == "u2")
    is_read |= photometric == "minisblack" and (kind == "u2" or (order == "<" and kind == "u4"))
    if is_read:
        assert_is(data, picture)
        return
    named = {"i": "signed", "u": "unsigned", "f": "float"}[kind[0]]
    with pytest.raises(ImageDecodeError, match=named):
        decode_image(data, max_pixels=10**6)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["rgb", "separated"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_in_colour_is_read_right_or_refused(
    kind: str, compression: str | None, planes: str, photometric: str, order: str
) -> None:
    shares = COLOURS
    if photometric == "separated":  # ink; no black
        shares = np.concatenate([1 - COLOURS, np.zeros_like(COLOURS[..., :1])], -1)
    white = 1 if kind == "f4" else np.iinfo(kind).max
    samples = (np.rint(shares * white) if kind != "f4" else shares).astype(order + kind)
    if planes == "separate":
        samples = np.moveaxis(samples, -1, 0)
    data = written(
        samples,
        photometric=photometric,
        planarconfig=planes,
        compression=compression,
        byteorder=order,
    )
    if kind == "u1" or (kind == "u2" and (planes == "contig" or compression)):
        assert_is(data, COLOURS, within=2.01)
        return
    with pytest.raises(ImageDecodeError, match=r"32 bits, float|planes are stored apart"):
        decode_image(data, max_pixels=10**6)


def test_twelve_bits_of_a_scanner() -> None:
    samples = np.rint(DARK * 4095)
    data = tiff([page((52, 6), 12)], [packed_12_bits(samples)])
    assert_is(data, DARK)


def test_tiled_and_predicted_and_big_tiffs() -> None:
    deep, real = np.rint(DARK * 65535).astype(np.uint16), DARK.astype(np.float32)
    for options in ({"tile": (16, 16)}, {"bigtiff": True}, {"compression": "zlib", "predictor": 2}):
        assert_is(written(deep, photometric="minisblack", **options), DARK)
    for options in ({"tile": (16, 16), "compression": "zlib"}, {"bigtiff": True}):
        assert_is(written(real, photometric="minisblack", **options), DARK)


def test_palettes_of_a_tiff_have_sixteen_bits() -> None:
    palette = np.zeros((3, 256), np.uint16)
    palette[0] = np.linspace(0, 65535 // 4, 256)
    data = written((RAMP * 255).astype(np.uint8), photometric="palette", colormap=palette)
    assert_is(data, np.stack([DARK, 0 * DARK, 0 * DARK], -1), within=2.01)


MAXVALS = (1, 2, 7, 15, 100, 254, 255, 256, 1000, 1023, 4095, 65534, 65535)


@pytest.mark.parametrize("maxval", MAXVALS)
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_the_maxval_of_a_pnm_is_its_white(magic: str, maxval: int) -> None:
    picture = COLOURS if magic in ("P3", "P6") else DARK
    samples = np.rint(picture * maxval).astype(int)
    head = f"{magic}\n# a comment\n52 6\n{maxval}\n".encode()
    if magic in ("P2", "P3"):
        body = " ".join(map(str, samples.ravel())).encode()
    else:
        body = samples.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    assert_is(head + body, samples / maxval)


def test_a_pnm_that_breaks_its_word() -> None:
    too_short = b"P6 52 6 1000\n" + bytes(52 * 6 * 3 * 2 - 1)
    above = b"P5 2 1 1000\n" + np.array([0, 1010], ">u2").tobytes()
    broken = {
        too_short: "ends before",
        above: "outside 0 .black. to 1000",
        b"P2 2 1 1000\n0 1010": "a sample of 1010, above its maxval of 1000",
        b"P3 2 1 1000\n0 1 2 3 4": "ends after 5 of its 6 samples",
        b"P2 2 1 100\n1_0 5": "'1_0' where a sample should be",
        b"P2 2 1 100\n-1 5": "'-1' where a sample should be",
    }
    for data, said in broken.items():
        with pytest.raises(ImageDecodeError, match=said):
            decode_image(data, max_pixels=10**6)


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("maxval", [200, 3000])
def test_a_long_text_with_comments(line_end: str, maxval: int) -> None:
    """Longer than what is read at a time; the comments have lengths that put their ends anywhere,
    and contain numbers."""
    rng = np.random.default_rng(4)
    samples = rng.integers(0, maxval + 1, (200, 250))
    lines = []
    for row in samples:
        comment = f" # {'7 ' * rng.integers(0, 900)}# 5" if rng.random() < 0.5 else ""
        lines.append(" ".join(map(str, row)) + comment)
    text = f"P2 250 200 {maxval}{line_end}" + line_end.join(lines)
    assert_is(text.encode(), samples / maxval)
    in_one_line = " ".join(map(str, ["P2 250 200", maxval, *samples.ravel()]))
    assert_is(in_one_line.encode(), samples / maxval)


@pytest.mark.parametrize("scale", [-1.0, 1.0, -2.0, 4.0])
def test_the_scale_of_a_pfm_is_its_white(scale: float) -> None:
    """As pfmtopam of netpbm 11.01 and OpenCV 5.0 read it; ImageMagick 6.9 multiplies."""
    samples = DARK[::-1].astype("<f4" if scale < 0 else ">f4")  # from the bottom up
    assert_is(f"Pf\n52 6\n{scale}\n".encode() + samples.tobytes(), DARK / abs(scale))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("is_clear", [False, True])
def test_grey_pngs_of_every_depth(bits: int, is_clear: bool) -> None:
    """A tRNS has the depth of the samples: that grey, and no other, is clear."""
    white = 2**bits - 1
    samples = np.rint(RAMP * white).astype(int)
    clear = int(samples[0, 26])
    data = png(0, bits, samples, clear.to_bytes(2, "big") if is_clear else b"")
    assert_is(data, np.where(is_clear & (samples == clear), 1.0, samples / white))


@pytest.mark.parametrize("bits", [8, 16])
def test_pngs_with_alpha_of_every_depth(bits: int) -> None:
    white = 2**bits - 1
    alpha = np.full(DARK.shape, white)
    alpha[:3] = 0
    grey, colours = np.rint(DARK * white).astype(int), np.rint(COLOURS * white).astype(int)
    on_white = np.where(alpha == 0, 1, DARK)
    assert_is(png(4, bits, np.stack([grey, alpha], -1)), on_white)
    with_alpha = np.concatenate([colours, alpha[..., None]], -1)
    assert_is(png(6, bits, with_alpha), np.where(alpha[..., None] == 0, 1, COLOURS))
    assert_is(png(2, bits, colours), COLOURS)


def test_a_clear_colour_of_sixteen_bits_is_refused() -> None:
    colours = np.rint(COLOURS * 65535).astype(int)
    data = png(2, 16, colours, colours[0, 0].astype(">u2").tobytes())
    with pytest.raises(ImageDecodeError, match="tRNS"):
        decode_image(data, max_pixels=10**6)


@pytest.mark.parametrize("kind", sorted(odd_pictures.JPEG_OF_INKS))
def test_ink_of_adobe_is_inverted(kind: str) -> None:
    found = levels_of(odd_pictures.JPEG_OF_INKS[kind])
    assert np.abs(found - (255 - 40, 255 - 200, 255 - 120)).max() <= 6


def test_grey_of_jpeg_2000_in_every_depth() -> None:
    steps = np.arange(16).reshape(4, 4) / 15
    assert_is(odd_pictures.JP2_OF_4_BITS, steps)
    assert_is(odd_pictures.JP2_OF_12_BITS, steps)


def test_deep_colours_of_jpeg_2000_are_refused() -> None:
    """Pillow 13.0.0 rounds 4095 of 12 bits up to 256, which is 0 in eight bits: white is black."""
    with Image.open(io.BytesIO(odd_pictures.JP2_OF_3_X_12_BITS)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 0), "or it could be read"
    with pytest.raises(ImageDecodeError, match="3 x 12 bits"):
        decode_image(odd_pictures.JP2_OF_3_X_12_BITS, max_pixels=10**6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (DARK * 255, "from 0 to 63.75"),
        (DARK - 0.1, "from -0.1"),
        (np.where(DARK > 0.2, np.inf, DARK), "inf"),
    ],
)
def test_floats_that_are_no_shares_are_refused(values: np.ndarray, said: str) -> None:
    """0 to 1 is black to white. The file says nothing else, and its content may not decide."""
    data = written(values.astype(np.float32), photometric="minisblack")
    with pytest.raises(ImageDecodeError, match=re.escape(said)):
        decode_image(data, max_pixels=10**6)


def test_no_value_is_black() -> None:
    values = np.where(DARK > 0.2, np.nan, DARK)
    assert_is(written(values.astype(np.float32), photometric="minisblack"), np.nan_to_num(values))


def test_a_level_does_not_depend_on_the_rest_of_the_image() -> None:
    """Nor on the strip in which it is converted."""
    width = STRIP_PIXELS // 3
    for kind, white in (("u2", 65535), ("u4", 2**32 - 1), ("f4", 1)):
        samples = np.full((8, width), 0.25) * white
        alone = levels_of(written(samples.astype(kind), photometric="minisblack"))
        samples[0, 0], samples[7, 9] = white, 0
        beside = levels_of(written(samples.astype(kind), photometric="minisblack"))
        assert set(alone.ravel()) == {64}
        assert (beside[0, 0, 0], beside[7, 9, 0]) == (255, 0)
        assert np.array_equal(alone[1:7], beside[1:7])


def test_pictures_that_are_in_no_file() -> None:
    """Pillow's modes I and I;16 hold 0 to 65535, mode F 0 to 1."""
    deep = np.rint(DARK * 65535)
    for samples in (deep.astype(np.int32), deep.astype(np.uint16), DARK.astype(np.float32)):
        found = np.asarray(fit_image(Image.fromarray(samples), 52, 6).image, int)
        assert np.abs(found - 255 * DARK[..., None]).max() < 1.01
    for outside in (np.full((6, 52), 70000, np.int32), np.full((6, 52), 1.5, np.float32)):
        with pytest.raises(ImageDecodeError, match="outside 0"):
            fit_image(Image.fromarray(outside), 52, 6)


def test_a_tiff_that_does_not_say_what_zero_is() -> None:
    tags = [tag for tag in page((52, 6)) if tag[0] != 262]
    with pytest.raises(ImageDecodeError, match="262"):
        decode_image(tiff([tags], [bytes(52 * 6)]), max_pixels=10**6)
