"""What of an edit's latent is put back to its source's: masks that are given or found.

All statistics are of one edit, and all noise is of one edit's seed, so that an edit does not depend
on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpe_core.editors.method import EditInputs
from fpe_core.errors import ParameterError
from fpe_core.injection import DifferenceMask, WordMask, floor_of
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.rows import UNetRows


class EditNoise:
    """Standard normal noise of some edits, each from the generator of its own seed."""

    def __init__(self, seeds: Sequence[int | None], like: Tensor) -> None:
        """`like`: (anything, C, h, w), with the dtype and the device of the noise.

        Raises:
            ParameterError: an edit without a seed.
        """
        self._like = like
        self._generators = []
        for seed in seeds:
            if seed is None:
                raise ParameterError("this editor adds noise, so every edit needs a seed")
            self._generators.append(torch.Generator(device="cpu").manual_seed(seed % 2**63))

    def draw(self) -> Tensor:
        """The next noise of every edit: (edits, C, h, w); drawn as float32 on the CPU."""
        shape = self._like.shape[1:]
        drawn = [torch.randn(shape, generator=each) for each in self._generators]
        return torch.stack(drawn).to(self._like) if drawn else self._like[:0]


def noised(schedule: DDIMSchedule, z_0: Tensor, level: int, noise: Tensor) -> Tensor:
    """z_0 at level k in closed form: sqrt(a_k) z_0 + sqrt(1 - a_k) noise; at level 0 z_0 itself."""
    if level == 0:
        return z_0
    a = schedule.alphas_bar[level]
    at_level: Tensor = a**0.5 * z_0 + (1 - a) ** 0.5 * noise
    return at_level


def given_masks(inputs: Sequence[EditInputs], like: Tensor) -> Tensor:
    """(edits, 1, h, w), bool: a latent position is edited if any pixel of its block is.

    Raises:
        ParameterError: an edit without a mask, or with one of another size than the edit's.
    """
    _, _, height, width = like.shape
    masks = []
    for number, each in enumerate(inputs, start=1):
        if each.mask is None:
            raise ParameterError(f"edit {number} of the call has no mask, which its editor needs")
        mask = np.asarray(each.mask)
        tall, wide = mask.shape if mask.ndim == 2 else (0, 0)
        if mask.dtype != np.bool_ or tall % height or wide % width or not tall or not wide:
            raise ParameterError(
                f"a mask must be bool and of the edit's size, (height_px, width_px): got "
                f"{mask.dtype} of shape {mask.shape} for latents of {height} x {width}"
            )
        blocks = mask.reshape(height, tall // height, width, wide // width)
        masks.append(torch.from_numpy(blocks.any(axis=(1, 3))))
    made = torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, height, width)
    return made.to(like.device, torch.bool)


def difference_masks(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    mask: DifferenceMask,
    z_0: Tensor,
    *,
    prompts: Sequence[tuple[int, int]],
    noise: EditNoise,
) -> Tensor:
    """DiffEdit's masks (arXiv 2210.11427, sec. 3.2, step 1), two unguided rows per noise and edit.

    Args:
        z_0: of each edit's source, (edits, C, h, w).
        prompts: of each edit, the indices of the source's prompt and of its own.

    Returns:
        (edits, 1, h, w), bool.

    Raises:
        ParameterError: a strength of less than one step.
    """
    level = floor_of(mask.strength, schedule.steps)
    if level < 1:
        raise ParameterError(
            f"mask_strength {mask.strength:g} of {schedule.steps} steps is less than one step"
        )
    copies = torch.stack([noised(schedule, z_0, level, noise.draw()) for _ in range(mask.samples)])
    source, target = ([pair[i] for pair in prompts] * mask.samples for i in (0, 1))
    rows = UNetRows.guided(target, source, 1.0, z_0.device)
    denoiser.prepare([rows])
    output = denoiser.evaluate(rows, copies.flatten(0, 1), schedule.timesteps[level - 1])
    of_source, of_target = output.chunk(2)
    # With v-prediction this is the difference of epsilon but for a factor, which cancels out.
    apart = (of_target - of_source).abs().unflatten(0, copies.shape[:2]).mean(dim=(0, 2))
    limit = mask.most * apart.mean(dim=(1, 2), keepdim=True)
    edited: Tensor = apart.minimum(limit) > mask.threshold * limit
    return edited[:, None]


class WordMasks:
    """Masks from the words' columns of cross-attention maps, summed over the steps."""

    def __init__(self, mask: WordMask, edits: int, like: Tensor) -> None:
        self._mask = mask
        self._size = (int(like.shape[-2]), int(like.shape[-1]))
        height, width = self._size
        for _ in range(mask.level.bit_length() - 1):
            height, width = (height + 1) // 2, (width + 1) // 2
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._grid = height, width
        self._sum = torch.zeros(edits, height * width, 2, dtype=dtype, device=like.device)

    def add(self, columns: list[tuple[Tensor, Tensor]]) -> None:
        """Adds the columns of a step, chunk by chunk with the edits they are of."""
        for edits, seen in columns:
            self._sum[edits] += seen
        columns.clear()

    def masks(self) -> Tensor:
        """(edits, 1, h, w), bool: where either of the two words looks."""
        maps = self._sum.transpose(1, 2).unflatten(2, self._grid)
        maps = functional.max_pool2d(maps, 3, stride=1, padding=1)
        maps = functional.interpolate(maps, size=self._size)
        seen = maps > self._mask.threshold * maps.amax(dim=(2, 3), keepdim=True)
        either: Tensor = seen.any(dim=1, keepdim=True)
        return either


class Blending:
    """Puts the latent outside a mask back after each step."""

    def __init__(
        self,
        outside: Callable[[int, Tensor], Tensor] | None,
        *,
        masks: Tensor | None = None,
        words: WordMasks | None = None,
        first_step: int = 0,
        inside: Tensor | None = None,
        inverted: Callable[[int], Tensor] | None = None,
    ) -> None:
        """
        Args:
            outside: (level k, z_k of sources that are sampled) to the latents of the edits' sources
                there, (edits, C, h, w); None: the method puts nothing back.
            masks: the method's, if they are the same at every step: (edits, 1, h, w), bool.
            words: else what the masks are found from.
            first_step: the first step after which the latent is put back.
            inside: masks that bind, (edits, 1, h, w), bool; None: nothing binds.
            inverted: level k to the inversions' latents there, for these.
        """
        self._masks = masks
        self._outside = outside
        self._words = words
        self._first_step = first_step
        self._inside = inside
        self._inverted = inverted

    @property
    def masks(self) -> Tensor | None:
        """(edits, 1, h, w), bool, True where an edit is its own; None if nothing was put back."""
        if self._masks is None or self._inside is None:
            return self._masks if self._inside is None else self._inside
        return self._masks & self._inside

    def bound(self, k: int, z: Tensor) -> Tensor:
        """z_k with the inversion's latent outside of the masks that bind."""
        if self._inside is None or self._inverted is None:
            return z
        return torch.where(self._inside, z, self._inverted(k))

    def after(
        self,
        step: int,
        k: int,
        z: Tensor,
        z_source: Tensor,
        columns: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """z_k with the latent outside the masks put back.

        `columns`: of the words in this step's maps; they are taken out.
        """
        if self._words is not None:
            self._words.add(columns)
            if step >= self._first_step:
                self._masks = self._words.masks()
        if self._outside is not None and self._masks is not None:
            z = torch.where(self._masks, z, self._outside(k, z_source))
        return self.bound(k, z)
