"""The colours of JPEG 2000: profiles are applied, what is not converted is noted."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from fpe_core.image.decode import DecodedImage, decode_with_note
from tests.builders.colour_profiles import (
    DISPLAY_P3,
    cmyk_profile,
    gamma_curve,
    grey_profile,
    lab_to_srgb_levels,
    linear_to_srgb,
    rgb_profile,
    srgb_curve,
    srgb_to_linear,
    to_srgb_levels,
)
from tests.builders.odd_pictures import jp2

COLOURS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
P3 = rgb_profile(DISPLAY_P3, srgb_curve(), "Display P3")
RESTRICTED, ANY, ENUMERATED, CODE_POINTS = b"\x02\0\0", b"\x03\0\0", b"\x01\0\0", b"\x05\0\0"


def decoded(image: Image.Image, colours: bytes) -> DecodedImage:
    return decode_with_note(jp2(image, colours), max_pixels=10**6)


@pytest.mark.parametrize("method", [RESTRICTED, ANY])
def test_a_profile_is_applied(method: bytes) -> None:
    found = decoded(Image.fromarray(COLOURS), method + P3)
    expected = to_srgb_levels(srgb_to_linear(COLOURS / 255), DISPLAY_P3)
    assert np.abs(np.asarray(found.image, float) - expected).max() <= 1.5
    assert found.colour_note == "colours converted from Display P3 to sRGB"


def test_a_grey_profile_is_applied() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = decoded(Image.fromarray(ramp), RESTRICTED + grey_profile(gamma_curve(1.0)))
    expected = linear_to_srgb(ramp / 255)[..., None]
    assert np.abs(np.asarray(found.image, float) - expected).max() <= 1.5


def test_four_channels_are_ink_if_the_profile_says_so() -> None:
    corners = np.array(
        [
            np.array([100 - 30 * c - 35 * m - 5 * y, 45 * m - 25 * c, 45 * y - 25 * c])
            * ([0.2, 0, 0] if k else 1)
            for c, m, y, k in np.ndindex(2, 2, 2, 2)
        ]
    )
    inks = np.array(list(np.ndindex(2, 2, 2, 2)), np.uint8).reshape(4, 4, 4) * 255
    found = decoded(Image.fromarray(inks), ANY + cmyk_profile(corners.reshape(2, 2, 2, 2, 3)))
    expected = lab_to_srgb_levels(corners.reshape(4, 4, 3).round())
    assert np.abs(np.asarray(found.image, float) - expected).max() <= 2
    assert found.colour_note == "colours converted from a press to sRGB"


def test_a_profile_that_cannot_be_used_is_noted() -> None:
    found = decoded(Image.fromarray(COLOURS), RESTRICTED + b"not a profile")
    assert np.array_equal(np.asarray(found.image), COLOURS)
    assert found.colour_note.startswith("colour profile ignored (")


@pytest.mark.parametrize(
    ("colours", "said"),
    [
        (ENUMERATED + struct.pack(">I", 16), ""),
        (ENUMERATED + struct.pack(">I", 20), "enumerated space 20"),  # e-sRGB
        (ENUMERATED + struct.pack(">I", 21), "enumerated space 21"),  # ROMM RGB
        (CODE_POINTS + bytes([0, 9, 0, 16, 0, 0, 0]), "method 5"),
    ],
)
def test_a_colour_space_that_is_not_converted_is_noted(colours: bytes, said: str) -> None:
    found = decoded(Image.fromarray(COLOURS), colours)
    assert np.array_equal(np.asarray(found.image), COLOURS)
    assert said in found.colour_note
    assert bool(found.colour_note) == bool(said)
