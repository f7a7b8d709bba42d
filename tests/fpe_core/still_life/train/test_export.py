"""Training on from an earlier model, also with a larger vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fpe_core.still_life.train import architecture
from fpe_core.still_life.train.denoiser import NoisePredictor, half_copy
from fpe_core.still_life.train.export import export, take_weights

EMBEDDING = "embeddings.token_embedding.weight"


def networks(folder: Path) -> tuple[architecture.AutoencoderKL, NoisePredictor, object]:
    tokenizer = architecture.build_tokenizer(folder)
    denoiser = NoisePredictor(
        architecture.build_unet(), architecture.build_text_encoder(tokenizer)
    ).eval()
    return architecture.build_autoencoder().eval(), denoiser, tokenizer


def embedding(denoiser: NoisePredictor) -> torch.Tensor:
    state = denoiser.text_encoder.state_dict()
    return next(value for name, value in state.items() if name.endswith(EMBEDDING))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    autoencoder, denoiser, tokenizer = networks(tmp_path / "first")
    export(tmp_path / "model", autoencoder, denoiser, tokenizer, {"seed": 7})
    return tmp_path / "model"


def test_all_networks_are_those_of_the_export(exported: Path, tmp_path: Path) -> None:
    autoencoder, denoiser, tokenizer = networks(tmp_path / "second")
    assert take_weights(exported, autoencoder, denoiser, tokenizer) == {"seed": 7}
    again = tmp_path / "again"
    export(again, autoencoder, denoiser, tokenizer, {})
    for file in exported.rglob("*.safetensors"):
        assert (again / file.relative_to(exported)).read_bytes() == file.read_bytes()


def test_a_token_keeps_its_embedding_under_another_number(exported: Path, tmp_path: Path) -> None:
    vocabulary_file = exported / "tokenizer" / "vocab.json"
    vocabulary = json.loads(vocabulary_file.read_text())
    red, blue = vocabulary["red</w>"], vocabulary["blue</w>"]
    vocabulary["red</w>"], vocabulary["blue</w>"] = blue, red  # an earlier order of the words
    del vocabulary["sketch</w>"]  # a word that did not exist then
    vocabulary_file.write_text(json.dumps(vocabulary))

    autoencoder, denoiser, tokenizer = networks(tmp_path / "second")
    sketch = tokenizer.get_vocab()["sketch</w>"]
    before = embedding(denoiser)[sketch].clone()
    earlier_autoencoder, earlier, _ = networks(tmp_path / "third")
    take_weights(exported, autoencoder, denoiser, tokenizer)
    vocabulary_file.write_text(json.dumps(tokenizer.get_vocab()))
    take_weights(exported, earlier_autoencoder, earlier, tokenizer)
    old, new = embedding(earlier), embedding(denoiser)
    assert torch.equal(new[red], old[blue])
    assert torch.equal(new[blue], old[red])
    assert torch.equal(new[sketch], before)


def test_the_half_copy_follows_the_original_and_gives_it_gradients(tmp_path: Path) -> None:
    _, denoiser, tokenizer = networks(tmp_path / "first")
    half = half_copy(denoiser, compiled=False)
    noisy, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    ids = tokenizer(
        ["a red ball", "a blue cube"], padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        exact = denoiser(noisy, timesteps, ids)
    predicted = half.fresh()(noisy.to(torch.bfloat16), timesteps, ids).float()
    assert (predicted - exact).norm() / exact.norm() < 0.05
    predicted.square().mean().backward()
    half.hand_over_gradients()
    assert all(weight.grad.dtype == torch.float32 for weight in denoiser.unet.parameters())
    assert denoiser.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.zero_()
    assert half.fresh()(noisy.to(torch.bfloat16), timesteps, ids).abs().max() == 0.0
