"""The model with instructions in the package."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

from fpe_core import (
    CheckpointError,
    Editor,
    InstructPix2Pix,
    ParameterError,
    checkpoint_defaults,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.files import (
    BUILTIN_INSTRUCT,
    CHECKPOINT_DIR,
    COMPONENTS,
    INSTRUCT_DIR,
    component_folder,
)
from fpe_core.still_life.benchmark.benchmark import Arm, run_benchmark
from fpe_core.still_life.benchmark.edit_inputs import true_inputs
from fpe_core.still_life.benchmark.edits import FIRST_SEED, seeds_of
from fpe_core.still_life.scene import FACTORS

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(load_checkpoint(BUILTIN_INSTRUCT, device="cpu", dtype="float32"), max_rows=32)


def test_it_adds_little_and_holds_safetensors_only() -> None:
    files = [path for path in INSTRUCT_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * MEBIBYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert [path.parent.name for path in files if path.suffix == ".safetensors"] == ["unet"]


def test_its_other_components_are_the_first_models(editor: Editor) -> None:
    for name in COMPONENTS:
        folder = INSTRUCT_DIR if name == "unet" else CHECKPOINT_DIR
        assert component_folder(INSTRUCT_DIR, name) == folder / name
    assert editor.checkpoint.sees_source
    first = load_checkpoint("builtin:still-life", device="cpu", dtype="float32")
    for name in ("vae", "text_encoder"):
        own, other = getattr(editor.checkpoint, name), getattr(first, name)
        for one, same in zip(own.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, same)
    assert checkpoint_fingerprint(BUILTIN_INSTRUCT) != first.fingerprint
    assert checkpoint_fingerprint(BUILTIN_INSTRUCT) == editor.checkpoint.fingerprint


def test_a_folder_of_someone_else_lends_nothing(tmp_path) -> None:
    """Only the built-in model takes components from another folder."""
    (tmp_path / "model_index.json").write_text((INSTRUCT_DIR / "model_index.json").read_text())
    with pytest.raises(CheckpointError, match="missing unet, vae, text_encoder"):
        load_checkpoint(tmp_path)


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(CheckpointError, match="there is builtin:still-life, builtin:still-life-in"):
        load_checkpoint("builtin:still-life-xl")


def test_its_defaults_are_the_best_that_validation_tried() -> None:
    defaults = checkpoint_defaults(BUILTIN_INSTRUCT)
    assert (defaults.width_px, defaults.height_px) == (128, 128)
    record = json.loads((INSTRUCT_DIR / "validation.json").read_text())
    assert record["first_seed"] == FIRST_SEED["validation"]
    best = max(record["tried"], key=lambda row: row["score"])
    assert isinstance(defaults.method, InstructPix2Pix)
    assert (defaults.guidance_scale, defaults.method.image_guidance_scale) == (
        best["guidance_scale"],
        best["image_guidance_scale"],
    )


def test_it_edits_as_its_record_says(editor: Editor) -> None:
    """Colours and backgrounds of held-out scenes; the record has all types, of forty scenes."""
    arm = Arm("instruct", editor.checkpoint.default_parameters, true_inputs)
    factors = ["colour", "background"]
    judged = list(run_benchmark(editor, seeds_of("test", 4), [arm], factors=factors))
    assert all(each.judgement.success for each in judged)
    assert sum(each.judgement.structure for each in judged) / len(judged) >= 0.85
    record = json.loads((INSTRUCT_DIR / "training.json").read_text())
    assert record["first_training_seed"] >= 1_000_000
    held_out = record["held_out"]
    assert (held_out["first_seed"], held_out["scenes"]) == (2000, 40)
    of_types = [held_out[factor] for factor in FACTORS]
    assert min(held_out[factor]["success"] for factor in factors) >= 0.9
    assert sum(each["structure"] for each in of_types) / len(of_types) >= 0.85
    assert "held-out" in (INSTRUCT_DIR / "README.md").read_text()


def test_other_methods_are_refused(editor: Editor) -> None:
    first = checkpoint_defaults("builtin:still-life")
    with pytest.raises(ParameterError, match="fpe cannot edit with it"):
        editor.invert([], None, first)


def test_diffusers_loads_it_with_the_first_models_parts() -> None:
    first = StableDiffusionPipeline.from_pretrained(CHECKPOINT_DIR, safety_checker=None)
    parts = {name: getattr(first, name) for name in COMPONENTS if name != "unet"}
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        INSTRUCT_DIR, safety_checker=None, **parts
    )
    assert pipeline.unet.config.in_channels == 8
