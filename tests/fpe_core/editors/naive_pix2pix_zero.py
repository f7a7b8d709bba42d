"""pix2pix-zero as its paper describes it: one edit at a time, losses written down, torch.autograd.

No code of `fpe_core` is used but the checkpoint's own networks. Of what is random, the shifts of a
source's noise, it draws the same numbers from the same seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tests.fpe_core.editors.naive import Naive, _Explicit, map_of

Shifts = list[Tensor]
"""Level by level, (steps, 25, channels)."""


def invert(naive: Naive, z_0: Tensor, caption: str, image: Image.Image) -> list[Tensor]:
    """z_0 .. z_T, each (1, C, h, w), with noise that is regularised."""
    drawn = shifts_of(naive, z_0, image)
    trajectory = [z_0.clone()]
    for k in range(naive.steps):
        with torch.no_grad():
            noise = naive.unet([trajectory[-1]], k, [caption])
        if naive.wrong != "no_regularisation":
            noise = regularised(naive, noise.clone(), [level[k] for level in drawn])
        trajectory.append(naive.move(trajectory[-1], noise, k, k + 1))
    return trajectory


def shifts_of(naive: Naive, z_0: Tensor, image: Image.Image) -> Shifts:
    content = f"{image.mode} {image.size}".encode() + image.tobytes()
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1
    generator = torch.Generator().manual_seed(seed + (naive.wrong == "other_seed"))
    shape, drawn = (naive.steps, 25, z_0.shape[1]), []
    height = z_0.shape[2]
    while True:
        drawn.append(torch.randint(1, max(2, height // 2), shape, generator=generator))
        if height <= 8:
            return drawn
        height //= 2


def regularised(naive: Naive, noise: Tensor, drawn: Shifts) -> Tensor:
    """Five rounds of five steps down the correlation and one down the divergence."""
    for round_ in range(5):
        for inner in range(5):
            own = [level[5 * round_ + inner].tolist() for level in drawn]
            noise = noise - 20 * slope_of(lambda x, own=own: correlation(x, own), noise) / 5
        if naive.wrong != "no_divergence":
            noise = noise - 20 * slope_of(divergence, noise)
    return noise


def correlation(x: Tensor, shifts: Sequence[Sequence[int]]) -> Tensor:
    loss = torch.zeros((), dtype=x.dtype)
    for channel in range(x.shape[1]):
        plane = x[:, channel : channel + 1]
        for number, level in enumerate(shifts):
            plane = functional.avg_pool2d(plane, 2) if number else plane
            loss = loss + (plane * torch.roll(plane, level[channel], dims=2)).mean() ** 2
            loss = loss + (plane * torch.roll(plane, level[channel], dims=3)).mean() ** 2
    return loss


def divergence(x: Tensor) -> Tensor:
    return x.var() + x.mean() ** 2 - 1 - torch.log(x.var() + 1e-7)


def slope_of(loss: Any, at: Tensor) -> Tensor:
    with torch.enable_grad():
        x = at.detach().clone().requires_grad_()
        loss(x).backward()
    assert x.grad is not None
    return x.grad


def edit(
    naive: Naive,
    trajectory: list[Tensor],
    caption: str,
    target: str,
    *,
    sentences: tuple[Sequence[str], Sequence[str]] | None = None,
    size: float = 0.1,
    guided: Sequence[bool] | None = None,
) -> Tensor:
    """The reconstruction of all steps first, with all of its maps, and then the edit.

    `sentences`: of the source and of the target. `guided`: step by step from the noisy end; None:
    all of them.
    """
    guided = [True] * naive.steps if guided is None else guided
    given = naive.text(target)
    if sentences is not None:
        source, wanted = (torch.cat([naive.text(each) for each in own]) for own in sentences)
        given = naive.text(caption) + wanted.mean(0, True) - source.mean(0, True)
    free = naive.text("" if naive.wrong == "empty_prompt" else caption)
    references: list[list[Tensor]] = []
    z = trajectory[naive.steps].clone()
    for k in reversed(range(naive.steps)):
        seen: list[Tensor] = []
        with torch.no_grad():
            noise = evaluated(naive, z, k, naive.text(caption), seen)
        references.append(seen)
        z = naive.move(z, noise, k + 1, k)
    z = naive.kept(trajectory[naive.steps].clone(), naive.steps)
    for step, k in enumerate(reversed(range(naive.steps))):
        rows = [moved(naive, z, k, each, references[step], size) for each in (free, given)]
        with torch.no_grad():
            outputs = [
                evaluated(naive, row, k, text, [])
                for row, text in zip(rows, (free, given), strict=True)
            ]
        if guided[step]:
            stepped = rows[1 if naive.wrong == "conditional_latent" else 0]
            if naive.wrong == "latent_not_moved":
                stepped = z
            z = naive.move(stepped, naive.guided(outputs[0], outputs[1]), k + 1, k)
        else:
            z = naive.move(rows[1], outputs[1], k + 1, k)
        z = naive.kept(z, k)
    return z


def moved(
    naive: Naive, z: Tensor, k: int, text: Tensor, reference: list[Tensor], size: float
) -> Tensor:
    """A row's latent after a step down the distance of its maps to the reference."""
    if naive.wrong == "no_guidance":
        return z

    def loss(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        evaluated(naive, x, k, text, seen)
        apart = torch.zeros((), dtype=x.dtype)
        for maps, theirs in zip(seen, reference, strict=True):
            apart = apart + ((maps - theirs) ** 2).sum((-1, -2)).sum() / (2 * maps.shape[1])
        return apart

    return z - size * slope_of(loss, z)


def evaluated(naive: Naive, z: Tensor, k: int, text: Tensor, seen: list[Tensor]) -> Tensor:
    """epsilon of one row, (1, C, h, w); its cross-attention maps are added to `seen`."""

    def attend(is_self: bool, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        maps = map_of(query, key)
        if not is_self:
            seen.append(maps)
        return maps @ value

    unet = naive.checkpoint.unet
    own = dict(unet.attn_processors)
    unet.set_attn_processor(_Explicit(attend))
    try:
        made: Tensor = unet(z, naive.t(k), encoder_hidden_states=text).sample
    finally:
        unet.set_attn_processor(own)
    return made
