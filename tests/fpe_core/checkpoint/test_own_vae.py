"""An autoencoder of one's own in the place of the checkpoint's, held against diffusers' loading."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpe_core import Checkpoint, CheckpointError, checkpoint_fingerprint, load_checkpoint
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.autoencoder import Autoencoder
from fpe_core.checkpoint.files import locate
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import build_tiny_checkpoint

CLOSE = 1e-5
WEIGHTS = "diffusion_pytorch_model.safetensors"
PREFIX = "first_stage_model."


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint, whose autoencoder scales latents otherwise."""
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp("other"), seed=8)
    change_config(folder / "vae", scaling_factor=0.5)
    return folder


@pytest.fixture
def vae(other_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(other_folder / "vae", tmp_path / "vae"))


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def loaded(folder: Path, vae: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", **{"dtype": "float32", "vae": vae, **options})


def outputs(vae: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn((2, 3, 64, 64), generator=generator)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    with torch.no_grad():
        return [vae.encode(images).latent_dist.mean, vae.decode(latents).sample]


def assert_same(ours: Any, theirs: Any, other: Any) -> None:
    for mine, expected, before in zip(outputs(ours), outputs(theirs), outputs(other), strict=True):
        assert float((mine - expected).abs().max()) <= CLOSE
        assert float((mine - before).abs().max()) > 1e-2


def test_a_folder_is_what_diffusers_makes_of_it(
    tiny_folder: Path, tiny: Checkpoint, vae: Path
) -> None:
    """With the scale of its own config."""
    ours = loaded(tiny_folder, vae)
    assert_same(ours.vae, AutoencoderKL.from_pretrained(vae), tiny.vae)
    assert Autoencoder(ours).scaling_factor == 0.5 != Autoencoder(tiny).scaling_factor


def test_another_scale_is_said(
    tiny_folder: Path, vae: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded(tiny_folder, vae)
    assert "scales latents by 0.5, the checkpoint's own by 5" in caplog.text


def original(other_folder: Path, tmp_path: Path) -> dict[str, Tensor]:
    whole = load_file(write_single_file(other_folder, tmp_path / "whole.safetensors"))
    return {name: each for name, each in whole.items() if name.startswith(PREFIX)}


@pytest.mark.parametrize("layout", ["diffusers", "original", "original, whole", "trained"])
def test_a_single_file_is_what_diffusers_makes_of_it(
    layout: str, tiny_folder: Path, tiny: Checkpoint, other_folder: Path, tmp_path: Path
) -> None:
    """With the config, and so the scale, of the checkpoint's own autoencoder."""
    tensors = original(other_folder, tmp_path)
    if layout == "diffusers":
        tensors = load_file(other_folder / "vae" / WEIGHTS)
    elif layout != "original, whole":
        tensors = {name.removeprefix(PREFIX): each for name, each in tensors.items()}
    if layout == "trained":
        tensors |= {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}
    file = tmp_path / "own.safetensors"
    save_file(tensors, file)
    ours = loaded(tiny_folder, file)
    kind: Any = AutoencoderKL
    theirs = (
        kind.from_pretrained(other_folder / "vae")
        if layout == "diffusers"
        else kind.from_single_file(str(file), config=str(tiny_folder / "vae"))
    )
    assert_same(ours.vae, theirs, tiny.vae)
    assert Autoencoder(ours).scaling_factor == Autoencoder(tiny).scaling_factor


def test_old_names_of_attention_are_read(tiny_folder: Path, vae: Path, tiny: Checkpoint) -> None:
    """Those of diffusers before 0.15, in a folder and in a file."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae / WEIGHTS)
    for ours, theirs in old.items():
        tensors = {n.replace(f".{ours}.", f".{theirs}."): each for n, each in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    expected = AutoencoderKL.from_pretrained(vae)
    save_file(tensors, vae / WEIGHTS)
    assert_same(loaded(tiny_folder, vae).vae, expected, tiny.vae)
    assert_same(loaded(tiny_folder, vae / WEIGHTS).vae, expected, tiny.vae)


def test_a_single_file_checkpoint_takes_one_too(
    tiny_folder: Path, tiny: Checkpoint, vae: Path, tmp_path: Path
) -> None:
    single = write_single_file(tiny_folder, tmp_path / "model.safetensors")
    ours = loaded(single, vae, config=tiny_folder)
    assert_same(ours.vae, AutoencoderKL.from_pretrained(vae), tiny.vae)


def test_pickles_are_read_only_if_they_are_allowed(
    tiny_folder: Path, tiny: Checkpoint, vae: Path, other_folder: Path
) -> None:
    tensors = load_file(vae / WEIGHTS)
    torch.save({"state_dict": tensors}, vae / "own.ckpt")
    with pytest.raises(CheckpointError, match="is a pickle"):
        loaded(tiny_folder, vae / "own.ckpt")
    expected = AutoencoderKL.from_pretrained(other_folder / "vae")
    assert_same(loaded(tiny_folder, vae / "own.ckpt", allow_pickle=True).vae, expected, tiny.vae)
    (vae / WEIGHTS).unlink()
    torch.save(tensors, vae / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="read only with allow_pickle"):
        loaded(tiny_folder, vae)
    assert_same(loaded(tiny_folder, vae, allow_pickle=True).vae, expected, tiny.vae)


def lacking(vae: Path) -> None:
    tensors = load_file(vae / WEIGHTS)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, vae / WEIGHTS)


def with_more(vae: Path) -> None:
    save_file({**load_file(vae / WEIGHTS), "else.weight": torch.ones(1)}, vae / WEIGHTS)


def reshaped(vae: Path) -> None:
    tensors = load_file(vae / WEIGHTS)
    tensors["decoder.conv_in.bias"] = torch.ones(3)
    save_file(tensors, vae / WEIGHTS)


def truncated(vae: Path) -> None:
    whole = (vae / WEIGHTS).read_bytes()
    (vae / WEIGHTS).write_bytes(whole[: len(whole) // 2])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights missing": (
        lacking,
        r"lacks 1 of AutoencoderKL's weights \(decoder.conv_in.weight\)",
    ),
    "weights besides": (with_more, "holds 1 that AutoencoderKL does not have"),
    "other shapes": (reshaped, "holds 1 that its config describes otherwise"),
    "cut off": (truncated, "cannot be loaded"),
    "more channels": (
        lambda vae: change_config(vae, latent_channels=16),
        "its latents have 16 channels, those of the UNet 4",
    ),
    "another class": (
        lambda vae: change_config(vae, _class_name="AutoencoderTiny"),
        "it is not an AutoencoderKL but an AutoencoderTiny",
    ),
    "grey": (lambda vae: change_config(vae, in_channels=1), "takes 1 and gives 3 channels"),
    "another factor": (
        lambda vae: change_config(vae, block_out_channels=[4, 8]),
        "2 times shorter than the image's, where the checkpoint's own has 8",
    ),
    "shifted": (lambda vae: change_config(vae, shift_factor=0.1), "it shifts its latents"),
    "broken": (lambda vae: (vae / "config.json").write_text("{"), "config.json: JSONDecodeError"),
    "no config": (lambda vae: (vae / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda vae: (vae / WEIGHTS).unlink(), f"holds no {WEIGHTS}"),
}


def planned(folder: Path, vae: Path) -> None:
    add_ons = located(AddOns.of(vae=vae), allow_pickle=False)
    check_add_ons(folder, locate(folder, False, None), add_ons, False, None)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_when_planned_and_when_loaded(
    case: str, tiny_folder: Path, vae: Path
) -> None:
    spoil, message = REFUSED[case]
    spoil(vae)
    with pytest.raises(CheckpointError, match=message):
        planned(tiny_folder, vae)
    with pytest.raises(CheckpointError, match=message):
        loaded(tiny_folder, vae)


def test_a_whole_checkpoint_is_not_an_autoencoder(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="a whole checkpoint; name its folder vae"):
        loaded(tiny_folder, other_folder)
    single = write_single_file(other_folder, tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match=r"holds \d+ that AutoencoderKL does not have"):
        loaded(tiny_folder, single)
    with pytest.raises(CheckpointError, match="no autoencoder at"):
        loaded(tiny_folder, tmp_path / "none")


def test_the_fingerprint_is_of_the_content(
    tiny_folder: Path, tiny: Checkpoint, vae: Path, other_folder: Path
) -> None:
    plain = checkpoint_fingerprint(tiny_folder)
    own = checkpoint_fingerprint(tiny_folder, vae=vae)
    assert plain == tiny.fingerprint != own
    assert checkpoint_fingerprint(tiny_folder, vae=other_folder / "vae") == own
    assert checkpoint_fingerprint(tiny_folder, vae=vae / WEIGHTS) not in (plain, own)
    assert loaded(tiny_folder, vae).fingerprint == own
    change_config(vae, scaling_factor=0.7)
    assert checkpoint_fingerprint(tiny_folder, vae=vae) not in (plain, own)
