"""In the place of the authors' checkout, with its names: what arm A calls of their pipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

SCALE = 0.18215


class FreePromptPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """DDIM both ways, always guided; an edit is the second of two prompts."""

    @torch.no_grad()
    def invert(
        self,
        image: Tensor,
        prompt: str,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        return_intermediates: bool = False,
    ) -> Any:
        """An image (1, 3, H, W) in -1..1 to noise; with `return_intermediates` z_0 .. z_T too."""
        context = self._context([prompt])
        start = z = self.vae.encode(image).latent_dist.mean * SCALE
        self.scheduler.set_timesteps(num_inference_steps)
        trajectory = [z]
        for timestep in reversed(self.scheduler.timesteps):
            output = self._guided(z, timestep, context, guidance_scale)
            z = self._moved(z, output, self._level_below(timestep), self._level(timestep))
            trajectory.append(z)
        return (z, trajectory) if return_intermediates else (z, start)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        latents: Tensor | None = None,
        ref_intermediate_latents: list[Tensor] | None = None,
    ) -> Any:
        """Latents (2, C, h, w) to pictures; the first is pinned to the reference's trajectory."""
        assert latents is not None
        assert ref_intermediate_latents is not None
        assert latents.shape == (len(prompt), 4, height // 8, width // 8)
        context, z = self._context(prompt), latents
        self.scheduler.set_timesteps(num_inference_steps)
        for i, timestep in enumerate(self.scheduler.timesteps):
            z = torch.cat([ref_intermediate_latents[-1 - i], z[1:]])
            output = self._guided(z, timestep, context, guidance_scale)
            z = self._moved(z, output, self._level(timestep), self._level_below(timestep))
        return self.latent2image(z, return_type="pt")

    @torch.no_grad()
    def latent2image(self, latents: Tensor, return_type: str = "np") -> Any:
        image = self.vae.decode(latents / SCALE).sample
        return image if return_type == "pt" else image.permute(0, 2, 3, 1).cpu().numpy()

    def _context(self, prompts: list[str]) -> Tensor:
        ids = self.tokenizer(
            [""] * len(prompts) + prompts, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        context: Tensor = self.text_encoder(ids)[0]
        return context

    def _guided(self, z: Tensor, timestep: Tensor, context: Tensor, scale: float) -> Tensor:
        output = self.unet(torch.cat([z] * 2), timestep, encoder_hidden_states=context).sample
        unconditional, conditional = output.chunk(2)
        guided: Tensor = unconditional + scale * (conditional - unconditional)
        return guided

    def _level(self, timestep: Any) -> Any:
        return self.scheduler.alphas_cumprod[timestep]

    def _level_below(self, timestep: Any) -> Any:
        stride = self.scheduler.config.num_train_timesteps // self.scheduler.num_inference_steps
        below = timestep - stride
        return self._level(below) if below >= 0 else self.scheduler.final_alpha_cumprod

    def _moved(self, z: Tensor, output: Tensor, level_from: Any, level_to: Any) -> Tensor:
        clean = (z - (1 - level_from) ** 0.5 * output) / level_from**0.5
        moved: Tensor = level_to**0.5 * clean + (1 - level_to) ** 0.5 * output
        return moved
