"""The ways of editing (arms) that are compared: all exact, all with the same weights.

    A     the authors' procedure, step by step (`fpe_core.reference`), in float32; or their own code
          from a checkout (`jobs.bench.speed.authors_checkout`)
    B     a plain diffusers loop (`jobs.bench.speed.plain_loop`), nothing shared between edits
    B+    the same, but the edits of a source share its inversion
    C     ours, one source at a time
    D     ours, all sources together

Approximations are not compared here, because their speed means little without their quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from fpe_core import Checkpoint, Editor, EditParameters
from fpe_core.checkpoint.autoencoder import Autoencoder, latent_shape
from fpe_core.reference import Reference
from fpe_core.unet.attention import select_layers, self_attention_layers
from fpe_core.unet.row_limit import RowLimit
from jobs.bench.speed.authors_checkout import AuthorsCode, CheckoutArm
from jobs.bench.speed.instruments import Networks, PhaseClock
from jobs.bench.speed.plain_loop import PlainLoop
from jobs.bench.speed.workload import BenchWorkload

NAMES = ("A", "B", "B+", "C", "D")
OURS = ("C", "D")


class Arm(Protocol):
    """One way of editing.

    Attributes:
        name: its letter.
        title: a short description.
        checkpoint: the weights that it runs with.
        networks: its networks, which are timed by hooks.
        shares: what edits share: "nothing", "inversion" (of one source) or "everything". An arm
            that shares everything is timed on the whole workload, others on a part of it.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def networks(self) -> Networks: ...
    @property
    def shares(self) -> str: ...

    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> Tensor:
        """Final latents (edits, C, h, w) on the CPU, source by source; images are made as well."""
        ...

    def afresh(self) -> Self:
        """A copy of the arm in the state before its first call."""
        ...


@dataclass(frozen=True)
class _Baseline:
    """Base of A and B: diffusers' own UNet, one edit at a time."""

    networks: Networks
    checkpoint: Checkpoint
    autoencoder: Autoencoder
    shares: str = "nothing"

    @classmethod
    def of(cls, checkpoint: Checkpoint, **options: Any) -> Self:
        autoencoder = Autoencoder(checkpoint)
        networks = Networks(
            checkpoint.text_encoder, autoencoder.encoder, autoencoder.decoder, checkpoint.unet
        )
        return cls(networks, checkpoint, autoencoder, **options)

    def afresh(self) -> Self:
        return self

    def _encode(self, image: Image.Image) -> Tensor:
        return self.autoencoder.encode([image], RowLimit(1))

    def _finished(self, z: Tensor) -> Tensor:
        self.autoencoder.decode(z, RowLimit(1))
        return z.cpu()


@dataclass(frozen=True)
class AuthorsArm(_Baseline):
    """Arm A. `wrong` is one of `fpe_core.reference.MISTAKES`, for a negative control of the
    gate."""

    wrong: str = ""
    name: str = "A"
    title: str = "the authors' procedure"

    @torch.inference_mode()
    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> Tensor:
        reference = self._reference(workload.parameters)
        latents = []
        for image, source, target in _one_by_one(workload):
            z_0 = self._encode(image)
            with clock.inverting():
                inversion = reference.invert(z_0, source)
            latents.append(self._finished(reference.edit_inverted(inversion, source, target)))
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
            second=(
                None
                if self.checkpoint.text_encoder_2 is None
                else (self.checkpoint.tokenizer_2, self.checkpoint.text_encoder_2)
            ),
            empty_is_zero=self.checkpoint.empty_prompt_is_zero,
        )


@dataclass(frozen=True)
class PlainArm(_Baseline):
    """Arm B; with `shares="inversion"` arm B+. `loop` makes the loop of a checkpoint."""

    name: str = "B"
    title: str = "a plain diffusers loop"
    loop: Callable[[Checkpoint, EditParameters], PlainLoop] = PlainLoop

    @torch.inference_mode()
    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> Tensor:
        loop = self.loop(self.checkpoint, workload.parameters)
        latents = []
        inverted: tuple[Image.Image, list[Tensor]] | None = None
        for image, source, target in _one_by_one(workload):
            if inverted is None or inverted[0] is not image or self.shares == "nothing":
                z_0 = self._encode(image)
                with clock.inverting():
                    inverted = (image, loop.invert(z_0, source))
            latents.append(self._finished(loop.edit(inverted[1], source, target)))
        return torch.cat(latents)


@dataclass(frozen=True)
class OurArm:
    """Arms C and D: the editor of this package."""

    editor: Editor
    name: str
    title: str
    batched: bool
    shares: str = "everything"

    @property
    def checkpoint(self) -> Checkpoint:
        return self.editor.checkpoint

    @property
    def networks(self) -> Networks:
        editor = self.editor
        return Networks(
            self.checkpoint.text_encoder,
            editor.autoencoder.encoder,
            editor.autoencoder.decoder,
            editor.unet,
        )

    def afresh(self) -> Self:
        return replace(self, editor=Editor(self.checkpoint))

    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> Tensor:
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


def exact_arms(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    authors: AuthorsCode | None = None,
) -> list[Arm]:
    """All arms, A first.

    Args:
        checkpoint: the weights of B to D.
        reference: the same weights in float32, for A.
        authors: the authors' own code, for A; None for `fpe_core.reference`.

    Raises:
        ParameterError: the authors' code cannot run this checkpoint.
    """
    editor = Editor(checkpoint)
    return [
        CheckoutArm.of(reference, authors) if authors else AuthorsArm.of(reference),
        PlainArm.of(checkpoint),
        PlainArm.of(checkpoint, name="B+", title="B, inversion shared", shares="inversion"),
        OurArm(editor, "C", "ours, a source at a time", batched=False),
        OurArm(editor, "D", "ours, batched", batched=True),
    ]


def _one_by_one(workload: BenchWorkload) -> Iterator[tuple[Image.Image, str, str]]:
    for image, source, targets in zip(
        workload.images, workload.source_prompts, workload.target_prompts, strict=True
    ):
        for target in targets:
            yield image, source, target
