"""What is in a file of an embedding of textual inversion, and whether a checkpoint can take it.

Layouts: diffusers' ({"<token>": vectors}), AUTOMATIC1111's (`emb_params`; `string_to_param` in
pickles) and those of Stable Diffusion XL, with vectors for each of its text encoders (`clip_l` and
`clip_g`). The vectors are (vectors, width), or (width,). Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fpe_core.checkpoint.add_ons import Embedding, refuse_token
from fpe_core.checkpoint.weights import Header, headers_of, usual_kind
from fpe_core.errors import CheckpointError

_ENCODERS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
"""Names of the vectors for each text encoder, in files for Stable Diffusion XL."""
_NAMELESS = ("emb_params", "*", *_ENCODERS)
"""Names of tensors that are no token."""
_FAMILY = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}
"""By the width of the vectors."""


@dataclass(frozen=True)
class TextEncoderSize:
    """What of a text encoder decides whether vectors fit: their width, its tokens in a prompt."""

    width: int
    positions: int


def token_in_file(embedding: Embedding) -> str:
    """The token that a file names; else the file's own name. Those of pickles are not read here.

    Raises:
        CheckpointError: it cannot be read, or names no word.
    """
    path = Path(embedding.file)
    names = tuple(headers_of([path])) if path.suffix == ".safetensors" else ()
    token = names[0] if len(names) == 1 and names[0] not in _NAMELESS else path.stem
    refuse_token(token, f"embedding {path}")
    return token


def vectors_for(path: Path, held: Mapping[str, Header]) -> dict[str, str]:
    """Text encoder ("text_encoder", "text_encoder_2") to the name of its vectors in a file.

    Raises:
        CheckpointError: it is not an embedding.
    """
    if len(held) == 1 and next(iter(held)) not in _ENCODERS:
        return {"text_encoder": next(iter(held))}
    if held and set(held) <= set(_ENCODERS):
        return {_ENCODERS[name]: name for name in held}
    some = ", ".join(list(held)[:3])
    raise CheckpointError(
        f"embedding {path}: it holds {len(held)} tensors ({some}{', ...' * (len(held) > 3)}), "
        "where an embedding of textual inversion has one, or clip_l and clip_g. "
        f"{usual_kind(held)}".rstrip()
    )


def count_of(header: Header) -> int:
    """How many vectors a tensor holds."""
    return header.shape[0] if len(header.shape) == 2 else 1


def check_vectors(
    path: Path, held: Mapping[str, Header], encoders: Mapping[str, TextEncoderSize]
) -> dict[str, str]:
    """As `vectors_for`, after a check that they are what the checkpoint's text encoders take.

    Raises:
        CheckpointError: they have another width, are too many, or one of the text encoders has none
            or is not there.
    """
    names = vectors_for(path, held)
    for encoder, name in names.items():
        shape = held[name].shape
        if encoder not in encoders:
            raise CheckpointError(
                f"embedding {path}: its {name} is for a second text encoder, which this checkpoint "
                "does not have; it is for Stable Diffusion XL"
            )
        size = encoders[encoder]
        is_float = held[name].dtype.startswith(("F", "BF"))
        if len(shape) not in (1, 2) or shape[-1] != size.width or not is_float:
            family = _FAMILY.get(shape[-1] if shape else 0)
            raise CheckpointError(
                f"embedding {path}: its {name} is {list(shape)} of {held[name].dtype}, where the "
                f"checkpoint's {encoder} takes vectors of {size.width} numbers"
                + ("" if family is None else f"; it seems to be for {family}")
            )
        if not 0 < count_of(held[name]) <= size.positions - 2:
            raise CheckpointError(
                f"embedding {path}: it has {count_of(held[name])} vectors, and a prompt has "
                f"{size.positions - 2} places"
            )
    if lacking := [each for each in encoders if each not in names]:
        raise CheckpointError(
            f"embedding {path}: it holds no vectors for the checkpoint's {' and '.join(lacking)}; "
            "it is for a model with one text encoder"
        )
    counts = {count_of(held[name]) for name in names.values()}
    if len(counts) > 1:
        raise CheckpointError(
            f"embedding {path}: it holds other numbers of vectors for each text encoder "
            f"({', '.join(map(str, sorted(counts)))})"
        )
    return names


def tokens_of(token: str, count: int) -> list[str]:
    """The tokens of an embedding of `count` vectors: <x>, <x>_1, <x>_2, ..., as in diffusers."""
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def refuse_known(path: Path | str, tokens: Sequence[str], known: Collection[str]) -> None:
    """Raises CheckpointError if a token of an embedding, or the next one, is a token already.

    `known`: the tokenizer's; CLIP's has the word cat as cat</w>, and an embedding of that name
    would take its place in every prompt. It takes <INK> and <ink> for the same.
    """
    lowered = {each.lower() for each in known}
    for token in (*tokens, f"{tokens[0]}_1"):
        if not lowered.isdisjoint({token.lower(), f"{token.lower()}</w>"}):
            raise CheckpointError(
                f"embedding {path}: the tokenizer has a token {token} already; give it another "
                "name (token)"
            )


def vocabulary_of(folder: Path) -> set[str]:
    """The tokens of a tokenizer's folder, by its JSON files. Raises OSError and ValueError."""
    found: set[str] = set()
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            found |= set(json.loads((folder / name).read_text(encoding="utf-8")))
    if (folder / "tokenizer.json").is_file():
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = content.get("model", {}).get("vocab", {})
        found |= set(vocabulary) if isinstance(vocabulary, dict) else set()
        found |= {str(token["content"]) for token in content.get("added_tokens", ())}
    return found
