"""Pictures as the scores take them: a float tensor (N, 3, H, W) in 0..1, or a list of PIL images.

Of a list, every picture may have its own size and mode; it is read as RGB, v / 255. Values are
sRGB as stored, not linear light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpe_core.errors import ParameterError

Pictures = Tensor | Sequence[Image.Image]

PICTURES_AT_ONCE = 16
"""Pictures of one size that are computed on together."""


def picture_rows(pictures: Pictures) -> list[Tensor]:
    """Each picture as (3, H, W), float32, 0..1.

    Raises:
        ParameterError: a tensor of another shape or type, or with values that are not in 0..1.
    """
    if not isinstance(pictures, Tensor):
        return [_of_image(image) for image in pictures]
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        raise ParameterError(
            f"pictures must be floats of shape (N, 3, H, W), got {pictures.dtype} of shape "
            f"{tuple(pictures.shape)}"
        )
    if pictures.numel() and not bool(((pictures >= 0) & (pictures <= 1)).all()):
        raise ParameterError("pictures must have values in 0..1; divide 8-bit values by 255")
    return list(pictures.detach().float().unbind())


def batches_by_size(*columns: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Rows of equal size together: their numbers, and each column of them stacked (n, 3, H, W)."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, row in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(each.shape for each in row), []).append(number)
    for numbers in groups.values():
        for first in range(0, len(numbers), PICTURES_AT_ONCE):
            chosen = numbers[first : first + PICTURES_AT_ONCE]
            yield chosen, [torch.stack([column[n] for n in chosen]) for column in columns]


def score_pairs(
    name: str,
    sources: Pictures,
    edits: Pictures,
    score: Callable[[Tensor, Tensor], Sequence[Any]],
    *,
    least_px: int = 1,
) -> list[Any]:
    """What `score` says of each source and its edit, in order; it gets (n, 3, H, W) of both.

    Raises:
        ParameterError: other pictures than `picture_rows` takes, another number of them, a source
        and its edit of different sizes, or a side below `least_px`.
    """
    before, after = picture_rows(sources), picture_rows(edits)
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


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]} px"


def _of_image(image: Image.Image) -> Tensor:
    levels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(levels / np.float32(255.0)).permute(2, 0, 1)
