"""The measured difference of two images, and what each tolerance admits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fpe_core.agreement import ImageDifference, image_difference, image_tolerance, latent_distance


def grey(level: int, size: int = 10) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


def test_levels_pixels_and_means() -> None:
    pixels = np.asarray(grey(100)).copy()
    pixels[0, 0] = (103, 100, 100)
    pixels[5, 5] = (99, 99, 100)
    found = image_difference(Image.fromarray(pixels), grey(100))
    assert (found.largest_levels, found.share) == (3, 0.02)
    assert found.mean_levels == pytest.approx(5 / 300)
    assert image_difference(grey(0), grey(255)).largest_levels == 255, "no arithmetic in 8 bits"
    with pytest.raises(ValueError, match="different sizes"):
        image_difference(grey(0), grey(0, size=8))


def test_latents() -> None:
    one = torch.full((4, 2, 2), 2.0)
    assert latent_distance(one * 1.25, one) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("difference", "full", "half", "lossy"),
    [
        (ImageDifference(1, 0.005, 0.002), True, True, True),
        (ImageDifference(2, 0.001, 0.001), False, True, True),
        (ImageDifference(1, 0.05, 0.02), False, True, True),
        (ImageDifference(19, 0.5, 0.4), False, True, True),
        (ImageDifference(40, 0.5, 0.4), False, True, False),
        (ImageDifference(19, 0.9, 1.2), False, True, False),
        (ImageDifference(200, 0.9, 20.0), False, False, False),
    ],
)
def test_what_passes(difference: ImageDifference, full: bool, half: bool, lossy: bool) -> None:
    """Lossy: in float32, for an encoding that moves the image by 2 levels, 12 at most."""
    loss = ImageDifference(12, 0.8, 2.0)
    for dtype in (torch.float32, torch.float64):
        assert image_tolerance(dtype).admits(difference) is full
    for dtype in (torch.float16, torch.bfloat16):
        assert image_tolerance(dtype).admits(difference) is half
    assert image_tolerance(torch.float32, loss).admits(difference) is lossy
