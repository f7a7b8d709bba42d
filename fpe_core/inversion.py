"""What an edit starts from: the inverted trajectory of an image, or a prompt and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fpe_core.image.fit import Fit
from fpe_core.null_text import NullText
from fpe_core.parameters import EditParameters
from fpe_core.schedule import DDIMSchedule
from fpe_core.size_ids import SizeIds, size_ids_of, size_ids_of_synthetic
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.regions import RegionSplit
from fpe_core.unet.rows import UNetRows


@dataclass(frozen=True)
class Inversion:
    """DDIM inversions of S images (FPE, arXiv 2403.03431, sec. 4).

    Attributes:
        trajectory: z_0 .. z_K of each image, (S, K + 1, C, h, w), float32 on the model's device; K
            is what the parameters' editor needs, mostly all T steps.
        images: the images as the model saw them, RGB at the parameters' size.
        fits: how each of them was fitted from the image that was passed in.
        source_prompts: the prompt each was inverted with, "" for none.
        parameters: what they were inverted with; an edit must agree on steps and size.
        diverged: per image, whether its trajectory holds a NaN or infinity.
        truncated_prompts: per image, the part of its prompt that did not fit the text encoder.
        unet_rows: UNet rows it took, K per image; more with null-text inversion.
        null_text: the embeddings of the edits' unconditional rows, if they were optimised.
        noise_maps: of an edit-friendly inversion, (S, K, C, h, w), see `fpe_core.edit_friendly`.
    """

    trajectory: Tensor
    images: tuple[Image.Image, ...]
    fits: tuple[Fit, ...]
    source_prompts: tuple[str, ...]
    parameters: EditParameters
    diverged: tuple[bool, ...]
    truncated_prompts: tuple[str, ...]
    unet_rows: int
    null_text: NullText | None = None
    noise_maps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def start(self) -> Tensor:
        """The noisiest latent of each image, (S, C, h, w); at T steps it is where edits start."""
        return self.trajectory[:, -1]

    @property
    def sizes(self) -> tuple[SizeIds, ...]:
        """What a model is told of each image's size."""
        width_px, height_px = self.parameters.width_px, self.parameters.height_px
        return tuple(size_ids_of(fit, width_px, height_px) for fit in self.fits)

    def select(self, indices: Sequence[int]) -> Inversion:
        """The inversions of some of the images, in the given order, with their part of the rows."""
        return Inversion(
            trajectory=self.trajectory[list(indices)],
            images=tuple(self.images[i] for i in indices),
            fits=tuple(self.fits[i] for i in indices),
            source_prompts=tuple(self.source_prompts[i] for i in indices),
            parameters=self.parameters,
            diverged=tuple(self.diverged[i] for i in indices),
            truncated_prompts=tuple(self.truncated_prompts[i] for i in indices),
            unet_rows=self.unet_rows * len(indices) // max(1, len(self)),
            null_text=None if self.null_text is None else self.null_text.select(indices),
            noise_maps=None if self.noise_maps is None else self.noise_maps[list(indices)],
        )


def invert(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    rows: UNetRows,
    z: Tensor,
    steps: int,
    *,
    regions: RegionSplit | None = None,
    invert_step: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Walks latents up to noise by unguided DDIM inversion.

    Args:
        rows: one unguided row for each latent.
        z: z_0, (S, C, h, w).
        steps: how many of the schedule's, K.
        regions: masks of the latents that split attention; None: nothing does.
        invert_step: in the place of the schedule's own.

    Returns:
        z_0 .. z_K, (S, K + 1, C, h, w).

    Raises:
        RowsOutOfMemoryError: a single row does not fit.
    """
    denoiser.prepare([rows])
    trajectory, move = [z], invert_step or schedule.invert_step
    for k, t in enumerate(schedule.timesteps[:steps]):
        z = move(z, denoiser.evaluate(rows, z, t, regions), k)
        trajectory.append(z)
    return torch.stack(trajectory, dim=1)


def seed_of(image: Image.Image) -> int:
    """The seed of the noise that an inversion draws for a source, 0 .. 2^63 - 1: of its pixels, so
    that the same image has the same noise in every batch and every run."""
    content = f"{image.mode} {image.size}".encode() + image.tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class SyntheticSources:
    """S sources without an image: each is sampled from its prompt and seed, with its edits.

    Attributes:
        noise: start noise z_T, (S, C, h, w), float32; a seed gives the same noise on every device.
        source_prompts: what each source shows.
        seeds: the seed of each.
        parameters: an edit must agree on steps and size.
    """

    noise: Tensor
    source_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    parameters: EditParameters

    def __len__(self) -> int:
        return len(self.source_prompts)

    @property
    def sizes(self) -> tuple[SizeIds, ...]:
        """What a model is told of each source's size."""
        own = size_ids_of_synthetic(self.parameters.width_px, self.parameters.height_px)
        return (own,) * len(self)

    @property
    def start(self) -> Tensor:
        """z_T, where each source and its edits start: (S, C, h, w)."""
        return self.noise


Sources = Inversion | SyntheticSources


@dataclass(frozen=True)
class Edit:
    """One edited image.

    Attributes:
        target_prompt: what was asked for.
        image: RGB, 8 bits, at the parameters' size.
        latent: final latent z_0, (C, h, w), float32, on the CPU.
        is_finite: False if the latent or the image has a NaN or infinity anywhere; the image is
            then meaningless.
        truncated_prompt: the part of the prompt that did not fit the text encoder, "" if all did.
        mask: where the latent is not put back to the source's, (h, w), bool, on the CPU; None for
            editors without masks.
    """

    target_prompt: str
    image: Image.Image
    latent: Tensor
    is_finite: bool
    truncated_prompt: str
    mask: Tensor | None = None


@dataclass(frozen=True)
class EditResult:
    """The edits of S sources.

    Attributes:
        edits: per source, its edits in the order of its target prompts.
        source_images: per source the image it was edited from: the fitted input, or the synthesised
            one.
        unet_rows: UNet rows this call took, inversion not included.
    """

    edits: tuple[tuple[Edit, ...], ...]
    source_images: tuple[Image.Image, ...]
    unet_rows: int
