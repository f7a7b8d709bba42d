"""What is in files of weights, what should be, and what a file with other weights usually is.

Reads headers of safetensors files only; needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from fpe_core.errors import CheckpointError

_NAMED = 3
"""How many weights a message names; there may be hundreds."""
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class Header(NamedTuple):
    """A weight as its file describes it. `dtype`: in safetensors' words, "F32" for one."""

    shape: tuple[int, ...]
    dtype: str


def headers_of(files: Iterable[Path]) -> dict[str, Header]:
    """The weights of safetensors files by name.

    Raises:
        CheckpointError: a file that is truncated, or something else under that name.
    """
    found = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    weight = opened.get_slice(name)
                    found[name] = Header(tuple(weight.get_shape()), weight.get_dtype())
        except Exception as error:  # the library raises its own and Rust's
            raise CheckpointError(
                f"{path} cannot be loaded: {type(error).__name__}: {error}. It is not a "
                "safetensors file, or was cut off while it was copied"
            ) from error
    return found


@dataclass(frozen=True)
class Differences:
    """How weights differ from those a network has; names, and sentences for other shapes."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    reshaped: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def told(self, network: str) -> str:
        """Without a subject: "lacks 2 of CLIPModel's weights (...); holds 1 that ..."."""
        found = []
        if self.missing:
            found.append(
                f"lacks {len(self.missing)} of {network}'s weights ({_some(self.missing)})"
            )
        if self.unexpected:
            found.append(
                f"holds {len(self.unexpected)} that {network} does not have "
                f"({_some(self.unexpected)})"
            )
        if self.reshaped:
            found.append(
                f"holds {len(self.reshaped)} that its config describes otherwise "
                f"({_some(self.reshaped)})"
            )
        return "; ".join(found)


def compared(
    held: Mapping[str, Header], expected: Mapping[str, tuple[int, ...]], unread: Sequence[str] = ()
) -> Differences:
    """How the weights of a file differ from the expected ones. `unread`: patterns of names that are
    no weights of the network, and that every loader leaves out."""
    unexpected = [
        name
        for name in held
        if name not in expected and not any(re.search(pattern, name) for pattern in unread)
    ]
    reshaped = []
    for name, shape in expected.items():
        if name in held and (held[name].shape != shape or held[name].dtype not in _FLOATS):
            kind = "" if held[name].dtype in _FLOATS else f" of {held[name].dtype}"
            reshaped.append(f"{name} is {list(held[name].shape)}{kind}, not {list(shape)}")
    missing = [name for name in expected if name not in held]
    return Differences(missing, unexpected, reshaped)


_USUAL: Sequence[tuple[str, str]] = (
    (
        r"\.base_layer\.",
        "a network saved while a LoRA was still attached to it, fused and not unloaded, or not "
        "fused at all; fuse the LoRA into the weights, unload it, and save again",
    ),
    (
        r"lora_unet_|lora_te|lora_down|lora_up|_lora\.|lora_[AB]\.|hada_w|lokr_|\.diff(_b)?$",
        "a LoRA, which only holds changes of a model; name its model as the checkpoint, and the "
        "LoRA in loras",
    ),
    (r"to_k_ip|image_proj|ip_adapter", "an IP-Adapter, or a network saved with one attached"),
    (r"^control_model\.|controlnet_", "a ControlNet"),
    (r"motion_modules|temporal_", "a model of videos"),
    (
        r"\.absmax|\.quant_map|\.SCB$|weight_format|scale_weight|scaled_fp8|qweight",
        "a quantised model; give the one with floating-point weights",
    ),
    (
        r"conditioner\.embedders|label_emb|add_embedding|text_encoder_2",
        "Stable Diffusion XL, another family",
    ),
    (
        r"joint_blocks|double_blocks|single_transformer_blocks|x_embedder|txt_in|text_encoders\.",
        "a transformer of another family (Stable Diffusion 3, Flux)",
    ),
    (
        r"string_to_param|emb_params|^<.*>$",
        "an embedding of textual inversion, not a model; name it in embeddings",
    ),
    (r"roberta\.|bert\.", "a model with a text encoder of another kind"),
    (r"^cond_stage_model\.model\.", "Stable Diffusion 2, which needs the configs of that model"),
)
"""What names of weights give away, the most certain first."""


def usual_kind(names: Collection[str]) -> str:
    """What a file with weights of these names usually is, as a sentence; "" if it is not known."""
    for pattern, kind in _USUAL:
        if any(re.search(pattern, name) for name in names):
            return f"It looks like {kind}"
    return ""


def refuse(what: str, network: str, found: Differences, hint: str = "") -> None:
    """Raises CheckpointError if there are differences.

    `what`: the subject of the sentence; `network`: the class that was expected; `hint`: what the
    file may be if its names do not show it.
    """
    if found:
        hint = usual_kind([*found.unexpected, *found.reshaped, *found.missing]) or hint
        raise CheckpointError(f"{what} {found.told(network)}{'. ' + hint if hint else ''}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
