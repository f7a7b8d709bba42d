"""Which layers of a checkpoint a LoRA changes, by the names and shapes of its tensors alone.

The layouts: kohya's (`lora_unet_down_blocks_0_...lora_down.weight`; block names of diffusers or of
the original layout, `input_blocks_1_1_...`), diffusers' (`unet....lora_A.weight`,
`....lora.down.weight`, `....processor.to_q_lora.down.weight`), and those of text encoders.

diffusers converts names by rules, and leaves out what they do not catch. Here it goes the other
way: a network's own weights give every spelling of its layers, so that a tensor either is one of
them or is refused. Held against diffusers in tests/fpe_core/checkpoint/test_lora.py. Needs no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.add_ons import Lora
from fpe_core.checkpoint.layout import Shapes
from fpe_core.checkpoint.lora_kinds import seems_to_be_for, unsupported, what_else
from fpe_core.checkpoint.original_layout import PREFIXES, unet_in_file
from fpe_core.checkpoint.weights import Header
from fpe_core.errors import CheckpointError

_NAMED = 3
_PARTS = (
    (r"[._]lora[._]down\.weight$|\.lora_A\.weight$|\.lora_linear_layer\.down\.weight$", "down"),
    (r"[._]lora[._]up\.weight$|\.lora_B\.weight$|\.lora_linear_layer\.up\.weight$", "up"),
    (r"\.alpha$", "alpha"),
)
"""What the names of the tensors of a layer end with, in all layouts."""
_OLD_ATTENTION = re.compile(r"\.to_(q|k|v|out)_lora\.(down|up)\.weight$")
_OF_OLD_TEXT = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_OF_OLD_UNET = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_KOHYA = {
    "text_encoder": ("lora_te_text_model_", "lora_te1_text_model_"),
    "text_encoder_2": ("lora_te2_text_model_",),
}
_IN_BLOCKS = ("conv_in.", "conv_out.", "time_embedding.", "down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Network:
    """A network that LoRAs may change: its weights' shapes, and its config.

    Names of a text encoder's weights are without the prefix `text_model.`.
    """

    shapes: Shapes
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Its linear layers and convolutions: the name of each, and the shape of its weight."""
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.shapes.items()
            if name.endswith(".weight")
            and len(shape) in (2, 4)
            and not name.startswith("embeddings.")
        }


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to a layer: `up` times `down`.

    Attributes:
        network: "unet", "text_encoder" or "text_encoder_2".
        layer: its name in the network.
        down, up, alpha: names of tensors in the file; without an alpha it is the rank.
    """

    network: str
    layer: str
    down: str
    up: str
    alpha: str | None


def fitted_layers(
    path: Path, held: Mapping[str, Header], networks: Mapping[str, Network], source: str | Path
) -> list[LoraLayer]:
    """The layers that a LoRA's tensors change, every one of them.

    Args:
        path: the file, for messages.
        held: its tensors.
        networks: those of the checkpoint, by component.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: it is not a LoRA, is one of another kind, or has tensors that fit no layer.
    """
    if reason := unsupported(held):
        raise CheckpointError(f"LoRA {path}: {reason}")
    known = _spellings(networks)
    found: dict[tuple[str, str], dict[str, str]] = {}
    unfit = []
    for name in held:
        module, part = _split(name)
        place = known.get(module) if part else None
        if place is None:
            unfit.append(name)
        elif part in found.setdefault(place, {}):
            unfit.append(name)  # twice, in two layouts
        else:
            found[place][part] = name
    if len(unfit) == len(held) and (reason := what_else(held)):
        raise CheckpointError(f"LoRA {path}: {reason}")
    incomplete = [
        name
        for parts in found.values()
        if not {"down", "up"} <= set(parts)
        for name in parts.values()
    ]
    layers = [
        LoraLayer(*place, parts["down"], parts["up"], parts.get("alpha"))
        for place, parts in found.items()
        if {"down", "up"} <= set(parts)
    ]
    reshaped = [told for each in layers for told in _misfit(each, held, networks)]
    problems = [
        *_told(unfit, f"of its {len(held)} tensors fit no layer"),
        *_told(incomplete, "have no counterpart (down and up)"),
        *_told(reshaped, "of its layers have other shapes than the checkpoint's"),
    ]
    if problems or not layers:
        hint = seems_to_be_for(held, _width(networks), "text_encoder_2" in networks)
        raise CheckpointError(
            f"LoRA {path} does not fit the checkpoint {source}: "
            f"{'; '.join(problems or ['it is empty'])}{hint and '. ' + hint}"
        )
    return layers


def refuse_unused_weight(path: Path, lora: Lora, layers: Sequence[LoraLayer]) -> None:
    """Raises CheckpointError if a LoRA has a weight for text encoders, and changes none."""
    if lora.text_encoder_weight is not None and all(each.network == "unet" for each in layers):
        raise CheckpointError(
            f"LoRA {path} changes no text encoder, so text_encoder_weight does nothing: leave it "
            "out"
        )


def _told(names: Sequence[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})"]


def _width(networks: Mapping[str, Network]) -> int | None:
    """The width of what the UNet's cross-attention sees."""
    layers = networks["unet"].layers if "unet" in networks else {}
    return next((shape[1] for name, shape in layers.items() if "attn2.to_k" in name), None)


# --- names ----------------------------------------------------------------------------------------


def _split(name: str) -> tuple[str, str]:
    """A tensor's name as the spelling of its layer and its part: "down", "up", "alpha", else ""."""
    if old := _OLD_ATTENTION.search(name):
        of_text = name.startswith("text_encoder")
        projection = (_OF_OLD_TEXT if of_text else _OF_OLD_UNET)[old[1]]
        return _modern(f"{name[: old.start()]}.{projection}"), old[2]
    for pattern, part in _PARTS:
        if ends := re.search(pattern, name):
            return _modern(name[: ends.start()]), part
    return name, ""


def _modern(module: str) -> str:
    module = module.replace(".processor.", ".")
    return re.sub(r"^(text_encoder(_2)?)\.text_model\.", r"\1.", module)


def _spellings(networks: Mapping[str, Network]) -> dict[str, tuple[str, str]]:
    """Every name that a layer of the networks has in a file, to its network and its own name."""
    found: dict[str, tuple[str, str]] = {}
    for component, network in networks.items():
        for layer in network.layers:
            place = (component, layer)
            found[f"{component}.{layer}"] = place
            flat = layer.replace(".", "_")
            for prefix in _KOHYA.get(component, ("lora_unet_",)):
                found[prefix + flat] = place
            if component == "unet":
                found[layer] = place  # diffusers before 0.17
            elif layer == "text_projection":
                found[f"lora_te2_{flat}"] = place
        if component == "unet":
            for original, layer in _original_names(network):
                found[f"lora_unet_{original.replace('.', '_')}"] = (component, layer)
    return found


def _original_names(unet: Network) -> Iterator[tuple[str, str]]:
    """The names of a UNet's layers in the original layout, with diffusers' own."""
    weights = {n: s for n, s in unet.shapes.items() if n.startswith(_IN_BLOCKS)}
    originals = unet_in_file(weights, unet.config) or {}
    layers = unet.layers
    for name, original in zip(weights, originals, strict=False):  # in the same order
        layer = name.removesuffix(".weight")
        if layer in layers:
            yield original.removeprefix(PREFIXES["unet"][0]).removesuffix(".weight"), layer
    for number, place in (("0", "add_embedding.linear_1"), ("2", "add_embedding.linear_2")):
        if place in layers:
            yield f"label_emb.0.{number}", place


# --- shapes ---------------------------------------------------------------------------------------


def _misfit(
    each: LoraLayer, held: Mapping[str, Header], networks: Mapping[str, Network]
) -> list[str]:
    """In words, if the tensors of a layer do not multiply to its weight's shape."""
    shape = networks[each.network].layers[each.layer]
    down, up = held[each.down].shape, held[each.up].shape
    alpha = () if each.alpha is None else held[each.alpha].shape
    kernel = shape[2:] if set(shape[2:]) != {1} else ()
    fits = (
        len(down) >= 2
        and len(up) >= 2
        and down[0] == up[1] > 0
        and (up[0], down[1]) == shape[:2]
        and (down[2:] == kernel or (not kernel and set(down[2:]) <= {1}))
        and set(up[2:]) <= {1}
        and alpha in ((), (1,))
        and all(held[name].dtype.startswith(("F", "BF")) for name in (each.down, each.up))
    )
    if fits:
        return []
    return [f"{each.down} {list(down)} and {each.up} {list(up)} for a weight {list(shape)}"]
