"""What a file that is given as a LoRA is instead, or is for, by the names and shapes it holds.

Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fpe_core.checkpoint.weights import Header, usual_kind

_UNSUPPORTED = (
    (
        r"dora_scale$|lora_magnitude_vector",
        "it is a DoRA, which scales every column of a weight besides adding to it; merge it into "
        "its model with the tool it was trained with, and give that as the checkpoint",
    ),
    (r"\.hada_", "it is a LyCORIS LoHa, whose Hadamard products are not read here"),
    (r"\.lokr_", "it is a LyCORIS LoKr, whose Kronecker products are not read here"),
    (r"\.oft_|\.boft_", "it is an OFT, whose rotations are not read here"),
    (
        r"\.lora_mid\.weight$",
        "it is a LoCon in Tucker decomposition (lora_mid), which is not read here",
    ),
    (
        r"\.(diff|diff_b|w_norm|b_norm)$|\.on_input$|\.(a1|a2|b1|b2)\.weight$",
        "it holds differences of whole weights (LyCORIS), which are not read here",
    ),
    (
        r"lora_B\.bias$|lora[._]up\.bias$",
        "it changes biases too (lora_bias), which is not read here",
    ),
    (r"^bundle_emb\.", "it has an embedding of textual inversion in it (bundle_emb)"),
    (r"^lora_controlnet$", "it is a Control-LoRA, which is for a ControlNet"),
    (
        r"^base_model\.model\.",
        "it was saved by PEFT, with its alpha in another file (adapter_config.json); save it with "
        "save_lora_weights of the diffusers pipeline",
    ),
)
"""Names of kinds of LoRA that cannot be merged here, and why."""
_OTHER_FAMILY = (
    (
        r"double_blocks|single_blocks|single_transformer_blocks|joint_blocks|context_block|"
        r"^transformer\.|^lora_transformer_|x_embedder",
        "a transformer (Stable Diffusion 3, Flux)",
    ),
    (r"motion_modules|temporal_", "a model of videos"),
    (r"prior_unet", "Stable Cascade"),
)
_FAMILY_OF_WIDTH = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
"""By the width that a UNet's cross-attention sees."""
_CROSS = re.compile(r"attn2[._](processor[._])?to_[kv][._].*(down\.weight|lora_A\.weight)$")
_SAYS_LORA = re.compile(r"lora")


def unsupported(held: Mapping[str, Header]) -> str:
    """Why a LoRA is of a kind that cannot be merged; "" if it is not."""
    for pattern, reason in _UNSUPPORTED:
        if any(re.search(pattern, name) for name in held):
            return reason
    return ""


def what_else(held: Mapping[str, Header]) -> str:
    """What a file without any LoRA in it is; "" if it does say that it is one."""
    if any(_SAYS_LORA.search(name) for name in held):
        return ""
    if any(name.startswith(("model.diffusion_model.", "cond_stage_model.")) for name in held):
        kind = "It looks like a whole model; name it as the checkpoint"
    elif any(name.endswith(("conv_in.weight", "conv_out.weight")) for name in held):
        kind = "It looks like a network of a model, not like changes of one"
    elif set(held) <= {"clip_l", "clip_g", "emb_params"} or len(held) == 1:
        kind = "It looks like an embedding of textual inversion; name it in embeddings"
    else:
        kind = usual_kind(held) or "It looks like something else"
    some = ", ".join(list(held)[:3])
    return f"none of its {len(held)} tensors is a LoRA's ({some}). {kind}"


def seems_to_be_for(held: Mapping[str, Header], width: int | None, has_second: bool) -> str:
    """What model a LoRA seems to be for, as a sentence; "" if it seems to be for this one.

    `width`: that of the checkpoint's cross-attention; `has_second`: it has a second text encoder.
    """
    for pattern, family in _OTHER_FAMILY:
        if any(re.search(pattern, name) for name in held):
            return f"It seems to be for {family}"
    widths = {
        header.shape[1]
        for name, header in held.items()
        if _CROSS.search(name) and len(header.shape) > 1
    }
    of_second = ("lora_te2_", "text_encoder_2.")
    if not has_second and any(name.startswith(of_second) for name in held):
        return "It seems to be for Stable Diffusion XL: it changes a second text encoder"
    others = widths - {width}
    if len(others) != 1:
        return ""
    other = others.pop()
    family = _FAMILY_OF_WIDTH.get(other, "another model")
    return f"It seems to be for {family}: its cross-attention sees {other} numbers, not {width}"
