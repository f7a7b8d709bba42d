"""Scores of an edit against its source from their pixels alone; no model.

    psnr_db            likeness, dB                                    higher = more alike
    ssim               likeness of local structure, -1..1              higher = more alike
    changed_share      share of visibly changed pixels, 0..1           higher = more changed
    sharpness_ratio    edit's sharpness over the source's, > 0         below 1 = softer
    saturation_shift   mean chroma, edit minus source, -1..1           above 0 = more colourful
    clipped_shift      share of clipped values, edit minus source      above 0 = burnt out, crushed

All take sources and edits pair by pair, each a float tensor (N, 3, H, W) in 0..1 or N PIL images
(see `images`), and return N numbers, in order. A pair has one size; pairs may differ. They raise
ParameterError for anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpe_core.errors import ParameterError
from fpe_core.scores.edit_scores import LEAST_PX
from fpe_core.scores.images import Images, score_pairs

CHANGED_DISTANCE = 0.12
"""Distance in RGB (0 to the root of 3) above which a pixel counts as changed: 18 levels of 255 in
every channel, or 31 in one."""

SSIM_WINDOW_PX = LEAST_PX["ssim"]
"""Side of SSIM's windows, and least side of an image."""
SHARPNESS_LEAST_PX = LEAST_PX["sharpness_ratio"]
"""Least side of an image with a Laplacian."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_HALF_LEVEL = 0.5 / 255.0
_FLAT = 1e-6  # variance of the Laplacian below a quarter of a level: nothing that could be sharp


def psnr_db(sources: Images, edits: Images) -> list[float]:
    """Peak signal-to-noise ratio to the source, dB: -10 log10 of the mean squared error over all
    values in 0..1. 0 at worst, infinite for equal images. torchmetrics computes it."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    def score(before: Tensor, after: Tensor) -> list[float]:
        ratios: Tensor = peak_signal_noise_ratio(
            after.double(), before.double(), data_range=1.0, dim=(1, 2, 3), reduction="none"
        )
        return ratios.tolist()

    return score_pairs("psnr_db", sources, edits, score)


def ssim(sources: Images, edits: Images) -> list[float]:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4)), -1..1, 1 for equal images.

    Gaussian windows of 11 x 11 px, sigma 1.5; K1 0.01, K2 0.03; the mean over all windows that lie
    wholly inside the image, and over R, G and B. torchmetrics computes it; its releases differ in
    whether windows over the mirrored border count, so those are cut off here, as in scikit-image.
    Both sides need at least 11 px.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    def score(before: Tensor, after: Tensor) -> list[float]:
        _, by_window = structural_similarity_index_measure(
            after.double(),
            before.double(),
            data_range=1.0,
            sigma=1.5,
            reduction="none",
            return_full_image=True,
        )
        rim = SSIM_WINDOW_PX // 2
        values: list[float] = by_window[..., rim:-rim, rim:-rim].mean(dim=(1, 2, 3)).tolist()
        return values

    return score_pairs("ssim", sources, edits, score, least_px=SSIM_WINDOW_PX)


def changed_share(
    sources: Images, edits: Images, *, distance: float = CHANGED_DISTANCE
) -> list[float]:
    """Share of pixels that changed, 0..1.

    Both images are averaged over 3 x 3 pixels; a pixel has changed if the Euclidean distance of the
    averages in RGB exceeds `distance`. Averaging removes most of what an autoencoder adds: noise,
    and a rim along edges. What remains, and how the threshold was chosen, is in
    `fpe_core.still_life.benchmark.measure_scores`.

    Raises:
        ParameterError: also for a distance below 0.
    """
    if not distance >= 0:
        raise ParameterError(f"distance must be 0 or more, got {distance!r}")

    def score(before: Tensor, after: Tensor) -> list[float]:
        distances = (_mean_of_nine(after) - _mean_of_nine(before)).norm(dim=1)
        shares: list[float] = (distances > distance).double().mean(dim=(1, 2)).tolist()
        return shares

    return score_pairs("changed_share", sources, edits, score)


def sharpness_ratio(sources: Images, edits: Images) -> list[float | None]:
    """Variance of the edit's Laplacian over that of the source's: 1 as sharp, below 1 softer.

    Of the luma (BT.601), with the four direct neighbours, inside the image; the variance as in
    Pech-Pacheco et al. 2000 (ICPR, "Diatom autofocusing in brightfield microscopy"). It falls with
    blur and rises with noise and patterns, so it measures blur and grain, not quality. None if the
    source is flat (a variance below 1e-6), because there is nothing to compare with.
    """

    def score(before: Tensor, after: Tensor) -> list[float | None]:
        was, became = _laplacian_variance(before).tolist(), _laplacian_variance(after).tolist()
        return [b / a if a >= _FLAT else None for a, b in zip(was, became, strict=True)]

    return score_pairs("sharpness_ratio", sources, edits, score, least_px=SHARPNESS_LEAST_PX)


def saturation_shift(sources: Images, edits: Images) -> list[float]:
    """Mean chroma of the edit minus that of the source, -1..1: above 0 more colourful.

    Chroma is max(R, G, B) - min(R, G, B): the saturation of HSV times its value, which unlike the
    saturation itself is stable for dark colours. Too much guidance raises this and `clipped_shift`.
    """

    def score(before: Tensor, after: Tensor) -> list[float]:
        shifts: list[float] = (_mean_chroma(after) - _mean_chroma(before)).tolist()
        return shifts

    return score_pairs("saturation_shift", sources, edits, score)


def clipped_shift(sources: Images, edits: Images) -> list[float]:
    """Share of channel values at 0 or 255 in the edit minus that in the source, -1..1."""

    def score(before: Tensor, after: Tensor) -> list[float]:
        shifts: list[float] = (_clipped_share(after) - _clipped_share(before)).tolist()
        return shifts

    return score_pairs("clipped_shift", sources, edits, score)


def _mean_of_nine(images: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1)


def _laplacian_variance(images: Tensor) -> Tensor:
    luma = torch.einsum("nchw,c->nhw", images.double(), images.new_tensor(_LUMA).double())
    middle = luma[:, 1:-1, 1:-1]
    across = luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    along = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1]
    return (across + along - 4 * middle).flatten(1).var(dim=1, correction=0)


def _mean_chroma(images: Tensor) -> Tensor:
    return (images.amax(dim=1) - images.amin(dim=1)).double().mean(dim=(1, 2))


def _clipped_share(images: Tensor) -> Tensor:
    clipped = (images < _HALF_LEVEL) | (images > 1 - _HALF_LEVEL)
    return clipped.double().mean(dim=(1, 2, 3))
