"""Colours of all kinds of profiles, against the specification's own arithmetic done in numpy."""

from __future__ import annotations

import io
import logging
import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fpe_core import decode_image, fit_image
from fpe_core.image import colour
from fpe_core.image.colour import MAX_PROFILE_BYTES, srgb_profile, to_srgb
from fpe_core.image.decode import DecodedImage, decode_with_note
from tests.builders.colour_profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    cmyk_profile,
    gamma_curve,
    grey_profile,
    lab_to_srgb_levels,
    linear_to_srgb,
    matrix_to_xyz,
    rgb_profile,
    srgb_curve,
    srgb_to_linear,
    to_srgb_levels,
)

P3 = rgb_profile(DISPLAY_P3, srgb_curve(), "Display P3")
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
PRESS = np.array(  # paper, inks and their overprints as Lab; black takes light and colour
    [
        np.array([100 - 30 * c - 35 * m - 5 * y, 45 * m - 25 * c, 45 * y - 25 * c])
        * ([0.2, 0, 0] if k else 1)
        for c, m, y, k in np.ndindex(2, 2, 2, 2)
    ]
).reshape(2, 2, 2, 2, 3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> DecodedImage:
    data = encoded(image, kind, **options)
    return decode_with_note(data, max_pixels=10**6)


def levels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image, float)


def test_the_arithmetic_is_that_of_the_standards() -> None:
    """The profiles below are compared with published numbers."""
    assert np.allclose(
        matrix_to_xyz(SRGB),
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
        atol=2e-4,
    )
    pure_green = to_srgb_levels(np.array([0, 1, 0]), DISPLAY_P3)
    assert pure_green.round().tolist() == [0, 255, 0], "outside: the nearest inside"
    assert np.allclose(lab_to_srgb_levels(np.array([53.39, 0, 0])), 127.5, atol=0.6)


@pytest.mark.parametrize(
    ("primaries", "curve", "light", "name"),
    [
        (DISPLAY_P3, srgb_curve(), srgb_to_linear(COLOURS / 255), "Display P3"),
        (ADOBE_RGB, gamma_curve(563 / 256), (COLOURS / 255) ** (563 / 256), "Adobe RGB (1998)"),
        (SRGB, gamma_curve(1.0), COLOURS / 255, "linear sRGB"),
    ],
    ids=["display p3", "adobe rgb", "linear"],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_primaries_and_curves(
    kind: str,
    primaries: tuple[tuple[float, float], ...],
    curve: bytes,
    light: np.ndarray,
    name: str,
) -> None:
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    profile = rgb_profile(primaries, curve, name)
    found = decoded(Image.fromarray(COLOURS), kind, icc_profile=profile, **lossless)
    expected = to_srgb_levels(light, primaries)
    assert np.abs(levels(found.image) - expected).max() <= 1.5
    assert np.abs(COLOURS - expected).max() > 30, "or nothing had to be done"
    assert found.colour_note == f"colours converted from {name} to sRGB"


def test_a_photo_in_display_p3() -> None:
    patch = Image.new("RGB", (64, 64), (200, 80, 60))
    found = decoded(patch, "JPEG", quality=100, subsampling=0, icc_profile=P3)
    light = srgb_to_linear(np.array([200, 80, 60]) / 255)
    assert np.abs(levels(found.image)[32, 32] - to_srgb_levels(light, DISPLAY_P3)).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [srgb_profile(), rgb_profile(SRGB, srgb_curve(), "by another name"), None],
    ids=["ours", "another", "none"],
)
def test_srgb_is_not_touched(profile: bytes | None) -> None:
    found = decoded(Image.fromarray(COLOURS), icc_profile=profile)
    assert np.array_equal(np.asarray(found.image), COLOURS)
    assert found.colour_note == ""


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_grey_of_another_curve(gamma: float) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = linear_to_srgb((ramp / 255) ** (round(gamma * 256) / 256))
    profile = grey_profile(gamma_curve(gamma))
    eight_bit = decoded(Image.fromarray(ramp), icc_profile=profile)
    deep = decoded(Image.fromarray(ramp.astype(np.uint16) * 257), icc_profile=profile)
    for found in (eight_bit, deep):
        assert np.abs(levels(found.image) - expected[..., None]).max() <= 1.5
        assert found.colour_note == "colours converted from a grey to sRGB"


def test_grey_in_a_profile_for_colour_is_converted_along_its_diagonal() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = rgb_profile(SRGB, gamma_curve(1.0), "linear")
    found = decoded(Image.fromarray(ramp), icc_profile=linear)
    assert np.abs(levels(found.image) - linear_to_srgb(ramp / 255)[..., None]).max() <= 1.5


def test_ink_of_a_press() -> None:
    inks = np.array(list(np.ndindex(2, 2, 2, 2)), np.uint8) * 255
    image = Image.frombytes("CMYK", (4, 4), inks.tobytes())
    found = decoded(image, "TIFF", icc_profile=cmyk_profile(PRESS))
    expected = lab_to_srgb_levels(PRESS.reshape(4, 4, 3).round())
    assert np.abs(levels(found.image) - expected).max() <= 2
    assert found.colour_note == "colours converted from a press to sRGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_and_palettes(mode: str) -> None:
    """Opaque pixels are converted, transparent ones become white."""
    grey = mode == "LA"
    rgb = (180, 180, 180) if grey else (180, 60, 40)
    image = Image.new("RGBA", (8, 8), (*rgb, 255))
    image.paste((*rgb, 0), (0, 0, 4, 8))
    profile = grey_profile(gamma_curve(1.0)) if grey else P3
    found = decoded(image.convert(mode), icc_profile=profile).image
    light = np.array(rgb) / 255
    expected = linear_to_srgb(light) if grey else to_srgb_levels(srgb_to_linear(light), DISPLAY_P3)
    assert np.abs(levels(found)[4, 6] - expected).max() <= 1.5
    if mode != "P":
        assert found.getpixel((1, 4)) == (255, 255, 255)


def test_a_turned_photo_is_converted_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decoded(Image.fromarray(COLOURS), exif=exif, icc_profile=P3)
    expected = to_srgb_levels(srgb_to_linear(COLOURS / 255), DISPLAY_P3)
    assert np.abs(levels(found.image) - np.rot90(expected, -1)).max() <= 1.5


def test_nothing_is_converted_twice() -> None:
    once = decoded(Image.fromarray(COLOURS), icc_profile=P3).image
    assert np.array_equal(np.asarray(fit_image(once, 24, 16).image), np.asarray(once))
    direct = fit_image(
        Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), icc_profile=P3))), 24, 16
    )
    assert np.array_equal(np.asarray(direct.image), np.asarray(once))


UNUSABLE = {
    "no profile": b"not a profile",
    "zeros": bytes(600),
    "cut short": P3[:300],
    "for inks": cmyk_profile(PRESS),
    "for grey": grey_profile(gamma_curve(1.0)),
    "a link of two devices": P3[:12] + b"link" + P3[16:],
    "of a space nobody has": P3[:16] + b"\x1b[2J" + P3[20:],
    "too large": P3 + bytes(MAX_PROFILE_BYTES),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_profile_that_cannot_be_used_costs_its_colours_only(name: str) -> None:
    image, note = to_srgb(Image.fromarray(COLOURS), UNUSABLE[name])
    assert np.array_equal(np.asarray(image), COLOURS)
    assert note.startswith("colour profile ignored (")
    assert note.isprintable()


def test_a_name_out_of_a_profile_is_made_harmless() -> None:
    named = rgb_profile(DISPLAY_P3, srgb_curve(), "\x1b[31m a\nname " * 9)
    _, note = to_srgb(Image.fromarray(COLOURS), named)
    assert note.isprintable()
    assert len(note) < 100


def test_damaged_profiles_of_all_kinds() -> None:
    """Pixels come out whatever happens to the bytes; some are still usable, some are not."""
    grey, ink = Image.new("L", (4, 4), 90), Image.new("CMYK", (4, 4), (90, 20, 40, 10))
    seeds = [
        (Image.fromarray(COLOURS), P3),
        (Image.fromarray(COLOURS), srgb_profile()),
        (grey, grey_profile(gamma_curve(2.0))),
        (ink, cmyk_profile(PRESS)),
    ]
    chance, seen = random.Random(0), set()
    for number in range(160):
        image, profile = seeds[number % len(seeds)]
        damaged = bytearray(profile)
        for _ in range(chance.choice((1, 2, 8))):
            place = chance.randrange(chance.choice((132, 400, len(damaged) - 4)))
            damaged[place : place + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(4)))
        converted, note = to_srgb(image, bytes(damaged))
        assert (converted.mode, converted.size) == ("RGB", image.size)
        seen.add(note.split("(")[0].split(" from")[0])
    assert seen == {"", "colours converted", "colour profile ignored "}


def test_a_pillow_without_littlecms_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a Pillow that was built without it: the extension module is missing."""
    monkeypatch.setitem(sys.modules, "PIL._imagingcms", None)
    colour._warn_of_missing_conversion.cache_clear()
    with caplog.at_level(logging.WARNING, "fpe_core.image.colour"):
        notes = {to_srgb(Image.fromarray(COLOURS), P3)[1] for _ in range(3)}
        assert to_srgb(Image.fromarray(COLOURS), None)[1] == ""
    assert len(caplog.records) == 1
    (note,) = notes
    assert "built without LittleCMS" in note


def test_nothing_but_pixels_comes_out(picture: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    data = encoded(
        picture(), "JPEG", exif=exif, comment=b"c", icc_profile=P3, xmp=b"<x/>", dpi=(9, 9)
    )
    assert decode_image(data, max_pixels=10**6).info == {}


def test_the_profile_of_our_files_is_srgb_and_always_the_same() -> None:
    profile = srgb_profile()
    srgb_profile.cache_clear()
    assert srgb_profile() == profile
    assert len(profile) < 600
    assert int.from_bytes(profile[:4], "big") == len(profile)
    image, note = to_srgb(Image.fromarray(COLOURS), profile)
    assert np.array_equal(np.asarray(image), COLOURS)
    assert note == ""
