"""Images of any kind, fitted without distortion."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fpe_core import (
    Fit,
    ImageDecodeError,
    ImageTooLargeError,
    ParameterError,
    decode_image,
    fit_image,
)

LIMIT = 10**6


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 60, height: int = 40) -> Image.Image:
    x = np.linspace(0, 255, width, dtype=np.uint8)
    return Image.fromarray(np.repeat(np.repeat(x[None, :, None], height, 0), 3, 2))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_becomes_rgb(mode):
    image = ramp().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (60, 40))
    fitted = fit_image(image, 32, 32)
    assert (fitted.image.mode, fitted.image.size) == ("RGB", (32, 32))


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (32, 32), (200, 30, 30)).convert("CMYK")
    decoded = decode_image(encoded(red, "JPEG", quality=95), max_pixels=LIMIT)
    assert np.abs(np.asarray(decoded, int) - (200, 30, 30)).max() < 12


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    decoded = decode_image(encoded(Image.fromarray(values)), max_pixels=LIMIT)
    grey = np.asarray(decoded)[..., 0].ravel().astype(int)
    assert grey[0] == 0
    assert grey[-1] == 255
    assert np.abs(grey - np.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_greyscale(mode):
    values = np.linspace(0, 65535 if mode == "I" else 1, 256).reshape(16, 16)
    image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    grey = np.asarray(fit_image(image, 16, 16).image)[..., 0].ravel().astype(int)
    assert np.abs(grey - np.arange(256)).max() <= 1


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert decode_image(encoded(clear), max_pixels=LIMIT).getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 128, 0] * 256)
    data = encoded(palette, transparency=0)
    assert decode_image(data, max_pixels=LIMIT).getpixel((5, 5)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    red, _, blue = decode_image(data, max_pixels=LIMIT).getpixel((3, 3))
    assert red > 200 > 50 > blue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """A photo with a dark top left corner stays upright however the camera stored it."""
    upright = Image.new("RGB", (64, 48), "white")
    upright.paste((0, 0, 0), (0, 0, 16, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    decoded = decode_image(data, max_pixels=LIMIT)
    assert decoded.size == (64, 48)
    assert max(decoded.getpixel((4, 4))) < 40
    assert min(decoded.getpixel((60, 44))) > 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n",
        encoded(ramp(600, 400))[:500],
        encoded(ramp(600, 400), "JPEG")[:900],
        encoded(ramp(), "GIF")[:20],
        b"BM" + bytes(60),
    ],
)
def test_broken_bytes_are_one_error(data):
    with pytest.raises(ImageDecodeError):
        decode_image(data, max_pixels=LIMIT)


def test_too_many_pixels_are_refused_before_decoding():
    with pytest.raises(ImageTooLargeError, match="1200 x 1000"):
        decode_image(encoded(Image.new("1", (1200, 1000))), max_pixels=LIMIT)
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # 50 kB that declare 400 million pixels
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLargeError):
        decode_image(bomb, max_pixels=LIMIT)


def test_crop_keeps_the_centre_and_pad_keeps_everything():
    image = Image.new("RGB", (200, 100), "white")
    image.paste("black", (0, 0, 20, 100))
    cropped = np.asarray(fit_image(image, 64, 64, "crop").image)
    assert cropped.min() > 240, "the left edge is outside"
    padded = np.asarray(fit_image(image, 64, 64, "pad").image)
    assert padded[32, 2].max() < 60
    assert padded[2, 2].max() < 60, "the border is repeated upwards"
    assert padded[2, 60].min() > 240


def test_an_image_of_the_right_size_is_untouched():
    image = ramp(64, 64)
    fitted = fit_image(image, 64, 64)
    assert np.array_equal(np.asarray(fitted.image), np.asarray(image))
    assert fitted.fit.to_fitted(3.5, 7) == (3.5, 7)


@settings(max_examples=150)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    target=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    policy=st.sampled_from(["crop", "pad"]),
    x=st.floats(0, 300),
    y=st.floats(0, 300),
)
def test_any_size_fits_undistorted_and_back(width, height, target, policy, x, y):
    target_width, target_height = 8 * target[0], 8 * target[1]
    fitted = fit_image(Image.new("RGB", (width, height)), target_width, target_height, policy)
    fit = fitted.fit
    assert fitted.image.size == (target_width, target_height)
    assert np.allclose(fit.to_source(*fit.to_fitted(x, y)), (x, y), atol=1e-6)
    assert Fit(**fit.to_dict()) == fit
    left, top = fit.to_fitted(0, 0)
    right, bottom = fit.to_fitted(width, height)
    if policy == "crop":
        assert fit.scale_x == fit.scale_y
        assert left <= 1e-6
        assert top <= 1e-6
        assert right >= target_width - 1e-6
        assert bottom >= target_height - 1e-6
    else:
        exact = min(target_width / width, target_height / height)
        assert abs(right - left - width * exact) <= 1, "within rounding to whole pixels"
        assert abs(bottom - top - height * exact) <= 1
        assert left >= 0
        assert top >= 0
        assert right <= target_width + 1e-6
        assert bottom <= target_height + 1e-6


@pytest.mark.parametrize("policy", ["crop", "pad"])
def test_the_recorded_transform_is_where_the_picture_went(policy):
    """A dot drawn in the source is found where `to_fitted` says."""
    image = Image.new("RGB", (300, 180), "white")
    image.paste("black", (160, 70, 176, 86))
    fitted = fit_image(image, 128, 128, policy)
    dark = np.asarray(fitted.image.convert("L")) < 128
    ys, xs = np.nonzero(dark)
    x, y = fitted.fit.to_fitted(168, 78)
    assert abs(xs.mean() + 0.5 - x) < 0.5
    assert abs(ys.mean() + 0.5 - y) < 0.5


def test_an_unknown_policy():
    with pytest.raises(ParameterError, match="crop, pad"):
        fit_image(ramp(), 64, 64, "stretch")
