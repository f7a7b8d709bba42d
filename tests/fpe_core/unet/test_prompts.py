"""Prompts through the text encoder: each once, and a limited number at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fpe_core import load_checkpoint
from fpe_core.unet import text_encoders as prompts_module
from fpe_core.unet.prompts import encode_prompts


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
