#!/usr/bin/env bash
# An embedding of textual inversion with three vectors becomes three tokens, and a prompt with the first one
# is to use all three. One would guess that this does not depend on capital letters in the token's name, the
# more so as CLIP's tokenizer does not tell capital letters from small ones.
#
# diffusers 0.42.1 with transformers 5.23.0 and torch 2.13.0: with a token <Style> the prompt "a <Style> cat"
# uses the first vector only, and nothing is said. The tokenizer knows the token by its name <Style> but returns it
# as <style>, which diffusers then looks up among the names. A token <style> in a prompt with <STYLE> is found,
# but not replaced in the text, so it is one vector as well.
#
# Seen, with a tiny random text encoder and three random vectors:
#     token <style>, prompt "a <style> cat": 3 of 3 vectors
#     token <style>, prompt "a <STYLE> cat": 1 of 3 vectors
#     token <Style>, prompt "a <Style> cat": 1 of 3 vectors
#     token <Style>, prompt "a <Style> <Style>_1 <Style>_2 cat": 3 of 3 vectors
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
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

torch.manual_seed(0)
signs = string.ascii_lowercase + string.digits + "<>_"
tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
vocabulary = {token: number for number, token in enumerate(tokens)}


def vectors_used(token, *prompts):
    """How many of the three vectors of `token` reach the text encoder, for each prompt."""
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=encoder, tokenizer=tokenizer, unet=None, scheduler=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipe.load_textual_inversion({token: torch.randn(3, 16)}, token=token)
    given = []
    encoder.get_input_embeddings().register_forward_pre_hook(lambda _, args: given.append(args[0]))
    counts = []
    for prompt in prompts:
        with torch.no_grad():
            pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        counts.append(int((given[-1] >= len(vocabulary)).sum()))
        print(f'token {token}, prompt "{prompt}": {counts[-1]} of 3 vectors')
    return counts


small = vectors_used("<style>", "a <style> cat", "a <STYLE> cat")
capital = vectors_used("<Style>", "a <Style> cat", "a <Style> <Style>_1 <Style>_2 cat")
sys.exit(0 if small == [3, 1] and capital == [1, 3] else 1)
PYTHON
