"""Adds embeddings of textual inversion to tokenizers and text encoders.

As diffusers' `load_textual_inversion` does: an embedding of several vectors becomes the tokens <x>,
<x>_1, <x>_2, ..., and a prompt that says <x> means all of them (`fpe_core.unet.text_encoders`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpe_core.checkpoint.add_ons import Embedding
from fpe_core.checkpoint.embedding_files import (
    TextEncoderSize,
    check_vectors,
    refuse_known,
    tokens_of,
)
from fpe_core.checkpoint.tensor_files import content_of, header_of
from fpe_core.errors import CheckpointError

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def add_embeddings(components: Mapping[str, Any], embeddings: Sequence[Embedding]) -> None:
    """Adds tokens to a checkpoint's tokenizers, and their vectors to its text encoders, in place.

    Args:
        components: "text_encoder" and "tokenizer" and, if there are, "text_encoder_2" and
            "tokenizer_2".
        embeddings: with paths on this machine, and tokens.

    Raises:
        CheckpointError: a file that is not an embedding for these text encoders, or a token that
            is one of the tokenizer's already.
    """
    encoders = {name: components[name] for name in _TOKENIZERS if components.get(name) is not None}
    sizes = {
        name: TextEncoderSize(each.config.hidden_size, each.config.max_position_embeddings)
        for name, each in encoders.items()
    }
    for each in embeddings:
        path = Path(each.file)
        vectors = _vectors_of(path)
        held = {name: header_of(vector) for name, vector in vectors.items()}
        for encoder, name in check_vectors(path, held, sizes).items():
            tokenizer = components[_TOKENIZERS[encoder]]
            _add(path, str(each.token), vectors[name], tokenizer, encoders[encoder])


def _vectors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; of AUTOMATIC1111's pickles those under string_to_param."""
    content = content_of(path, "embedding")
    if isinstance(content, Tensor):
        content = {"*": content}
    if isinstance(content, dict) and "string_to_param" in content:
        content = dict(content["string_to_param"])
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"embedding {path} holds something else than named tensors")
    return {str(name): each for name, each in content.items()}


def _add(path: Path, token: str, vectors: Tensor, tokenizer: Any, text_encoder: Any) -> None:
    rows = vectors.detach().reshape(-1, vectors.shape[-1])
    if not rows.isfinite().all():
        raise CheckpointError(f"embedding {path}: its vectors are not finite")
    tokens = tokens_of(token, len(rows))
    refuse_known(path, tokens, tokenizer.get_vocab())
    tokenizer.add_tokens(tokens)
    places = tokenizer.convert_tokens_to_ids(tokens)
    table = text_encoder.get_input_embeddings()
    old = table.weight.data
    new = old.new_zeros((max(len(old), max(places) + 1), old.shape[1]))
    new[: len(old)] = old
    new[torch.tensor(places)] = rows.to(old)
    table.weight = torch.nn.Parameter(new, requires_grad=False)
    table.num_embeddings = text_encoder.config.vocab_size = len(new)
