"""Where the files of LoRAs, embeddings and autoencoders are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from fpe_core import CheckpointError, Embedding, Lora
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """The hub's cache on this machine, with a repository of each kind."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("ink", "style", "vae"):
        home = tmp_path / f"models--artist--{name}"
        (home / "snapshots" / "1").mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("1")
    ink, style, vae = (
        tmp_path / f"models--artist--{name}" / "snapshots" / "1" for name in ("ink", "style", "vae")
    )
    save_file({"a": torch.ones(1)}, ink / "pytorch_lora_weights.safetensors")
    (ink / "more").mkdir()
    save_file({"a": torch.zeros(1)}, ink / "more" / "strong.safetensors")
    save_file({"<style>": torch.ones(16)}, style / "learned_embeds.safetensors")
    shutil.copytree(tiny_folder / "vae", vae, dirs_exist_ok=True)
    return tmp_path


def test_hub_ids_are_looked_up_in_the_cache(hub: Path) -> None:
    found = located(
        AddOns.of(
            [Lora("artist/ink", 0.5), Lora("artist/ink/more/strong.safetensors")],
            ["artist/style"],
            "artist/vae",
        ),
        allow_pickle=False,
    )
    files = {Path(each.file).name: each.weight for each in found.loras}
    assert files == {"pytorch_lora_weights.safetensors": 0.5, "strong.safetensors": 1.0}
    assert [each.token for each in found.embeddings] == ["<style>"]
    assert found.vae == hub / "models--artist--vae" / "snapshots" / "1"


@pytest.mark.parametrize(
    ("add_ons", "message"),
    [
        (AddOns.of(["artist/style"]), r"pytorch_lora_weights.safetensors of artist/style"),
        (AddOns.of(["artist/ink/none.safetensors"]), "none.safetensors of artist/ink"),
        (AddOns.of(["artist/none"]), "could not be downloaded from the Hugging Face hub"),
        (AddOns.of(embeddings=["artist/ink"]), "learned_embeds.safetensors of artist/ink"),
        (AddOns.of(vae="artist/none"), "could not be downloaded"),
        (AddOns.of(["artist/none.safetensors"]), "no LoRA at artist/none.safetensors. Accepted"),
        (AddOns.of(["./artist/none"]), "no LoRA at"),
        (AddOns.of(["/artist/none"]), "no LoRA at"),
        (AddOns.of(vae="/artist/none"), "no autoencoder at"),
        (AddOns.of(vae="artist/vae/x.safetensors"), "no autoencoder at"),
    ],
)
def test_what_is_not_there_is_said(add_ons: AddOns, message: str, hub: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        located(add_ons, allow_pickle=False)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ink.txt").write_text("ink")
    (tmp_path / "ink.safetensors").write_text("ink")
    for add_ons in (
        AddOns.of([tmp_path / "ink.txt"]),
        AddOns.of(embeddings=[tmp_path / "ink.txt"]),
        AddOns.of(vae=tmp_path / "ink.txt"),
    ):
        with pytest.raises(CheckpointError, match=r"ink.txt is not a .safetensors file"):
            located(add_ons, allow_pickle=True)
    with pytest.raises(CheckpointError, match="It is not a safetensors file, or was cut off"):
        located(AddOns.of(embeddings=[tmp_path / "ink.safetensors"]), allow_pickle=False)


def test_what_a_checkpoint_is_loaded_with_is_described_in_words() -> None:
    add_ons = AddOns.of(
        ["a", Lora("b", 0.5, 0.25)], ["c", Embedding("d", "<x>")], "owner/autoencoder"
    )
    assert add_ons.described() == (
        "LoRA `a` (weight 1), LoRA `b` (weight 0.5, in text encoders 0.25), embedding `c`, "
        "embedding `d` as `<x>`, autoencoder `owner/autoencoder`"
    )
    assert not AddOns.of().described()
