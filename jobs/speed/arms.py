"""The ways of editing that are compared: all exact, all with one set of weights.

    A     the authors' procedure, literally (`fpe_core.reference`), float32
    B     a plain diffusers loop (`jobs.speed.plain_loop`), nothing shared between edits
    B+    the same, but the edits of a source share its inversion
    C     ours, one source at a time
    D     ours, all sources together
    E     as D, compiled by torch

Approximate ways are not among them: what they cost in quality has to stand beside their speed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from fpe_core import Checkpoint, Editor, EditParameters
from fpe_core.attention import select_layers, self_attention_layers
from fpe_core.autoencoder import decode_latents, encode_images, latent_shape
from fpe_core.compilation import compile_regions
from fpe_core.reference import Reference
from fpe_core.rows import RowLimit
from jobs.speed.clock import PhaseClock
from jobs.speed.plain_loop import PlainLoop
from jobs.speed.workload import Workload

_ONE_IMAGE = 1


class Arm(Protocol):
    """One way of editing.

    Attributes:
        name: its letter.
        title: what it is, in a few words.
        checkpoint: what it runs; its networks are those to watch.
        shares: what edits share: "nothing", "inversion" (of one source) or "everything" (it gets
            faster with more sources and edits, so it is run with all of them).
        is_compiled: whether its first call compiles.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def shares(self) -> str: ...
    @property
    def is_compiled(self) -> bool: ...

    def edit(self, workload: Workload, clock: PhaseClock) -> Tensor:
        """Final latents (edits, C, h, w) on the CPU, source by source; images are made as well."""
        ...


@dataclass(frozen=True)
class AuthorsArm:
    """A. With `wrong`, one of `fpe_core.reference.MISTAKES`, a negative control of the gate."""

    checkpoint: Checkpoint
    wrong: str = ""
    name: str = "A"
    title: str = "the authors' procedure"
    shares: str = "nothing"
    is_compiled: bool = False

    @torch.inference_mode()
    def edit(self, workload: Workload, clock: PhaseClock) -> Tensor:
        reference = self._reference(workload.parameters)
        latents = []
        for image, source, target in _one_by_one(workload):
            z_0 = encode_images(self.checkpoint, [image], RowLimit(_ONE_IMAGE))
            with clock.inverting():
                inversion = reference.invert(z_0, source)
            z = reference.edit_inverted(inversion, source, target)
            decode_latents(self.checkpoint, z, RowLimit(_ONE_IMAGE))
            latents.append(z.cpu())
        return torch.cat(latents)

    def _reference(self, parameters: EditParameters) -> Reference:
        _, height, width = latent_shape(self.checkpoint, parameters)
        layers = self_attention_layers(self.checkpoint.unet, height, width)
        replaced = {layer.position for layer in select_layers(layers, parameters.layers)}
        return Reference(
            unet=self.checkpoint.unet,
            text_encoder=self.checkpoint.text_encoder,
            tokenizer=self.checkpoint.tokenizer,
            steps=parameters.steps,
            guidance_scale=parameters.guidance_scale,
            replaced_fraction=parameters.replaced_fraction,
            is_replaced=lambda position, _tokens: position in replaced,
            negative_prompt=parameters.negative_prompt,
            prediction_type=str(self.checkpoint.scheduler_config.get("prediction_type", "epsilon")),
            wrong=self.wrong,
        )


@dataclass(frozen=True)
class PlainArm:
    """B, and with `shares="inversion"` B+."""

    checkpoint: Checkpoint
    name: str = "B"
    title: str = "a plain diffusers loop"
    shares: str = "nothing"
    is_compiled: bool = False

    @torch.inference_mode()
    def edit(self, workload: Workload, clock: PhaseClock) -> Tensor:
        loop = PlainLoop(self.checkpoint, workload.parameters)
        latents = []
        inverted: tuple[str, list[Tensor]] | None = None
        for image, source, target in _one_by_one(workload):
            if inverted is None or inverted[0] != source or self.shares == "nothing":
                z_0 = encode_images(self.checkpoint, [image], RowLimit(_ONE_IMAGE))
                with clock.inverting():
                    inverted = (source, loop.invert(z_0, source))
            z = loop.edit(inverted[1], source, target)
            decode_latents(self.checkpoint, z, RowLimit(_ONE_IMAGE))
            latents.append(z.cpu())
        return torch.cat(latents)


@dataclass(frozen=True)
class OurArm:
    """C, D and E: the editor of this package."""

    editor: Editor
    name: str
    title: str
    batched: bool
    is_compiled: bool = False
    shares: str = "everything"

    @property
    def checkpoint(self) -> Checkpoint:
        return self.editor.checkpoint

    def edit(self, workload: Workload, clock: PhaseClock) -> Tensor:
        size = len(workload.images) if self.batched else 1
        latents = []
        for first in range(0, len(workload.images), size):
            part = slice(first, first + size)
            with clock.inverting():
                inversion = self.editor.invert(
                    workload.images[part], workload.source_prompts[part], workload.parameters
                )
            result = self.editor.edit(inversion, workload.target_prompts[part])
            latents += [edit.latent for edits in result.edits for edit in edits]
        return torch.stack(latents)


def exact_arms(checkpoint: Checkpoint, reference: Checkpoint, compiler: str) -> list[Arm]:
    """All arms in order, A first.

    Args:
        checkpoint: what B to E run.
        reference: the same weights in float32, for A.
        compiler: torch.compile's backend; "none" leaves E out.
    """
    eager = Editor(checkpoint)
    arms: list[Arm] = [
        AuthorsArm(reference),
        PlainArm(checkpoint),
        PlainArm(checkpoint, "B+", "B, inversion shared", "inversion"),
        OurArm(eager, "C", "ours, a source at a time", batched=False),
        OurArm(eager, "D", "ours, batched", batched=True),
    ]
    if compiler != "none":
        editor = Editor(compiled(checkpoint, compiler))
        arms.append(OurArm(editor, "E", "ours, batched, compiled", True, is_compiled=True))
    return arms


def compiled(checkpoint: Checkpoint, backend: str) -> Checkpoint:
    """The checkpoint with a UNet whose regions are compiled when they first run.

    Its weights are the same tensors; its modules are copies, so the other arms stay as they are.

    Raises:
        ParameterError: torch has no such backend.
    """
    unet = checkpoint.unet
    tensors = {id(each): each for each in (*unet.parameters(), *unet.buffers())}
    copied = copy.deepcopy(unet, tensors)
    compile_regions(copied, backend)
    return dataclasses.replace(checkpoint, unet=copied)


def _one_by_one(workload: Workload) -> Iterator[tuple[Image.Image, str, str]]:
    for image, source, targets in zip(
        workload.images, workload.source_prompts, workload.target_prompts, strict=True
    ):
        for target in targets:
            yield image, source, target
