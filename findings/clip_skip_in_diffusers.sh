#!/usr/bin/env bash
# clip_skip=1 leaves out the last layer of the text encoder. One would guess that it does so for the negative
# prompt as well, as both are compared by guidance, and that it works in both Stable Diffusion pipelines.
#
# diffusers 0.42.1 with transformers 5.23.0 and torch 2.13.0: StableDiffusionXLPipeline skips the layer for the
# prompt only; the negative prompt keeps the layers it has without clip_skip. StableDiffusionPipeline raises: it
# looks for text_encoder.text_model, which transformers 5 does not have any more.
#
# Seen, with tiny random text encoders, the same text as prompt and as negative prompt:
#     XL without clip_skip: prompt and negative prompt are equal: True
#     XL with clip_skip=1: prompt changed: True, negative prompt changed: False
#     1.x with clip_skip=1: AttributeError: 'CLIPTextModel' object has no attribute 'text_model'
# Exits with 0 as long as that is seen, else with 1. Needs python3.11 or newer and PyPI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import string
import sys

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.manual_seed(0)
letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
config = CLIPTextConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3,
    num_attention_heads=2, projection_dim=16, eos_token_id=tokenizer.eos_token_id,
)
none = dict(vae=None, unet=None, scheduler=None)
xl = StableDiffusionXLPipeline(
    **none, text_encoder=CLIPTextModel(config), text_encoder_2=CLIPTextModelWithProjection(config),
    tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False,
)
first = StableDiffusionPipeline(
    **none, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)


def encoded(pipe, **options):
    with torch.no_grad():
        return pipe.encode_prompt(
            "a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt="a cat", **options,
        )[:2]


prompt, negative = encoded(xl)
equal = torch.equal(prompt, negative)
print("XL without clip_skip: prompt and negative prompt are equal:", equal)
skipped, negative_skipped = encoded(xl, clip_skip=1)
changed = not torch.equal(prompt, skipped), not torch.equal(negative, negative_skipped)
print(f"XL with clip_skip=1: prompt changed: {changed[0]}, negative prompt changed: {changed[1]}")
try:
    encoded(first, clip_skip=1)
    raised = "nothing"
except AttributeError as error:
    raised = f"AttributeError: {error}"
print("1.x with clip_skip=1:", raised)
sys.exit(0 if equal and changed == (True, False) and "no attribute 'text_model'" in raised else 1)
PYTHON
