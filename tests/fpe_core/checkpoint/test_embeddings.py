"""Embeddings of textual inversion, held against diffusers' own loading of the same files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from fpe_core import (
    Checkpoint,
    CheckpointError,
    Embedding,
    checkpoint_fingerprint,
    load_checkpoint,
)
from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import located
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.embeddings import add_embeddings
from fpe_core.checkpoint.files import locate
from fpe_core.checkpoint.pretrained import clip_tokenizer

CLOSE = 1e-5
WIDTH = 16


def vectors(count: int, seed: int = 1, width: int = WIDTH) -> Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))


def written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), path)
    return path


def loaded(folder: Path, *embeddings: Embedding | Path, **options: Any) -> Checkpoint:
    return load_checkpoint(
        folder, device="cpu", **{"dtype": "float32", "embeddings": embeddings, **options}
    )


def encoded(checkpoint: Checkpoint, prompt: str) -> Tensor:
    return checkpoint.text_encoders.encode([prompt])[0]


def of_diffusers(folder: Path, prompt: str, files: Mapping[Path, str | None]) -> Tensor:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    for file, token in files.items():
        pipe.load_textual_inversion(str(file.parent), weight_name=file.name, token=token)
    found, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    return found.detach()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("layout", ["diffusers", "automatic1111", "flat"])
def test_an_embedding_is_what_diffusers_makes_of_it(
    layout: str, count: int, tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    """And its token in the middle of a prompt is not what the same letters were."""
    name = "emb_params" if layout == "automatic1111" else "<ink>"
    rows = vectors(count)[0] if layout == "flat" else vectors(count)
    file = written(tmp_path / "some.safetensors", {name: rows})
    prompt = "a photo of a <ink> cat, red <ink>"
    theirs = of_diffusers(tiny_folder, prompt, {file: "<ink>"})
    ours = encoded(loaded(tiny_folder, Embedding(file, "<ink>")), prompt)
    assert float((ours - theirs).abs().max()) <= CLOSE
    assert float((ours - encoded(tiny, prompt)).abs().max()) > 1e-2
    if layout == "diffusers":  # the file says how it is named
        assert torch.equal(encoded(loaded(tiny_folder, file), prompt), ours)


def test_several_embeddings_are_what_diffusers_makes_of_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    first = written(tmp_path / "a.safetensors", {"<ink>": vectors(3)})
    second = written(tmp_path / "b.safetensors", {"<oil>": vectors(1, seed=2)})
    prompt = "a <oil> dog in <ink> snow"
    theirs = of_diffusers(tiny_folder, prompt, {first: None, second: "oilpaint"})
    checkpoint = loaded(tiny_folder, first, Embedding(second, "oilpaint"))
    assert float((encoded(checkpoint, prompt) - theirs).abs().max()) <= CLOSE
    prompt = "a oilpaint dog in <ink> snow"
    theirs = of_diffusers(tiny_folder, prompt, {first: None, second: "oilpaint"})
    assert float((encoded(checkpoint, prompt) - theirs).abs().max()) <= CLOSE


def test_a_file_without_a_name_for_its_token_has_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "charcoal.safetensors", {"emb_params": vectors(2)})
    added = loaded(tiny_folder, file).tokenizer.get_added_vocab()
    assert {"charcoal", "charcoal_1"} <= set(added)


def test_capitals_in_a_token_are_what_diffusers_makes_of_them(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """diffusers takes such a token for its first vector alone, so it is told all of them."""
    one = written(tmp_path / "OilPaint.safetensors", {"emb_params": vectors(1)})
    two = written(tmp_path / "InkWash.safetensors", {"emb_params": vectors(2)})
    ours = loaded(tiny_folder, one, two)
    for prompt, spelled in (
        ("a photo of OilPaint", "a photo of OilPaint"),
        ("a photo of oilpaint", "a photo of oilpaint"),
        ("a photo of InkWash", "a photo of InkWash InkWash_1"),
    ):
        theirs = of_diffusers(tiny_folder, spelled, {one: "OilPaint", two: "InkWash"})
        assert float((encoded(ours, prompt) - theirs).abs().max()) <= CLOSE


REFUSED: dict[str, tuple[dict[str, Tensor], str | None, str]] = {
    "Stable Diffusion 1.x": (
        {"<ink>": vectors(2, width=768)},
        None,
        r"its <ink> is \[2, 768\] of F32, where the checkpoint's text_encoder takes vectors of 16 "
        "numbers; it seems to be for Stable Diffusion 1.x",
    ),
    "Stable Diffusion 2.x": ({"<ink>": vectors(1, width=1024)}, None, "Stable Diffusion 2.x"),
    "Stable Diffusion XL": (
        {"clip_l": vectors(2), "clip_g": vectors(2)},
        "<ink>",
        "for a second text encoder, which this checkpoint does not have; .*Stable Diffusion XL",
    ),
    "no numbers": ({"<ink>": torch.ones((1, WIDTH), dtype=torch.int64)}, None, "of I64|of INT64"),
    "three dimensions": ({"<ink>": torch.ones((1, 1, WIDTH))}, None, r"\[1, 1, 16\]"),
    "too many": ({"<ink>": vectors(76)}, None, "has 76 vectors, and a prompt has 75 places"),
    "none": ({"<ink>": vectors(0)}, None, "has 0 vectors"),
    "a LoRA": (
        {"lora_unet_a.lora_down.weight": vectors(1), "lora_unet_a.lora_up.weight": vectors(1)},
        None,
        "holds 2 tensors .* where an embedding of textual inversion has one.*a LoRA",
    ),
    "a word of the tokenizer": ({"cat": vectors(1)}, None, "has a token cat already"),
    "a word in capitals": ({"Cat": vectors(1)}, None, "has a token Cat already"),
    "the start token": ({"<a>": vectors(1)}, "<|startoftext|>", "has a token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_nothing_is_refused_when_planned_and_when_loaded(
    case: str, tiny_folder: Path, tmp_path: Path
) -> None:
    tensors, token, message = REFUSED[case]
    file = written(tmp_path / "ink.safetensors", tensors)
    add_ons = located(AddOns.of(embeddings=[Embedding(file, token)]), allow_pickle=False)
    with pytest.raises(CheckpointError, match=message):
        check_add_ons(tiny_folder, locate(tiny_folder, False, None), add_ons, False, None)
    components = {
        "tokenizer": clip_tokenizer(tiny_folder / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(tiny_folder / "text_encoder"),
    }
    with pytest.raises(CheckpointError, match=message):
        add_embeddings(components, add_ons.embeddings)


@pytest.mark.parametrize(("first", "second"), [("<x>", "<x>"), ("<x>", "<x>_1"), ("<x>_1", "<x>")])
def test_two_embeddings_need_two_names(
    first: str, second: str, tiny_folder: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "ink.safetensors", {"<ink>": vectors(2)})
    both = [Embedding(file, first), Embedding(file, second)]
    with pytest.raises(CheckpointError, match=r"has a token <x>(_1)? already; give it another"):
        loaded(tiny_folder, *both)


@pytest.mark.parametrize("token", ["", "two words", " <x>", "<x>\n"])
def test_a_token_is_one_word(token: str, tiny_folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "ink.safetensors", {"<ink>": vectors(2)})
    with pytest.raises(CheckpointError, match="is not a word"):
        loaded(tiny_folder, Embedding(file, token))


def test_vectors_that_are_not_finite_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "ink.safetensors", {"<ink>": vectors(2) / 0})
    with pytest.raises(CheckpointError, match="not finite"):
        loaded(tiny_folder, file)


@pytest.mark.parametrize("layout", ["diffusers", "automatic1111", "a tensor"])
def test_pickles_are_read_only_if_they_are_allowed(
    layout: str, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = vectors(3)
    content: dict[str, Any] = {
        "diffusers": {"<ink>": rows},
        "automatic1111": {"string_to_param": {"*": rows}, "name": "ink", "step": 3},
        "a tensor": rows,
    }
    pickled = tmp_path / "ink.pt"
    torch.save(content[layout], pickled)
    with pytest.raises(CheckpointError, match="is a pickle"):
        loaded(tiny_folder, pickled)
    ours = loaded(tiny_folder, pickled, allow_pickle=True)
    plain = written(tmp_path / "ink.safetensors", {"emb_params": rows})
    theirs = loaded(tiny_folder, plain)
    prompt = "a photo of ink"
    assert re.search("ink_2", str(ours.tokenizer.get_added_vocab()))
    assert torch.equal(encoded(ours, prompt), encoded(theirs, prompt))


def test_the_fingerprint_is_of_the_content_and_the_token(
    tiny_folder: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    file = written(tmp_path / "ink.safetensors", {"<ink>": vectors(2)})
    moved = written(tmp_path / "else.safetensors", {"<ink>": vectors(2)})
    other = written(tmp_path / "other.safetensors", {"<ink>": vectors(2, seed=4)})
    plain, named, renamed, another = (
        checkpoint_fingerprint(tiny_folder, embeddings=each)
        for each in ([], [file], [Embedding(file, "<x>")], [other])
    )
    assert plain == tiny.fingerprint
    assert len({plain, named, renamed, another}) == 4
    assert checkpoint_fingerprint(tiny_folder, embeddings=[moved]) == named
    assert checkpoint_fingerprint(tiny_folder, embeddings=[Embedding(moved, "<ink>")]) == named
    assert loaded(tiny_folder, file).fingerprint == named


def test_two_names_that_differ_in_capitals_alone_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """CLIP's tokenizer (transformers 5.23.0) takes them for one; failed before: both were added."""
    file = written(tmp_path / "ink.safetensors", {"emb_params": vectors(1)})
    with pytest.raises(CheckpointError, match="has a token <INK> already"):
        load_checkpoint(
            tiny_folder,
            device="cpu",
            embeddings=[Embedding(file, "<ink>"), Embedding(file, "<INK>")],
        )
