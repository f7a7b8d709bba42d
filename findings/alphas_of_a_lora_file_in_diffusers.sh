#!/usr/bin/env bash
# A LoRA file of kohya's layout has an alpha beside every layer; the layer's change is alpha / rank * up @ down.
# One would guess that every layer is loaded with its own alpha.
#
# diffusers 0.42.1 with peft 0.21.2, transformers 5.23.0 and torch 2.13.0: of the UNet's layers whose alpha is
# not the most common one of the file, those of attention (to_q, to_k, to_v, to_out) get the most common
# alpha; the feed-forward layers keep their own. diffusers hands the alphas on under names of its
# former attention processors, which peft does not find. peft warns that they were ignored, and loading goes on.
#
# Seen, with a tiny random UNet, a file of rank 4 in memory, load_lora_weights and fuse_lora:
#     attn1.to_q      alpha 4, loaded as 4
#     attn1.to_k      alpha 4, loaded as 4
#     attn1.to_v      alpha 1, loaded as 4
#     attn1.to_out.0  alpha 2, loaded as 4
#     ff.net.2        alpha 1, loaded as 1
# Exits with 0 as long as that is seen, else with 1. Needs python3.11 or newer and PyPI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, layers_per_block=1, block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
)
pipe = StableDiffusionPipeline(
    vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=None, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)
block = "mid_block.attentions.0.transformer_blocks.0."
rank = 4
alphas = {"attn1.to_q": 4, "attn1.to_k": 4, "attn1.to_v": 1, "attn1.to_out.0": 2, "ff.net.2": 1}
file, products, before = {}, {}, {}
for layer, alpha in alphas.items():
    before[layer] = unet.get_submodule(block + layer).weight.detach().clone()
    height, width = before[layer].shape
    up, down = torch.randn(height, rank), torch.randn(rank, width)
    name = "lora_unet_" + (block + layer).replace(".", "_")
    file[f"{name}.lora_up.weight"], file[f"{name}.lora_down.weight"] = up, down
    file[f"{name}.alpha"] = torch.tensor(float(alpha))
    products[layer] = up @ down

pipe.load_lora_weights(file)
pipe.fuse_lora()
pipe.unload_lora_weights()
loaded, exact = {}, True
for layer, alpha in alphas.items():
    change = unet.get_submodule(block + layer).weight.detach() - before[layer]
    product = products[layer]
    # the alpha with which alpha / rank * up @ down is nearest to the change of the weights
    loaded[layer] = round(rank * float((change * product).sum() / (product * product).sum()), 3)
    exact &= torch.allclose(change, loaded[layer] / rank * product, atol=1e-4)
    print(f"{layer:15} alpha {alpha}, loaded as {loaded[layer]:g}")
sys.exit(0 if exact and list(loaded.values()) == [4, 4, 4, 4, 1] else 1)
PYTHON
