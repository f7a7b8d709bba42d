"""Files that are given as LoRAs, and fit nothing: an error, when planned and when loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fpe_core import Checkpoint, CheckpointError, Lora, load_checkpoint
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.files import locate
from fpe_core.checkpoint.lora import merge_loras
from tests.builders.lora_files import kohya, kohya_of, layers_of, written


def loaded(folder: Path, *loras: Lora | Path, **options: Any) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", **{"dtype": "float32", "loras": loras, **options})


def with_names(change: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {change(name): each for name, each in tensors.items()}


def without(pattern: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {n: each for n, each in tensors.items() if not re.search(pattern, n)}


def for_width(width: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """As if it were for a model whose cross-attention sees this width."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.ones(4, width) if re.search(r"attn2_to_[kv].lora_down", name) else each
            for name, each in tensors.items()
        }

    return change


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "other names": (
        with_names(lambda name: name.replace("attentions_0", "attentions_7")),
        r"LoRA .*lora.safetensors does not fit the checkpoint .*: \d+ of its \d+ tensors fit no "
        r"layer \(lora_unet_\w+attentions_7\S+, \S+, \S+ and \d+ more\)",
    ),
    "one name": (
        lambda tensors: {**tensors, "lora_unet_else.lora_down.weight": torch.ones(2, 2)},
        r"1 of its \d+ tensors fit no layer \(lora_unet_else.lora_down.weight\)",
    ),
    "Stable Diffusion 1.x": (for_width(768), "It seems to be for Stable Diffusion 1.x"),
    "Stable Diffusion 2.x": (for_width(1024), "It seems to be for Stable Diffusion 2.x"),
    "Stable Diffusion XL": (
        for_width(2048),
        r"\d+ of its layers have other shapes than the checkpoint's \(lora_unet_\w+"
        r"\.lora_down\.weight \[4, 2048\] and .*It seems to be for Stable Diffusion XL: its "
        r"cross-attention sees 2048 numbers, not 16",
    ),
    "a second text encoder": (
        with_names(lambda name: name.replace("lora_te_", "lora_te2_")),
        r"fit no layer \(lora_te2_.*It seems to be for Stable Diffusion XL",
    ),
    "half of it": (without("up.weight"), r"have no counterpart \(down and up\)"),
    "a transformer": (
        lambda _: {"transformer.single_transformer_blocks.0.lora_A.weight": torch.ones(2, 2)},
        "It seems to be for a transformer",
    ),
    "a whole model": (
        lambda _: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)},
        "none of its 1 tensors is a LoRA's.*a whole model; name it as the checkpoint",
    ),
    "a UNet": (lambda _: {"conv_in.weight": torch.ones(2, 2)}, "a network of a model"),
    "an embedding": (lambda _: {"<cat>": torch.ones(2, 2)}, "name it in embeddings"),
    "LoHa": (with_names(lambda n: n.replace("lora_up", "hada_w1_a")), "LyCORIS LoHa"),
    "LoKr": (with_names(lambda n: n.replace("lora_up.weight", "lokr_w1")), "LyCORIS LoKr"),
    "Tucker": (with_names(lambda n: n.replace("lora_up", "lora_mid")), "Tucker decomposition"),
    "whole differences": (
        lambda tensors: {**tensors, "lora_unet_conv_in.diff": torch.ones(2, 2)},
        "differences of whole weights",
    ),
    "DoRA": (
        lambda tensors: {**tensors, "lora_unet_conv_in.dora_scale": torch.ones(2, 2)},
        "it is a DoRA",
    ),
    "PEFT's own": (
        lambda _: {"base_model.model.conv_in.lora_A.weight": torch.ones(2, 2)},
        "adapter_config.json",
    ),
    "nothing": (lambda _: {}, "none of its 0 tensors|it is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_nothing_is_refused_when_planned_and_when_loaded(
    case: str, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    change, message = REFUSED[case]
    file = written(change(kohya_of(tiny)), tmp_path / "lora.safetensors")
    add_ons = located(AddOns.of([file]), allow_pickle=False)
    with pytest.raises(CheckpointError, match=message):
        check_add_ons(tiny_folder, locate(tiny_folder, False, None), add_ons, False, None)
    networks = {"unet": tiny.unet, "text_encoder": tiny.text_encoder}
    before = [each.clone() for each in tiny.unet.parameters()]
    with pytest.raises(CheckpointError, match=message):
        merge_loras(networks, add_ons.loras, tiny_folder)
    assert all(torch.equal(*each) for each in zip(before, tiny.unet.parameters(), strict=True))


def test_a_weight_for_text_encoders_that_are_not_changed_is_refused(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya(layers_of(tiny.unet), "lora_unet_", 1)
    file = written(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="changes no text encoder"):
        loaded(tiny_folder, Lora(file, 1.0, 0.5))


def test_weights_that_are_not_finite_are_refused(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya_of(tiny)
    next(iter(tensors.values()))[0] = float("nan")
    with pytest.raises(CheckpointError, match="is not finite"):
        loaded(tiny_folder, written(tensors, tmp_path / "lora.safetensors"))
    with pytest.raises(CheckpointError, match="weight nan is not finite"):
        loaded(tiny_folder, Lora(tmp_path / "lora.safetensors", float("nan")))


def test_pickles_are_read_only_if_they_are_allowed(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    tensors = kohya_of(tiny)
    pickled = tmp_path / "lora.bin"
    torch.save(tensors, pickled)
    with pytest.raises(CheckpointError, match="is a pickle"):
        loaded(tiny_folder, pickled)
    ours = loaded(tiny_folder, pickled, allow_pickle=True)
    same = loaded(tiny_folder, written(tensors, tmp_path / "lora.safetensors"))
    for mine, theirs in zip(ours.unet.parameters(), same.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    torch.save({"fn": print}, pickled)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        loaded(tiny_folder, pickled, allow_pickle=True)


def test_files_that_are_not_there_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("none.safetensors", "some/none.safetensors", "deep/some/none.safetensors"):
        with pytest.raises(CheckpointError, match=r"no LoRA at|could not be downloaded"):
            loaded(tiny_folder, Path(name))
    with pytest.raises(CheckpointError, match="is a folder"):
        loaded(tiny_folder, tmp_path)
