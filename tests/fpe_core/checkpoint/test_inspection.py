"""What is said about a checkpoint is what its networks are, and what editors do with them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from fpe_core import (
    CheckpointError,
    EditParameters,
    ParameterError,
    checkpoint_fingerprint,
    load_checkpoint,
    row_counts,
)
from fpe_core.checkpoint.editor_uses import layers_text, steps_text
from fpe_core.checkpoint.family_facts import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_XL,
)
from fpe_core.checkpoint.inspection import Inspection, inspect_checkpoint
from fpe_core.checkpoint.unet_layers import unet_layers
from fpe_core.editors.method import NOTHING, method_named
from fpe_core.layer_rules import LayersByTokens
from fpe_core.unet import row_limit
from fpe_core.unet.attention import select_layers, self_attention_layers
from tests.builders.header_only import shapes_of, write_header_only
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import SELF_ATTENTION_TOKENS, build_tiny_checkpoint


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("second"), is_second=True)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("instruct"), sees_source=True)


def use(found: Inspection, editor: str) -> Any:
    (made,) = (each for each in found.editors if each.editor == editor)
    return made


@pytest.mark.parametrize("kind", ["first", "second", "instruct"])
@pytest.mark.parametrize("size", [None, (192, 128), (72, 64)])
def test_layers_and_networks_are_the_loaded_ones(
    tiny_folder: Path, second: Path, instruct: Path, kind: str, size: tuple[int, int] | None
) -> None:
    folder = {"first": tiny_folder, "second": second, "instruct": instruct}[kind]
    width, height = size or (64, 64)
    found = inspect_checkpoint(folder, width_px=size and size[0], height_px=size and size[1])
    checkpoint = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    unet = checkpoint.unet
    own = self_attention_layers(unet, height // 8, width // 8)
    assert found.latent == (4, height // 8, width // 8)
    assert [(e.number, e.part, e.level, e.tokens) for e in found.layers] == [
        (e.position, e.part, e.level, e.tokens) for e in own
    ]
    for layer, real in zip(found.layers, own, strict=True):
        module = unet.get_submodule(real.processor_name.removesuffix(".processor"))
        cross = unet.get_submodule(
            real.processor_name.removesuffix(".processor").replace("attn1", "attn2")
        )
        assert (layer.heads, layer.channels) == (module.heads, module.to_q.in_features)
        assert layer.text_width == cross.to_k.in_features
    for network in found.networks:
        real_network = getattr(checkpoint, network.name)
        assert network.parameters == sum(each.numel() for each in real_network.parameters())
        assert network.stored_as == ("float32",)
    assert found.fingerprint == checkpoint.fingerprint
    assert (
        found.family
        == {
            "first": "Stable Diffusion 1.x",
            "second": "Stable Diffusion 2.x",
            "instruct": "Stable Diffusion 1.x, InstructPix2Pix",
        }[kind]
    )
    (text,) = found.text_encoders
    assert (text.width, text.tokens, text.layers) == (
        checkpoint.text_encoder.config.hidden_size,
        77,
        2,
    )
    assert found.prediction_type == checkpoint.scheduler_config["prediction_type"]


@pytest.mark.parametrize("name", ["fpe", "p2p", "pnp", "masactrl"])
def test_editors_replace_what_their_rules_name(tiny_folder: Path, name: str) -> None:
    checkpoint = load_checkpoint(tiny_folder, device="cpu")
    layers = self_attention_layers(checkpoint.unet, 8, 8)
    assert tuple(layer.tokens for layer in layers) == SELF_ATTENTION_TOKENS
    found = use(inspect_checkpoint(tiny_folder), name)
    method = method_named(name)()
    expected = [
        tuple(each.position for each in select_layers(layers, exchange.layers))
        for exchange in method.rule.exchanges
    ]
    assert [each.layers for each in found.replaces] == expected
    assert [each.steps for each in found.replaces] == [e.steps for e in method.rule.exchanges]
    parameters = EditParameters(width_px=64, height_px=64).edited_by(method)
    assert found.rows == row_counts(parameters, [NOTHING], source_prompt="a source prompt").total


def test_fpe_has_what_the_checkpoint_recommends() -> None:
    found = use(inspect_checkpoint("builtin:still-life"), "fpe")
    (only,) = found.replaces
    assert only.what == "self-attention maps"
    assert layers_text(only.layers, 16) == "4-14 (11 of 16)"
    assert steps_text(only.steps) == "0.8 of the steps"


def test_editors_that_are_not_for_it_say_why(tiny_folder: Path, instruct: Path) -> None:
    plain, reads = inspect_checkpoint(tiny_folder), inspect_checkpoint(instruct)
    assert "eight input channels" in use(plain, "instruct_pix2pix").why_not
    assert use(plain, "fpe").why_not == ""
    assert "eight input channels" in use(reads, "fpe").why_not
    assert use(reads, "instruct_pix2pix").rows == 150
    assert len(plain.editors) == 11


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_s_memory_is_that_of_the_row_limit(
    tiny_folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspect_checkpoint(tiny_folder, width_px=128, height_px=96)
    (memory,) = (each for each in found.memory if each.dtype == dtype)
    monkeypatch.setattr(row_limit, "free_memory_bytes", lambda *_: memory.row * 10 / 0.6 + 1)
    element = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    rows = row_limit.rows_that_fit(torch.device("cpu"), 8 * 12 * 16, element, 1.0)
    assert rows == 10
    total = sum(each.parameters or 0 for each in found.networks)
    assert memory.weights == total * element


def test_stable_diffusion_xl_s_layers_are_found_from_facts() -> None:
    """Seventy, of which 32 x 32 tokens and fewer at 1,024 px are 5-64."""
    layers = unet_layers(STABLE_DIFFUSION_XL.unet, 128, 128)
    kind: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = kind.from_config(dict(STABLE_DIFFUSION_XL.unet))
    real = self_attention_layers(unet, 128, 128)
    assert [(e.number, e.part, e.tokens) for e in layers] == [
        (e.position, e.part, e.tokens) for e in real
    ]
    assert len(layers) == 70
    selected = select_layers(real, LayersByTokens(1024))
    assert (selected[0].position, selected[-1].position, len(selected)) == (5, 64, 60)
    assert {(e.heads, e.channels // e.heads) for e in layers} == {(10, 64), (20, 64)}


def test_a_single_file_of_stable_diffusion_xl(tmp_path: Path) -> None:
    """Of full size, from its header: two text encoders, layers 5-64, who cannot edit with it."""
    path = write_header_only(tmp_path / "xl.safetensors", shapes_of(STABLE_DIFFUSION_XL))
    found = inspect_checkpoint(path)
    assert (found.family, found.lora_family) == ("Stable Diffusion XL",) * 2
    assert found.size_px == (1024, 1024)
    assert found.embedding_widths == {"text_encoder": 768, "text_encoder_2": 1280}
    counts = [each.parameters for each in found.networks]
    assert counts == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    uses = {each.editor: each for each in found.editors}
    assert uses["fpe"].replaces[0].layers == tuple(range(5, 65))
    for name in ("shape_guided", "pix2pix_zero"):
        assert "does not edit with Stable Diffusion XL" in uses[name].why_not


def test_published_models_say_whose_loras_fit(tmp_path: Path) -> None:
    """Single files of full size, from their headers."""
    path = write_header_only(tmp_path / "one.safetensors", shapes_of(STABLE_DIFFUSION_1))
    found = inspect_checkpoint(path)
    assert found.lora_family == "Stable Diffusion 1.x"
    assert found.embedding_widths == {"text_encoder": 768}
    assert found.cross_attention_widths == (768,)
    assert found.size_px == (512, 512)
    unet, vae, text = found.networks
    assert (unet.parameters, vae.parameters, text.parameters) == (
        859_520_964,
        83_653_863,
        123_060_480,
    )
    assert layers_text(use(found, "fpe").replaces[0].layers, 16) == "3-13 (11 of 16)"
    assert found.fingerprint == checkpoint_fingerprint(path)


def test_the_second_family_in_a_single_file(tmp_path: Path) -> None:
    told = {"modelspec.architecture": "stable-diffusion-v2-768-v"}
    shapes = shapes_of(STABLE_DIFFUSION_2)
    found = inspect_checkpoint(write_header_only(tmp_path / "two.safetensors", shapes, **told))
    assert (found.family, found.lora_family) == ("Stable Diffusion 2.x", "Stable Diffusion 2.x")
    assert (found.prediction_type, found.size_px) == ("v_prediction", (768, 768))
    assert found.layers[0].heads == 5
    assert found.layers[0].tokens == 96 * 96
    assert found.text_encoders[0].layers == 23
    # by level, as a rule by tokens means other layers at another size: docs/checkpoints.md
    assert layers_text(use(found, "fpe").replaces[0].layers, 16) == "3-13 (11 of 16)"


def test_a_single_file_is_what_its_folder_is(tiny_folder: Path, tmp_path: Path) -> None:
    path = write_single_file(tiny_folder, tmp_path / "model.safetensors")
    ours, theirs = inspect_checkpoint(path, config=tiny_folder), inspect_checkpoint(tiny_folder)
    same = {"name": "", "fingerprint": ""}
    assert replace(ours, **same) == replace(theirs, **same)
    assert ours.fingerprint == checkpoint_fingerprint(path, config=tiny_folder)


def test_trailing_spacing_and_pure_noise_are_said(second: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(second, tmp_path / "zero"))
    file = folder / "scheduler/scheduler_config.json"
    values = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    found = inspect_checkpoint(folder)
    assert (found.spacing, found.reaches_noise) == ("trailing", True)
    before = inspect_checkpoint(second)
    assert (before.spacing, before.reaches_noise) == ("leading", False)


def test_what_cannot_be_looked_at_says_why(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="multiple of 8"):
        inspect_checkpoint(tiny_folder, width_px=100)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        inspect_checkpoint(tmp_path / "nothing")


def test_nothing_is_loaded() -> None:
    code = (
        "import sys; from fpe_core.checkpoint.inspection import inspect_checkpoint; "
        "inspect_checkpoint('builtin:still-life'); "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), "none of 16"), ((7,), "7 (1 of 16)"), ((1, 2, 4, 8, 9), "1-2, 4, 8-9 (5 of 16)")],
)
def test_layers_in_words(numbers: tuple[int, ...], text: str) -> None:
    assert layers_text(numbers, 16) == text
    assert steps_text((0.1, 0.9)) == "0.1 to 0.9 of the steps"
