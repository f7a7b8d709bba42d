"""Images as the scores take them: a float tensor (N, 3, H, W) in 0..1, or a list of PIL images.

In a list, every image may have its own size and mode; it is converted to RGB, and its values are
divided by 255. Values are sRGB as stored, not linear light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpe_core.errors import ParameterError

Images = Tensor | Sequence[Image.Image]

IMAGES_AT_ONCE = 16
"""How many images of one size are processed together."""


def image_rows(images: Images) -> list[Tensor]:
    """Each image as (3, H, W), float32, 0..1.

    Raises:
        ParameterError: a tensor of another shape or type, or with values that are not in 0..1.
    """
    if not isinstance(images, Tensor):
        return [_of_image(image) for image in images]
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ParameterError(
            f"images must be floats of shape (N, 3, H, W), got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        raise ParameterError("images must have values in 0..1; divide 8-bit values by 255")
    return list(images.detach().float().unbind())


def batches_by_size(*columns: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Batches of rows of equal size: their numbers, and each column stacked to (n, 3, H, W)."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, row in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(each.shape for each in row), []).append(number)
    for numbers in groups.values():
        for first in range(0, len(numbers), IMAGES_AT_ONCE):
            chosen = numbers[first : first + IMAGES_AT_ONCE]
            yield chosen, [torch.stack([column[n] for n in chosen]) for column in columns]


def score_pairs(
    name: str,
    sources: Images,
    edits: Images,
    score: Callable[[Tensor, Tensor], Sequence[Any]],
    *,
    least_px: int = 1,
) -> list[Any]:
    """The score of each source and its edit, in order; `score` gets (n, 3, H, W) of both.

    Raises:
        ParameterError: images that `image_rows` does not accept, different numbers of sources and
            edits, a source and its edit of different sizes, or a side below `least_px`.
    """
    before, after = image_rows(sources), image_rows(edits)
    _check_pairs(name, before, after, least_px)
    scores: dict[int, Any] = {}
    with torch.inference_mode():
        for numbers, (first, second) in batches_by_size(before, after):
            scores.update(zip(numbers, score(first, second), strict=True))
    return [scores[number] for number in range(len(before))]


def _check_pairs(name: str, before: list[Tensor], after: list[Tensor], least_px: int) -> None:
    if len(before) != len(after):
        raise ParameterError(
            f"{name} compares pair by pair, but got {len(before)} sources and {len(after)} edits"
        )
    for number, (source, edit) in enumerate(zip(before, after, strict=True)):
        if source.shape != edit.shape or min(source.shape[1:]) < least_px:
            raise ParameterError(
                f"{name} needs a source and an edit of one size, {least_px} px at least; pair "
                f"{number} has {_size(source)} and {_size(edit)}"
            )


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]} px"


def _of_image(image: Image.Image) -> Tensor:
    levels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(levels / np.float32(255.0)).permute(2, 0, 1)
