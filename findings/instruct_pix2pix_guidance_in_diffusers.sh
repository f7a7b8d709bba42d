#!/usr/bin/env bash
# InstructPix2Pix has two guidance scales, one for the instruction and one for the image. One would guess
# that an image scale of 0.99 gives nearly the picture of 1.0, with the instruction guided as strongly.
#
# diffusers 0.42.1 with torch 2.13.0: StableDiffusionInstructPix2PixPipeline guides only if guidance_scale
# is above 1 and image_guidance_scale is at least 1. Below that it evaluates one row a step instead of
# three, and the instruction is not guided either, whatever its scale. Nothing is said about it.
#
# Seen, with a tiny random model, four steps, guidance_scale 7.5, noise of one seed:
#     image scale 1.00: 3 rows a step
#     image scale 0.99: 1 row a step, the same picture as with guidance_scale 1: True
# Exits with 0 as long as that is seen, else with 1. Needs python3.11 or newer and PyPI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
)
vae = AutoencoderKL(block_out_channels=(32, 32, 32, 32), down_block_types=["DownEncoderBlock2D"] * 4,
                    up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4)
pipe = StableDiffusionInstructPix2PixPipeline(
    vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipe.set_progress_bar_config(disable=True)
text, none = torch.randn(1, 7, 32), torch.zeros(1, 7, 32)
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
rows = []
unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))


def edited(text_scale, image_scale):
    rows.clear()
    made = pipe(
        prompt_embeds=text, negative_prompt_embeds=none, image=image, num_inference_steps=4,
        guidance_scale=text_scale, image_guidance_scale=image_scale,
        generator=torch.Generator().manual_seed(1), output_type="np",
    ).images
    return made, set(rows)


with torch.no_grad():
    _, guided = edited(7.5, 1.0)
    below, rows_below = edited(7.5, 0.99)
    without, _ = edited(1.0, 1.0)
same = bool((below == without).all())
print("image scale 1.00:", *guided, "rows a step")
print("image scale 0.99:", *rows_below, "row a step, the same picture as with guidance_scale 1:", same)
sys.exit(0 if guided == {3} and rows_below == {1} and same else 1)
PYTHON
