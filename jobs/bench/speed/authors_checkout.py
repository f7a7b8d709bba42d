"""Arm A with the authors' own code, imported from a checkout that the user has.

The checkout is the folder diffusion/FreePromptEditing of github.com/alibaba/EasyNLP. Two things
differ from this program. Their inversion uses guidance 7.5 and ours 1, which is the same if the
source prompt is empty; so these measurements have no source prompts. They select layers by a number
of tokens; so all arms use that rule (`LAYERS`).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpe_core import Checkpoint, LayersByTokens, ParameterError
from jobs.bench.speed.instruments import Networks, PhaseClock
from jobs.bench.speed.plain_loop import plain_scheduler
from jobs.bench.speed.workload import BenchWorkload

LAYERS = LayersByTokens(1024)
"""The authors' rule: layers with at most 32 x 32 tokens are replaced."""

_NEEDED = {"cv2": "opencv-python-headless", "einops": "einops", "torchvision": "torchvision"}
_SCALING_FACTOR = 0.18215


class AuthorsCode(NamedTuple):
    """The classes and functions of a checkout that are used.

    `register` installs an attention `controller` in a `pipeline`.
    """

    pipeline: Any
    controller: Any
    register: Any


def load_code(folder: pathlib.Path) -> AuthorsCode:
    """Imports a checkout.

    Raises:
        ParameterError: the folder is not a checkout, or a package that it needs is missing.
    """
    if not (folder / "Freeprompt" / "diffuser_utils.py").exists():
        raise ParameterError(
            f"--authors: {folder} has no Freeprompt/diffuser_utils.py; give the folder "
            "diffusion/FreePromptEditing of a checkout of github.com/alibaba/EasyNLP"
        )
    try:
        with _importable(folder):
            return AuthorsCode(
                importlib.import_module("Freeprompt.diffuser_utils").FreePromptPipeline,
                importlib.import_module("Freeprompt.freeprompt").SelfAttentionControlEdit,
                importlib.import_module(
                    "Freeprompt.freeprompt_utils"
                ).register_attention_control_new,
            )
    except ImportError as error:
        missing = [pip for name, pip in _NEEDED.items() if not importlib.util.find_spec(name)]
        raise ParameterError(
            f"--authors: {folder} cannot be imported ({error}); it needs packages that this "
            f"program does not: pip install {' '.join(missing or _NEEDED.values())}"
        ) from error


@dataclass(frozen=True)
class CheckoutArm:
    """Arm A with the authors' code: one edit at a time, nothing shared."""

    checkpoint: Checkpoint
    code: AuthorsCode
    pipeline: Any
    name: str = "A"
    title: str = "the authors' own code"
    shares: str = "nothing"

    @classmethod
    def of(cls, checkpoint: Checkpoint, code: AuthorsCode) -> Self:
        """
        Raises:
            ParameterError: their code cannot run this checkpoint as ours does.
        """
        _require_theirs(checkpoint)
        return cls(checkpoint, code, _pipeline(checkpoint, code))

    @property
    def networks(self) -> Networks:
        vae = self.checkpoint.vae
        return Networks(self.checkpoint.text_encoder, vae.encoder, vae.decoder, self.pipeline.unet)

    def afresh(self) -> Self:
        return self

    @torch.inference_mode()
    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> Tensor:
        """Final latents; see `jobs.bench.speed.arms.Arm`."""
        return torch.cat(
            [
                self._edit(image, source, target, workload, clock)
                for image, source, targets in zip(
                    workload.images, workload.source_prompts, workload.target_prompts, strict=True
                )
                for target in targets
            ]
        )

    def _edit(
        self,
        image: Image.Image,
        source: str,
        target: str,
        workload: BenchWorkload,
        clock: PhaseClock,
    ) -> Tensor:
        parameters, pipeline = workload.parameters, self.pipeline
        _unregister(pipeline.unet)
        with clock.inverting():
            start, trajectory = pipeline.invert(
                self._tensor(image),
                source,
                num_inference_steps=parameters.steps,
                guidance_scale=parameters.guidance_scale,
                return_intermediates=True,
            )
        prompts = [source, target]
        controller = self.code.controller(
            prompts, parameters.steps, float(parameters.replaced_fraction)
        )
        self.code.register(pipeline, controller)
        pipeline(
            prompts,
            height=parameters.height_px,
            width=parameters.width_px,
            num_inference_steps=parameters.steps,
            guidance_scale=parameters.guidance_scale,
            latents=start.expand(len(prompts), -1, -1, -1),
            ref_intermediate_latents=trajectory,
        )
        latents: Tensor = pipeline.final_latents[1:].cpu()
        return latents

    def _tensor(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        return (pixels.float() / 127.5 - 1).to(self.checkpoint.device)


def _pipeline(checkpoint: Checkpoint, code: AuthorsCode) -> Any:
    theirs: Any = code.pipeline

    class KeepsLatents(theirs):  # type: ignore[misc]
        """Keeps the final latents, because their pipeline returns only images."""

        def latent2image(self, latents: Tensor, return_type: str = "np") -> Any:
            self.final_latents = latents
            return super().latent2image(latents, return_type)

    return KeepsLatents(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=_with_the_same_tensors(checkpoint.unet),
        scheduler=plain_scheduler(checkpoint),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _with_the_same_tensors(unet: Any) -> Any:
    """A copy of the UNet that shares its weights, so that its attention can be replaced."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


def _unregister(unet: Any) -> None:
    """Undoes their registration, which replaces `forward` of the attention modules."""
    for module in unet.modules():
        module.__dict__.pop("forward", None)


def _require_theirs(checkpoint: Checkpoint) -> None:
    prediction = checkpoint.scheduler_config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise ParameterError(
            f"--authors: {checkpoint.name} predicts {prediction}; the authors' code reads every "
            "output as epsilon: leave this model out"
        )
    scale = checkpoint.vae.config.scaling_factor
    if scale != _SCALING_FACTOR:
        raise ParameterError(
            f"--authors: {checkpoint.name} scales its latents by {scale}; the authors' code by "
            f"{_SCALING_FACTOR} always: leave this model out"
        )
    if checkpoint.device.type == "cpu" and torch.cuda.is_available():
        raise ParameterError(
            "--authors: the authors' code takes CUDA where there is one: --device cuda, or hide "
            "the GPU with CUDA_VISIBLE_DEVICES="
        )


@contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
