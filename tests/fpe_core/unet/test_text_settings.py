"""Prompts in several windows, and text encoders without their last layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel

from fpe_core import (
    Checkpoint,
    DdimEditing,
    Editor,
    EditParameters,
    ParameterError,
    PromptToPrompt,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.editors.shape_guided import ShapeGuided
from fpe_core.schedule import ddim_schedule, seeded_noise
from fpe_core.text_settings import TextSettings
from tests.builders.tiny_checkpoint import build_tiny_checkpoint, build_tiny_xl

SHORT, NEGATIVE = "the cat in snow", "a car"
LONG = "the red cat in snow " * 22 + "the dog"
"""112 tokens without the special ones: two windows."""
LONGER = LONG + " of the blue car in snow" * 8
"""Three windows."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "1": build_tiny_checkpoint(tmp_path_factory.mktemp("one"), seed=5),
        "xl": build_tiny_xl(tmp_path_factory.mktemp("xl"), seed=5),
    }


@pytest.fixture(scope="module", params=["1", "xl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(folder: Path, **settings: Any) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype=torch.float64, **settings)


def _by_hand(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    """The embeddings of one window, (77, width)."""
    parts = []
    for tokenizer, encoder in zip(
        checkpoint.text_encoders.tokenizers, checkpoint.text_encoders.encoders, strict=True
    ):
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        padded = [first, *ids, last] + [tokenizer.pad_token_id] * (75 - len(ids))
        with torch.no_grad():
            seen = encoder(torch.tensor([padded]), output_hidden_states=True)
        is_one = checkpoint.text_encoder_2 is None
        parts.append(seen[0][0] if is_one else seen.hidden_states[-2][0])
    return torch.cat(parts, dim=-1)


def test_a_long_prompt_is_encoded_window_by_window(folders: dict[str, Path], family: str) -> None:
    checkpoint = loaded(folders[family], long_prompts="windows")
    ids = checkpoint.tokenizer(LONG).input_ids[1:-1]
    assert len(ids) == 112
    windows = [_by_hand(checkpoint, ids[:75]), _by_hand(checkpoint, ids[75:])]
    embeddings, pooled = checkpoint.text_encoders.encode([SHORT, LONG])
    assert embeddings.shape[:2] == (2, 2 * 77)
    assert torch.allclose(embeddings[1], torch.cat(windows), rtol=0, atol=1e-12)
    assert torch.equal(embeddings[0, :77], embeddings[0, 77:])  # a short one is there twice
    if pooled is not None:
        start = checkpoint.tokenizer.decode(ids[:75])
        _, of_start = loaded(folders[family]).text_encoders.encode([start])
        assert of_start is not None
        assert torch.allclose(pooled[1], of_start[0], rtol=0, atol=1e-12)


def test_three_and_two_windows_are_six(folders: dict[str, Path]) -> None:
    checkpoint = loaded(folders["1"], long_prompts="windows")
    embeddings, _ = checkpoint.text_encoders.encode([SHORT, LONG, LONGER])
    assert embeddings.shape[:2] == (3, 6 * 77)


def test_short_prompts_are_the_same_with_windows(folders: dict[str, Path], family: str) -> None:
    """Bit for bit; the fingerprint differs, as a long one would not be."""
    plain, windows = loaded(folders[family]), loaded(folders[family], long_prompts="windows")
    for one, other in zip(
        plain.text_encoders.encode([SHORT, ""]),
        windows.text_encoders.encode([SHORT, ""]),
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)
    assert plain.fingerprint != windows.fingerprint
    assert loaded(folders[family], clip_skip=0).fingerprint == plain.fingerprint


def _sampled(checkpoint: Checkpoint, prompt: str) -> Tensor:
    """By hand: the two rows of a step go through the UNet each with as many tokens as it has."""
    encode = checkpoint.text_encoders.encode
    schedule = ddim_schedule(checkpoint.scheduler_config, 5)
    z = seeded_noise(3, (1, 4, 8, 8)).double()
    for k in reversed(range(5)):
        rows = []
        for text in (NEGATIVE, prompt):
            embeddings, pooled = encode([text])
            sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
            beside = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
            with torch.no_grad():
                rows.append(
                    checkpoint.unet(
                        z,
                        schedule.timesteps[k],
                        encoder_hidden_states=embeddings,
                        added_cond_kwargs=beside,
                    ).sample
                )
        z = schedule.sample_step(z, rows[0] + 6.0 * (rows[1] - rows[0]), k)
    return z[0]


def test_edits_with_a_long_prompt_are_those_by_hand(folders: dict[str, Path], family: str) -> None:
    """With prompts of one, two and three windows in one call."""
    checkpoint = loaded(folders[family], long_prompts="windows")
    editor = Editor(checkpoint)
    prompts = [SHORT, LONG, LONGER]
    parameters = _parameters()
    made = editor.edit(editor.synthesise([SHORT], [3], parameters), [prompts]).edits[0]
    for edit, prompt in zip(made, prompts, strict=True):
        expected = _sampled(checkpoint, prompt)
        assert float((edit.latent - expected).norm() / expected.norm()) <= 1e-10, prompt
        assert edit.truncated_prompt == ""
    cut = Editor(loaded(folders[family]))
    short = cut.edit(cut.synthesise([SHORT], [3], parameters), [[LONG]]).edits[0][0]
    assert short.truncated_prompt.endswith("the dog")
    assert float((short.latent - made[1].latent).norm() / short.latent.norm()) > 1e-4


def test_what_exceeds_four_windows_is_reported(folders: dict[str, Path]) -> None:
    editor = Editor(loaded(folders["1"], long_prompts="windows"))
    prompt = "cat " * 300 + "dog in snow"
    sources = editor.synthesise([SHORT], [3], replace(_parameters(), steps=1))
    assert editor.edit(sources, [[prompt]]).edits[0][0].truncated_prompt == "dog in snow"


@pytest.mark.parametrize(
    "parameters",
    [
        EditParameters().edited_by(PromptToPrompt()),
        EditParameters().edited_by(ShapeGuided()),
        EditParameters(inversion="null_text"),
    ],
    ids=["p2p", "shape_guided", "null_text"],
)
def test_methods_that_work_on_tokens_are_refused(
    folders: dict[str, Path], parameters: EditParameters
) -> None:
    editor = Editor(loaded(folders["1"], long_prompts="windows"))
    with pytest.raises(ParameterError, match=r"set model.long_prompts|Set model.long_prompts"):
        editor.invert([], None, parameters)


# --- clip skip ------------------------------------------------------------------------------------


def test_a_skipped_layer_is_that_of_an_encoder_without_it(folders: dict[str, Path]) -> None:
    checkpoint = loaded(folders["1"], clip_skip=1)
    shorter = CLIPTextModel.from_pretrained(
        folders["1"] / "text_encoder", num_hidden_layers=1, dtype=torch.float64
    )
    ids = checkpoint.tokenizer(SHORT, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        _check_skipped(checkpoint, folders["1"], shorter(ids)[0])


def test_skipped_layers_of_xl_are_diffusers(folders: dict[str, Path]) -> None:
    """Of the prompt; diffusers leaves negative prompts at the last layer, here both skip it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folders["xl"], dtype=torch.float64, add_watermarker=False
    )
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            SHORT,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=1,
        )[0]
    _check_skipped(loaded(folders["xl"], clip_skip=1), folders["xl"], theirs)


def _check_skipped(checkpoint: Checkpoint, folder: Path, expected: Tensor) -> None:
    ours, _ = checkpoint.text_encoders.encode([SHORT])
    assert float((ours - expected).norm() / expected.norm()) <= 1e-12
    plain, _ = loaded(folder).text_encoders.encode([SHORT])
    assert float((ours - plain).norm() / plain.norm()) > 0.01
    assert checkpoint.fingerprint != loaded(folder).fingerprint
    assert checkpoint_fingerprint(folder, clip_skip=1) == checkpoint.fingerprint


def test_settings_out_of_range_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ParameterError, match="clip_skip must be at most 1 with a text encoder of 2"
    ):
        loaded(folders["1"], clip_skip=2)
    with pytest.raises(ParameterError, match="clip_skip must be >= 0"):
        TextSettings(clip_skip=-1)
    with pytest.raises(ParameterError, match="long_prompts must be one of truncate, windows"):
        TextSettings(long_prompts="cut")


def _parameters() -> EditParameters:
    return EditParameters(
        steps=5, guidance_scale=6.0, negative_prompt=NEGATIVE, width_px=64, height_px=64
    ).edited_by(DdimEditing())
