"""`fpe checkpoint inspect`: its tables, its JSON, its exit codes."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jobs.cli import app


def inspect(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["checkpoint", "inspect", *arguments], env={"COLUMNS": "160"})
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_tables() -> None:
    code, out, _ = inspect("builtin:still-life")
    assert code == 0
    for text in (
        "Stable Diffusion 1.x",
        "8,078,756 parameters in float16",
        "32 tokens of width 128",
        "vectors of width 128",
        "self-attention maps 4-14 (11 of 16), 0.8 of the steps",
        "self-attention keys and values 11-16 (6 of 16), 0.08 to 1 of the steps",
        "needs a UNet of eight input channels",
        "38.0 MB",
    ):
        assert text in out
    assert "14-16" in out


def test_json_at_a_size(tiny_checkpoint: pathlib.Path) -> None:
    code, out, _ = inspect(str(tiny_checkpoint), "--width", "192", "--height", "128", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["latent"] == [4, 16, 24]
    assert [layer["tokens"] for layer in found["layers"][:3]] == [384, 384, 96]
    assert {each["editor"] for each in found["editors"]} >= {"fpe", "p2p", "instruct_pix2pix"}
    assert found["embedding_widths"] == {"text_encoder": 16}
    assert len(found["fingerprint"]) == 32


def test_what_cannot_be_used_ends_with_2_and_the_reason(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    held = load_file(weights)
    del held["conv_out.bias"]
    save_file(held, weights, metadata={"format": "pt"})
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2)}, lora)
    for name, reason in (
        (str(folder), "its UNet lacks 1 of UNet2DConditionModel's weights (conv_out.bias)"),
        (str(lora), "It looks like a LoRA"),
        (str(tmp_path / "nothing"), "no checkpoint at"),
        ("builtin:nothing", "there is builtin:still-life"),
    ):
        code, out, err = inspect(name)
        assert code == 2
        assert reason in err
        assert out == ""


@pytest.mark.parametrize("option", ["--width", "--height"])
def test_a_size_that_no_edit_can_have(tiny_checkpoint: pathlib.Path, option: str) -> None:
    code, _, err = inspect(str(tiny_checkpoint), option, "100")
    assert code == 2
    assert "must be a multiple of 8" in err
