"""Pixel scores against values computed by hand, for every form of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from fpe_core import ParameterError
from fpe_core.scores.images import IMAGES_AT_ONCE, Images
from fpe_core.scores.pixels import (
    changed_share,
    clipped_shift,
    psnr_db,
    saturation_shift,
    sharpness_ratio,
    ssim,
)
from fpe_core.still_life import render, sample_scene

SCORES: dict[str, Callable[[Any, Any], list[Any]]] = {
    "psnr_db": psnr_db,
    "ssim": ssim,
    "changed_share": changed_share,
    "sharpness_ratio": sharpness_ratio,
    "saturation_shift": saturation_shift,
    "clipped_shift": clipped_shift,
}
OF_EQUAL_PICTURES = {
    "psnr_db": math.inf,
    "ssim": 1.0,
    "changed_share": 0.0,
    "sharpness_ratio": 1.0,
    "saturation_shift": 0.0,
    "clipped_shift": 0.0,
}


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [render(sample_scene(seed), 64) for seed in range(3)]


@pytest.fixture(scope="module")
def blurred(scenes: list[Image.Image]) -> list[Image.Image]:
    return [scene.filter(ImageFilter.GaussianBlur(1 + n)) for n, scene in enumerate(scenes)]


def plain(red: float, green: float, blue: float, size_px: int = 12) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32)[None, :, None, None].expand(
        1, 3, size_px, size_px
    )


def as_tensor(images: list[Image.Image]) -> Tensor:
    arrays = [np.array(image, dtype=np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_equal_pictures(name: str, scenes: list[Image.Image]) -> None:
    assert SCORES[name](scenes, scenes) == pytest.approx([OF_EQUAL_PICTURES[name]] * 3, abs=1e-9)


def test_psnr_of_a_known_error() -> None:
    """A tenth in every value is 20 dB; in one channel of three, a third of the squared error."""
    grey = plain(0.5, 0.5, 0.5)
    edits = [plain(0.6, 0.6, 0.6), plain(0.6, 0.5, 0.5), plain(1.0, 0.0, 1.0)]
    expected = [20.0, 20.0 + 10 * math.log10(3), 20 * math.log10(2)]
    assert [psnr_db(grey, edit)[0] for edit in edits] == pytest.approx(expected, abs=1e-5)
    assert psnr_db(plain(0, 0, 0), plain(1, 1, 1)) == [0.0]


def test_ssim_of_one_window_is_the_formula() -> None:
    """11 x 11 pixels hold one window: weighted means, variances, covariance, and equation 13."""
    torch.manual_seed(0)
    first = torch.rand(1, 3, 11, 11)
    second = (first + 0.5 * torch.rand(1, 3, 11, 11)).clamp(0, 1)
    offsets = np.arange(11) - 5.0
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    per_channel = []
    for channel in range(3):
        x, y = (each[0, channel].double().numpy() for each in (first, second))
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        cov = (weights * (x - mean_x) * (y - mean_y)).sum()
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        per_channel.append(luminance * (2 * cov + c2) / (var_x + var_y + c2))
    (found,) = ssim(first, second)
    assert found == pytest.approx(np.mean(per_channel), abs=1e-6)
    assert 0.1 < found < 0.95


def test_ssim_leaves_out_windows_over_the_rim() -> None:
    """Of 13 x 13 pixels, nine windows: the mean of those of 11 x 11."""
    torch.manual_seed(0)
    first, second = torch.rand(2, 1, 3, 13, 13).unbind()
    inside = [(slice(y, y + 11), slice(x, x + 11)) for y in range(3) for x in range(3)]
    alone = [ssim(first[..., y, x], second[..., y, x])[0] for y, x in inside]
    assert ssim(first, second) == pytest.approx([np.mean(alone)], abs=1e-9)


def test_ssim_and_psnr_fall_with_blur(
    scenes: list[Image.Image], blurred: list[Image.Image]
) -> None:
    more = [scene.filter(ImageFilter.GaussianBlur(6)) for scene in scenes]
    for score in (ssim, psnr_db):
        for little, much in zip(score(scenes, blurred), score(scenes, more), strict=True):
            assert much < little < OF_EQUAL_PICTURES[score.__name__]


def test_changed_share_of_a_square() -> None:
    """A quarter of an image changed, plus the rim in which the average of nine exceeds it."""
    black = torch.zeros(1, 3, 20, 20)
    square = black.clone()
    square[..., :10, :10] = 1.0
    # A row or column further out still holds 3 of 9 changed pixels; the corner 1 of 9: 0.19.
    assert changed_share(black, square) == pytest.approx([121 / 400])
    assert changed_share(black, square, distance=0.2) == pytest.approx([120 / 400])
    assert changed_share(black, square, distance=math.sqrt(3)) == [0.0]


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ((0.62, 0.5, 0.5), 0.0),
        ((0.63, 0.5, 0.5), 1.0),
        ((0.56, 0.56, 0.56), 0.0),
        ((0.58, 0.58, 0.58), 1.0),
    ],
)
def test_the_distance_is_euclidean(edit: tuple[float, float, float], changed: float) -> None:
    assert changed_share(plain(0.5, 0.5, 0.5), plain(*edit), distance=0.121) == [changed]


def test_noise_is_no_change(scenes: list[Image.Image]) -> None:
    """Nearly three times what the built-in autoencoder adds, 0.018 of a value: next to nothing."""
    torch.manual_seed(0)
    source = as_tensor(scenes)
    noisy = (source + 0.05 * torch.randn_like(source)).clamp(0, 1)
    assert max(changed_share(source, noisy)) < 0.01
    single = (noisy - source).norm(dim=1) > 0.12
    assert single.double().mean() > 0.1, "pixel by pixel it would be far more"


def test_sharpness_by_hand() -> None:
    """One bright point: the Laplacian is -4 there, 1 beside it; half as bright, a quarter of the
    variance."""
    point = torch.zeros(1, 3, 7, 7)
    point[..., 3, 3] = 1.0
    assert sharpness_ratio(point, point / 2) == pytest.approx([0.25])
    # 25 inner pixels: sum of squares 16 + 4, sum 0. A point at the rim's neighbour loses one side.
    at_rim = torch.zeros(1, 3, 7, 7)
    at_rim[..., 3, 0] = 1.0
    variance, at_rim_variance = 20 / 25, 1 / 25 - (1 / 25) ** 2
    assert sharpness_ratio(point, at_rim) == pytest.approx([at_rim_variance / variance])


def test_blur_is_softer_and_a_flat_source_says_nothing(
    scenes: list[Image.Image], blurred: list[Image.Image]
) -> None:
    ratios = sharpness_ratio(scenes, blurred)
    assert all(ratio is not None and ratio < 0.5 for ratio in ratios)
    assert sharpness_ratio(plain(0.5, 0.5, 0.5), torch.rand(1, 3, 12, 12)) == [None]
    assert sharpness_ratio(torch.rand(1, 3, 12, 12), plain(0.5, 0.5, 0.5)) == pytest.approx([0.0])


def test_saturation_and_clipping_by_hand() -> None:
    grey, red = plain(0.5, 0.5, 0.5), plain(0.9, 0.3, 0.4)
    assert saturation_shift(grey, red) == pytest.approx([0.6])
    assert saturation_shift(red, grey) == pytest.approx([-0.6])
    assert clipped_shift(grey, plain(1.0, 0.5, 0.0)) == pytest.approx([2 / 3])
    assert clipped_shift(plain(1.0, 1.0, 1.0), grey) == pytest.approx([-1.0])
    assert clipped_shift(grey, plain(254 / 255, 1 / 255, 0.5)) == [0.0], "one level is not clipped"


# --- against scikit-image -------------------------------------------------------------------------


def test_psnr_and_ssim_are_those_of_scikit_image(
    scenes: list[Image.Image], blurred: list[Image.Image]
) -> None:
    """An implementation that shares no code with torchmetrics. Gaussian windows, population
    variance, values in 0..1; its `full=False` leaves out the windows over the rim, as ours does."""
    wide = (scenes[0].resize((96, 40)), blurred[0].resize((96, 40)))
    for source, edit in [*zip(scenes, blurred, strict=True), (scenes[0], scenes[1]), wide]:
        before, after = (np.asarray(each, dtype=np.float64) / 255 for each in (source, edit))
        similarity = structural_similarity(
            before,
            after,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        ratio = peak_signal_noise_ratio(before, after, data_range=1.0)
        assert ssim([source], [edit]) == pytest.approx([similarity], abs=1e-6)
        assert psnr_db([source], [edit]) == pytest.approx([ratio], abs=1e-5)


# --- the forms of images --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_tensors_and_images_agree_together_and_alone(
    name: str, scenes: list[Image.Image], blurred: list[Image.Image]
) -> None:
    score = SCORES[name]
    together = score(scenes, blurred)
    assert score(as_tensor(scenes), as_tensor(blurred)) == pytest.approx(together, rel=1e-6)
    alone = [score([a], [b])[0] for a, b in zip(scenes, blurred, strict=True)]
    assert alone == pytest.approx(together, rel=1e-6)
    times = IMAGES_AT_ONCE // len(scenes) + 1
    many = score(scenes * times, blurred * times)
    assert many == pytest.approx(together * times, rel=1e-6)
    assert score([], []) == score(torch.zeros(0, 3, 16, 16), []) == []


@pytest.mark.parametrize("name", SCORES)
def test_sizes_and_modes_may_differ_from_pair_to_pair(name: str) -> None:
    sizes, modes = [(64, 32), (20, 40), (64, 32)], ["L", "RGBA", "RGB"]
    sources = [
        render(sample_scene(n)).resize(size).convert(mode)
        for n, (size, mode) in enumerate(zip(sizes, modes, strict=True))
    ]
    edits = [source.filter(ImageFilter.GaussianBlur(2)).convert("RGB") for source in sources]
    expected = [SCORES[name]([a], [b])[0] for a, b in zip(sources, edits, strict=True)]
    assert SCORES[name](sources, edits) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("sources", "edits", "message"),
    [
        (plain(0, 0, 0), [], "1 sources and 0 edits"),
        (plain(0, 0, 0), plain(0, 0, 0, 14), "12 x 12 px and 14 x 14 px"),
        (plain(0, 0, 0) * 255 + 2, plain(0, 0, 0), "divide 8-bit values by 255"),
        (plain(math.nan, 0, 0), plain(0, 0, 0), "values in 0..1"),
        (plain(0, 0, 0).byte(), plain(0, 0, 0), r"torch.uint8 of shape \(1, 3, 12, 12\)"),
        (plain(0, 0, 0)[0], plain(0, 0, 0), r"shape \(3, 12, 12\)"),
        (plain(0, 0, 0, 10), plain(0, 0, 0, 10), "11 px at least"),
    ],
)
def test_other_pictures_are_refused(sources: Images, edits: Images, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ssim(sources, edits)


def test_a_distance_below_zero_is_refused() -> None:
    for distance in (-0.1, math.nan):
        with pytest.raises(ParameterError, match="distance must be 0 or more"):
            changed_share([], [], distance=distance)


def test_another_place_changes_more_than_another_shade(scenes: list[Image.Image]) -> None:
    scene = sample_scene(0)
    moved = render(dataclasses.replace(scene, centre_x=scene.centre_x + 0.1), 64)
    shade = scenes[0].point(lambda level: round(0.95 * level))
    (of_moved,), (of_shade,) = (
        changed_share(scenes[:1], [moved]),
        changed_share(scenes[:1], [shade]),
    )
    assert of_moved > 0.05 > of_shade
