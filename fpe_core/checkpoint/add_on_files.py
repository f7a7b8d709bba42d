"""The files of a checkpoint's add-ons on this machine, and its fingerprint with them.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.add_ons import AddOns, Embedding, Lora
from fpe_core.checkpoint.embedding_files import token_in_file
from fpe_core.checkpoint.files import PICKLED_SUFFIXES, fingerprint_of, locate
from fpe_core.errors import CheckpointError
from fpe_core.text_settings import TextSettings

VAE_WEIGHTS = "diffusion_pytorch_model"
_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)
_OF_LORAS = "pytorch_lora_weights"
_OF_EMBEDDINGS = "learned_embeds"
_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<file>[\w./ -]+\.\w+))?")


def checkpoint_fingerprint(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: str | Path | None = None,
    loras: Sequence[Lora | str | Path] = (),
    embeddings: Sequence[Embedding | str | Path] = (),
    vae: str | Path | None = None,
    clip_skip: int = 0,
    long_prompts: str = "truncate",
) -> str:
    """Hash of a checkpoint's content, 32 hex digits: equal files anywhere give equal fingerprints.

    With LoRAs, embeddings or an autoencoder of one's own it is also a hash of their content, of the
    weights of the LoRAs and the tokens of the embeddings; and so it is of settings of the text
    encoders (`TextSettings`) that are not as usual. Reads the files once; loads no model.

    Raises:
        ParameterError: `clip_skip` or `long_prompts` is out of range.
        CheckpointError: as `load_checkpoint`.
    """
    files = locate(source, allow_pickle, revision)
    add_ons = located(AddOns.of(loras, embeddings, vae), allow_pickle)
    fingerprint = fingerprint_of(files, allow_pickle, config)
    return TextSettings(clip_skip, long_prompts).of_fingerprint(
        add_to_fingerprint(fingerprint, add_ons, allow_pickle)
    )


def located(add_ons: AddOns, allow_pickle: bool) -> AddOns:
    """The same with paths on this machine, and with the embeddings' tokens; hub ids are downloaded.

    LoRAs are in the order of their content, so that in which they are named does not matter.

    Raises:
        CheckpointError: there is no such file, or it is a pickle and these are refused.
    """
    loras = [
        replace(each, file=_file("LoRA", each.file, _OF_LORAS, allow_pickle))
        for each in add_ons.loras
    ]
    embeddings = [
        replace(each, file=_file("embedding", each.file, _OF_EMBEDDINGS, allow_pickle))
        for each in add_ons.embeddings
    ]
    return AddOns(
        tuple(sorted(loras, key=lambda each: (_digest(Path(each.file)), _of_weights(each)))),
        tuple(replace(each, token=each.token or token_in_file(each)) for each in embeddings),
        None if add_ons.vae is None else _vae(add_ons.vae, allow_pickle),
    )


def vae_weights(vae: Path, allow_pickle: bool) -> Path:
    """The file with the weights of an autoencoder: itself, or that of its folder.

    Raises:
        CheckpointError: a folder without weights.
    """
    if vae.is_file():
        return vae
    suffixes = (".safetensors", ".fp16.safetensors", *((".bin",) if allow_pickle else ()))
    for suffix in suffixes:
        if (vae / f"{VAE_WEIGHTS}{suffix}").is_file():
            return vae / f"{VAE_WEIGHTS}{suffix}"
    raise CheckpointError(
        f"autoencoder {vae} holds no {VAE_WEIGHTS}.safetensors"
        + ("" if allow_pickle else "; pickled weights (.bin) are read only with allow_pickle")
    )


def add_to_fingerprint(fingerprint: str, add_ons: AddOns, allow_pickle: bool) -> str:
    """The fingerprint of a checkpoint with its add-ons, which `located` found; without any, the
    checkpoint's own."""
    if not add_ons:
        return fingerprint
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16)
    for lora in add_ons.loras:
        content = _digest(Path(lora.file)).hex()
        digest.update(f"\nlora:{content}:{_of_weights(lora)}".encode())
    for each in add_ons.embeddings:
        content = _digest(Path(each.file)).hex()
        digest.update(f"\nembedding:{content}:{each.token}".encode())
    if add_ons.vae is not None:
        vae = Path(add_ons.vae)
        digest.update(f"\nvae:{_digest(vae_weights(vae, allow_pickle)).hex()}".encode())
        if vae.is_dir():
            digest.update(f":{_digest(vae / 'config.json').hex()}".encode())
    return digest.hexdigest()


def _of_weights(lora: Lora) -> str:
    return f"{float(lora.weight)!r}:{float(lora.weight_of('text_encoder'))!r}"


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _file(what: str, source: str | Path, usual: str, allow_pickle: bool) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{what} {source} is a folder; name the file in it")
    if not path.is_file():
        path = _from_hub(what, str(source), usual)
    _refuse_pickle(what, path, allow_pickle)
    return path


def _vae(source: str | Path, allow_pickle: bool) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        path = _vae_from_hub(str(source))
    if path.is_file():
        _refuse_pickle("autoencoder", path, allow_pickle)
        return path
    if not (path / "config.json").is_file():
        whole = (path / "vae" / "config.json").is_file()
        raise CheckpointError(
            f"autoencoder {source} has no config.json"
            + (": it is a whole checkpoint; name its folder vae" if whole else "")
        )
    vae_weights(path, allow_pickle)
    return path


def _refuse_pickle(what: str, path: Path, allow_pickle: bool) -> None:
    if path.suffix in PICKLED_SUFFIXES and not allow_pickle:
        raise CheckpointError(
            f"{what} {path} is a pickle, which can run code when loaded; convert it to "
            "safetensors, or set allow_pickle if you trust it"
        )
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(f"{what} {path} is not a .safetensors file")


def _from_hub(what: str, source: str, usual: str) -> Path:
    """A file of a repository: the one that is named, else that with the usual name."""
    match = _ON_HUB.fullmatch(source)
    is_path = match is None or (match["file"] is None and Path(source).suffix in _SUFFIXES)
    if match is None or is_path or source.startswith("."):
        raise CheckpointError(
            f"no {what} at {source}. Accepted: a .safetensors file, a hub id (owner/name, or "
            "owner/name/file.safetensors)"
        )
    import huggingface_hub

    file = match["file"] or f"{usual}.safetensors"
    return Path(_downloaded(what, source, huggingface_hub.hf_hub_download, match, filename=file))


def _vae_from_hub(source: str) -> Path:
    match = _ON_HUB.fullmatch(source)
    if match is None or match["file"] is not None or source.startswith("."):
        raise CheckpointError(
            f"no autoencoder at {source}. Accepted: an AutoencoderKL's folder, a .safetensors "
            "file, a hub id (owner/name)"
        )
    import huggingface_hub

    wanted = ["config.json", f"{VAE_WEIGHTS}*"]
    fetch = huggingface_hub.snapshot_download
    return Path(_downloaded("autoencoder", source, fetch, match, allow_patterns=wanted))


def _downloaded(
    what: str, source: str, fetch: Any, match: re.Match[str], **options: Any
) -> str | Path:
    try:
        found: str | Path = fetch(match["repository"], **options)
    except Exception as error:  # the hub's client raises from several libraries
        raise CheckpointError(
            f"{what} {source} is not here, and could not be downloaded from the Hugging Face hub "
            f"({options.get('filename', 'config.json')} of {match['repository']}): "
            f"{type(error).__name__}: {error}"
        ) from error
    return found
