"""Diffusers folders as people have them: variants in half precision, weights in several files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from fpe_core import CheckpointError, load_checkpoint
from fpe_core.checkpoint.check import check_files
from fpe_core.checkpoint.files import locate, weights_files

CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
SHARDS = {"unet": "100KB", "vae": "20KB", "text_encoder": "20KB"}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def save(folder: Path, name: str, *, half: bool = False, in_shards: bool = False) -> None:
    """A component's weights saved anew by its library, in the place of those that are there."""
    model = CLASSES[name].from_pretrained(folder / name)
    for path in (folder / name).glob("*.safetensors"):
        path.unlink()
    options: dict[str, Any] = {"variant": "fp16"} if half else {}
    if in_shards:
        options["max_shard_size"] = SHARDS[name]
    (model.half() if half else model).save_pretrained(folder / name, **options)


def check(folder: Path) -> None:
    check_files(folder, locate(folder, False, None), False, None)


def states(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    return {
        f"{name}.{key}": each
        for name in CLASSES
        for key, each in getattr(checkpoint, name).state_dict().items()
    }


@pytest.mark.parametrize("half", [False, True])
def test_weights_in_several_files(tiny_folder: Path, folder: Path, half: bool) -> None:
    """With the names that diffusers 0.42.1 and transformers 5.23.0 give them."""
    expected = states(tiny_folder)
    for name in CLASSES:
        save(folder, name, half=half, in_shards=True)
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 1
        assert list((folder / name).glob("*.index*.json"))
    check(folder)
    found = states(folder)
    for name, each in found.items():
        wanted = expected[name].half().float() if half else expected[name]
        assert torch.equal(each, wanted), name


def test_variants_may_be_mixed(tiny_folder: Path, folder: Path) -> None:
    expected = states(tiny_folder)
    save(folder, "unet", half=True)
    save(folder, "text_encoder", half=True, in_shards=True)
    check(folder)
    found = states(folder)
    for name, each in found.items():
        wanted = expected[name] if name.startswith("vae.") else expected[name].half().float()
        assert torch.equal(each, wanted), name


def test_the_plain_variant_is_preferred(tiny_folder: Path, folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    save(folder, "unet", half=True)
    weights.write_bytes(kept)
    check(folder)
    assert torch.equal(states(folder)["unet.conv_in.weight"], load_file(weights)["conv_in.weight"])
    (only,) = weights_files(folder, "unet", False)
    assert only == weights


def test_old_names_of_shards_in_half_precision(folder: Path) -> None:
    """diffusers before 0.28: the variant follows the number."""
    save(folder, "unet", half=True, in_shards=True)
    paths = weights_files(folder, "unet", False)
    for path in paths:
        stem, number = path.name.split(".fp16-")
        path.rename(path.with_name(f"{stem}-{number.replace('.safetensors', '')}.fp16.safetensors"))
    found = weights_files(folder, "unet", False)
    assert len(found) == len(paths)
    assert all(path.name.endswith(".fp16.safetensors") for path in found)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("half", [False, True])
def test_a_shard_that_is_missing_is_named(folder: Path, name: str, half: bool) -> None:
    save(folder, name, half=half, in_shards=True)
    check(folder)
    lost = weights_files(folder, name, False)[-1]
    lost.unlink()
    message = f"lacks weights .*{lost.name} is missing"
    with pytest.raises(CheckpointError, match=message):
        check(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, device="cpu")


Change = Callable[[Path], object]


def named_more(index: Path) -> None:
    content = json.loads(index.read_text())
    content["weight_map"]["more.weight"] = "diffusion_pytorch_model-00099-of-00099.safetensors"
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (named_more, r"diffusion_pytorch_model-00099-of-00099\.safetensors is missing"),
        (lambda index: index.write_text("{"), "cannot be read: JSONDecodeError"),
        (lambda index: index.write_text("{}"), "cannot be read: KeyError"),
    ],
)
def test_an_index_that_is_wrong_is_named(folder: Path, change: Change, message: str) -> None:
    save(folder, "unet", in_shards=True)
    change(folder / "unet/diffusion_pytorch_model.safetensors.index.json")
    with pytest.raises(CheckpointError, match=message):
        check(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, device="cpu")


def test_a_tensor_that_is_missing_in_a_shard_is_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    save(folder, "unet", in_shards=True)
    first = weights_files(folder, "unet", False)[0]
    weights = load_file(first)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, first, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{lost}"):
        check(folder)
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{lost}"):
        load_checkpoint(folder, device="cpu")
