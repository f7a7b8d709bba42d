"""Prompts through the text encoder: each once, and a limited number at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fpe_core import Embedding, load_checkpoint
from fpe_core.unet import text_encoders as prompts_module
from fpe_core.unet.prompts import encode_prompts
from fpe_core.unet.text_encoders import token_ids


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Any:
    return load_checkpoint(tiny_checkpoint, device="cpu")


def rows_encoded(checkpoint: Any, prompts: list[str]) -> tuple[Tensor, list[int]]:
    """The embeddings, and how many prompts were in each call of the text encoder."""
    sizes: list[int] = []
    hook = checkpoint.text_encoder.register_forward_pre_hook(
        lambda _module, args: sizes.append(len(args[0]))
    )
    try:
        encoded = encode_prompts(checkpoint.text_encoders, [(each, None) for each in prompts])
    finally:
        hook.remove()
    assert [text for text, _ in encoded.places] == list(dict.fromkeys(prompts))
    return encoded.embeddings, sizes


def test_many_prompts_take_several_calls_and_each_is_encoded_once(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "_MOST_PROMPTS", 4)
    prompts = ["", *(f"a cat {number}" for number in range(9)), "", "a cat 3"]
    embeddings, sizes = rows_encoded(checkpoint, prompts)
    assert sizes == [4, 4, 2]
    assert embeddings.shape[0] == 10


@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_an_embedding_does_not_depend_on_how_many_are_encoded_together(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Bit for bit, on a CPU."""
    prompts = [f"a photo of a cat {number}" for number in range(70)]
    whole, sizes = rows_encoded(checkpoint, prompts)
    assert sizes == [70]
    monkeypatch.setattr(prompts_module, "_MOST_PROMPTS", most)
    parts, _ = rows_encoded(checkpoint, prompts)
    assert torch.equal(parts, whole)


def with_embeddings(folder: Path, vectors: dict[str, int], files: Path) -> Any:
    """The checkpoint with embeddings of textual inversion: how many vectors each token has."""
    embeddings = []
    for seed, (token, count) in enumerate(vectors.items()):
        file = files / f"{seed}.safetensors"
        rows = torch.randn((count, 16), generator=torch.Generator().manual_seed(seed))
        save_file({"emb_params": rows}, file)
        embeddings.append(Embedding(file, token))
    return load_checkpoint(folder, device="cpu", embeddings=embeddings)


@pytest.mark.parametrize("token", ["<InkWash>", "<inkwash>", "InkWash"])
def test_a_token_stands_for_all_its_vectors_whatever_its_capitals_in_a_prompt(
    token: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As the tokenizer takes it for the same token, capitals or not."""
    checkpoint = with_embeddings(tiny_checkpoint, {token: 3}, tmp_path)
    added = checkpoint.tokenizer.convert_tokens_to_ids([token, f"{token}_1", f"{token}_2"])
    spelled = f"a {token} {token}_1 {token}_2, {token} {token}_1 {token}_2 cat"
    expected = checkpoint.tokenizer(spelled).input_ids
    assert [number for number in expected if number in added] == added * 2
    whole = checkpoint.text_encoders.encode([spelled])[0]
    for each in (token, token.lower(), token.upper(), token.title()):
        prompt = f"a {each}, {each} cat"
        assert token_ids(checkpoint.tokenizer, prompt) == expected
        assert torch.equal(checkpoint.text_encoders.encode([prompt])[0], whole)
        written_out = f"a {each} {each}_1 {each}_2, {each} {each}_1 {each}_2 cat"
        assert token_ids(checkpoint.tokenizer, written_out) == expected


def test_a_token_inside_a_longer_one_is_not_meant(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = with_embeddings(tiny_checkpoint, {"ink": 2, "ink-wash": 3}, tmp_path)
    ids = checkpoint.tokenizer.convert_tokens_to_ids
    assert token_ids(checkpoint.tokenizer, "ink-wash ink")[1:-1] == ids(
        ["ink-wash", "ink-wash_1", "ink-wash_2", "ink", "ink_1"]
    )


def test_vectors_at_the_end_of_the_window_are_cut_as_words_are(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = with_embeddings(tiny_checkpoint, {"<ink>": 3}, tmp_path)
    tokenizer = checkpoint.tokenizer
    inner = tokenizer.model_max_length - 2
    prompt = "a " * (inner - 2) + "<INK>"
    seen: list[list[int]] = []
    hook = checkpoint.text_encoder.register_forward_pre_hook(
        lambda _module, args: seen.extend(args[0].tolist())
    )
    try:
        checkpoint.text_encoders.encode([prompt, ""])
    finally:
        hook.remove()
    assert seen[0] == tokenizer(f"{prompt} <ink>_1").input_ids  # <ink>_2 has no place any more
    assert seen[1] == tokenizer("", padding="max_length").input_ids
