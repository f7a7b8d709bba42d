"""Self-similarity as transformers' own states give it, distances by hand, the built-in model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from fpe_core import CheckpointError, ParameterError
from fpe_core.scores.images import IMAGES_AT_ONCE
from fpe_core.scores.structure import StructureModel, load_structure_model, structure_distance
from fpe_core.still_life import FACTORS, counterfactual, render, sample_scene

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
SQUARED = {"size": {"height": 32, "width": 32}}  # as facebook/dino-vitb8 has it
CROPPED = {  # as facebook/dinov2-base has it
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
}

KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str, int]] = {
    "vit": (
        "ViTConfig",
        "ViTModel",
        {"image_size": 32, "patch_size": 8},
        SQUARED,
        "layernorm_before",
        1,
    ),
    "dinov2": (
        "Dinov2Config",
        "Dinov2Model",
        {"image_size": 70, "patch_size": 14},
        CROPPED,
        "norm1",
        1,
    ),
    "registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"image_size": 70, "patch_size": 14, "num_register_tokens": 3},
        CROPPED,
        "norm1",
        4,
    ),
    "dinov3": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {"image_size": 32, "patch_size": 8, "num_register_tokens": 2},
        SQUARED,
        "norm1",
        3,
    ),
    "clip": (
        "CLIPVisionConfig",
        "CLIPVisionModel",
        {"image_size": 32, "patch_size": 8},
        SQUARED,
        "layer_norm1",
        1,
    ),
}
"""Config, model, settings, preprocessing, the norm before the keys, tokens that are no patches."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def built_in() -> StructureModel:
    return load_structure_model(device="cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [render(sample_scene(seed), 64) for seed in range(3)]


# --- the matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_those_of_transformers(
    kind: str, folders: dict[str, Path], scenes: list[Image.Image]
) -> None:
    """Its states before the last layer, through that layer's norm and key weights by hand."""
    model = load_structure_model(folders[kind], device="cpu")
    side = model.size_px
    pixels = torch.rand(2, 3, side, side)
    with torch.no_grad():
        inputs = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        states = (
            getattr(transformers, KINDS[kind][1])
            .from_pretrained(folders[kind])
            .eval()(inputs, output_hidden_states=True, **asked_to_interpolate(kind))
        )
    keys = keys_by_hand(kind, folders[kind], states.hidden_states[-2])
    expected = [cosines(each.double().numpy()) for each in keys]
    found = model.self_similarities(pixels)
    assert len(found) == 2
    assert found[0].shape == (KINDS[kind][5] + (side // model.patch_px) ** 2,) * 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=2e-5)
    assert structure_distance(found[:1], found[1:]) == pytest.approx(
        [np.mean((expected[0] - expected[1]) ** 2)], rel=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_together_and_alone_and_in_other_sizes(
    kind: str, folders: dict[str, Path], scenes: list[Image.Image]
) -> None:
    model = load_structure_model(folders[kind], device="cpu")
    wide = scenes[0].resize((96, 48))
    pictures = [scenes[0], wide, scenes[1].convert("L"), scenes[2]]
    together = model.self_similarities(pictures)
    alone = [model.self_similarities([picture])[0] for picture in pictures]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
        torch.testing.assert_close(one, one.T, atol=1e-6, rtol=0)
        torch.testing.assert_close(one.diagonal(), torch.ones(len(one)), atol=1e-5, rtol=0)
        assert one.abs().max() <= 1 + 1e-5
        assert one.dtype == torch.float32
    short = model.size_px // model.patch_px
    assert [len(each) - KINDS[kind][5] for each in together] == [short**2, 2 * short**2] + [
        short**2
    ] * 2
    assert model.self_similarities([]) == []
    assert len(model.self_similarities(scenes[:1] * (IMAGES_AT_ONCE + 1))) == IMAGES_AT_ONCE + 1


def test_the_longer_side_has_a_limit(folders: dict[str, Path]) -> None:
    """480 for 224, as in PnP-Inversion: 68.6 px here, nine patches of eight, and one across."""
    model = load_structure_model(folders["vit"], device="cpu")
    (found,) = model.self_similarities([Image.new("RGB", (400, 40), "red")])
    assert len(found) == 1 + 9 * 1


def test_the_model_is_left_as_it_was(built_in: StructureModel, scenes: list[Image.Image]) -> None:
    built_in.self_similarities(scenes)
    assert not any(module._forward_hooks for module in built_in.model.modules())
    assert not built_in.model.training


# --- the distance ---------------------------------------------------------------------------------


def test_distance_by_hand() -> None:
    first = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    second = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    assert structure_distance([first, first], [second, first]) == [0.5, 0.0]
    assert structure_distance([], []) == []
    with pytest.raises(ParameterError, match=r"\[\(2, 2\)\] and \[\(3, 3\)\]"):
        structure_distance([first], [torch.eye(3)])
    with pytest.raises(ParameterError, match="pair by pair"):
        structure_distance([first], [])


def test_the_built_in_tells_a_moved_object_from_a_recoloured_one(built_in: StructureModel) -> None:
    """Measured on scenes 3000 to 3019: recoloured at most 0.016, moved at least 0.18."""
    chosen = [sample_scene(seed) for seed in range(3000, 3010)]
    colours = FACTORS["colour"]
    recoloured = [
        counterfactual(scene, colour=colours[(colours.index(scene.colour) + 3) % len(colours)])
        for scene in chosen
    ]
    moved = [dataclasses.replace(scene, centre_x=scene.centre_x + 0.15) for scene in chosen]
    source, *edited = (
        built_in.self_similarities([render(scene) for scene in each])
        for each in (chosen, recoloured, moved)
    )
    of_colour, of_place = (structure_distance(source, each) for each in edited)
    assert max(of_colour) < 0.04
    assert min(of_place) > 0.1
    assert min(of_colour) > 1e-4
    assert structure_distance(source, source) == [0.0] * len(chosen)


# --- loading --------------------------------------------------------------------------------------


def test_a_whole_clip_gives_its_vision_tower(built_in: StructureModel) -> None:
    assert type(built_in.model).__name__.startswith("CLIPVision")
    assert (built_in.name, built_in.size_px, built_in.patch_px) == ("builtin:still-life", 128, 16)
    assert built_in.mean == built_in.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("settings", "size_px"),
    [
        ({"size": 40}, 40),
        ({"size": 48, "do_center_crop": False, "crop_size": 32}, 48),
        ({"size": 48, "do_center_crop": True, "crop_size": 32}, 32),
    ],
)
def test_older_preprocessing(
    settings: dict[str, Any], size_px: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    write_preprocessing(folder, settings)
    assert load_structure_model(folder, device="cpu").size_px == size_px


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "not a vision transformer: it has no config.json"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
            "model_type is 'bert'",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: (f / "preprocessor_config.json").write_text("[]"), "no usable size"),
        (lambda f: write_preprocessing(f, {}), "no usable size"),
        (lambda f: write_preprocessing(f, {"size": 0}), "no usable size"),
        (lambda f: (f / "model.safetensors").unlink(), "pickled weights .* are not read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be loaded"),
        (lambda f: drop_the_keys(f), "lacks 1 of ViTModel's weights"),
    ],
)
def test_a_spoilt_folder_is_named(
    folders: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_structure_model(folder)
    assert str(folder) in str(caught.value)


def test_what_is_no_structure_model() -> None:
    with pytest.raises(CheckpointError, match="Accepted: a folder with a ViT, DINOv2"):
        load_structure_model("no/such/place/at all")
    with pytest.raises(CheckpointError, match="there is builtin:still-life"):
        load_structure_model("builtin:dino")


def build_tiny(kind: str, folder: Path) -> Path:
    config, model, settings, preprocessing, *_ = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**SMALL | settings))
    made.save_pretrained(folder)
    write_preprocessing(folder, preprocessing)
    return folder


def write_preprocessing(folder: Path, settings: dict[str, Any]) -> None:
    text = json.dumps({"image_mean": MEAN, "image_std": STD} | settings)
    (folder / "preprocessor_config.json").write_text(text)


def asked_to_interpolate(kind: str) -> dict[str, bool]:
    return {"interpolate_pos_encoding": True} if kind in {"vit", "clip"} else {}


def keys_by_hand(kind: str, folder: Path, states: torch.Tensor) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")

    def last(ending: str) -> torch.Tensor | None:
        names = [name for name in weights if f".{SMALL['num_hidden_layers'] - 1}." in name]
        found = [name for name in names if name.endswith(ending)]
        return weights[found[0]] if found else None

    projection = next(end for end in ("k_proj", "key") if last(f"{end}.weight") is not None)
    norm, eps = KINDS[kind][4], json.loads((folder / "config.json").read_text())["layer_norm_eps"]
    normed = torch.nn.functional.layer_norm(
        states, states.shape[-1:], last(f"{norm}.weight"), last(f"{norm}.bias"), eps
    )
    weight = last(f"{projection}.weight")
    assert weight is not None
    return torch.nn.functional.linear(normed, weight, last(f"{projection}.bias"))


def cosines(keys: np.ndarray) -> np.ndarray:
    """Entry by entry."""
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in keys] for a in keys])


def drop_the_keys(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith(("k_proj.weight", "key.weight")))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
