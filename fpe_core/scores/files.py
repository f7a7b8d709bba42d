"""Finds scoring models, and computes their fingerprints.

    builtin:still-life      the small CLIP in this package
    a folder                in transformers' layout (config.json, model.safetensors, ...)
    owner/name              a repository on the Hugging Face hub, or its local cache

Weights are read from safetensors only.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE, hash_file
from fpe_core.errors import CheckpointError

SCORER_DIR: Path = Path(__file__).parent.parent / "still_life" / "scorer"
"""What `builtin:still-life` is: a folder for `CLIPModel.from_pretrained`."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LPIPS_WEIGHTS = "model.safetensors"
_HUB_FILES = ("*.json", "merges.txt", "model.safetensors", "model-*-of-*.safetensors")


def locate_scorer(source: str | Path, revision: str | None, accepted: str) -> Path:
    """The folder of a source (see the module), downloaded if it is not on this machine.

    `accepted`: what the folder should contain, for the error message.

    Raises:
        CheckpointError: no such built-in model, folder or repository.
    """
    if str(source).startswith("builtin:"):
        if str(source) != BUILTIN_STILL_LIFE:
            raise CheckpointError(
                f"no built-in scorer {str(source)!r}; there is {BUILTIN_STILL_LIFE}"
            )
        return SCORER_DIR
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if HUB_ID.fullmatch(str(source)):
        return download(str(source), revision, _HUB_FILES)
    raise CheckpointError(
        f"no scorer at {source!s}. Accepted: a folder with {accepted}, a hub id (owner/name), "
        f"{BUILTIN_STILL_LIFE}"
    )


def locate_lpips(weights: str | Path, revision: str | None) -> Path:
    """The file of a classifier's weights, downloaded if it is not on this machine.

    Raises:
        CheckpointError: no such file or repository, or not a .safetensors file.
    """
    path = Path(weights).expanduser()
    if not path.is_file() and HUB_ID.fullmatch(str(weights)):
        path = download(str(weights), revision, [_LPIPS_WEIGHTS]) / _LPIPS_WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"no weights for LPIPS at {weights!s}. Accepted: a .safetensors file, a hub id "
            "(owner/name)"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickled weights (.pth) can run code and are not "
            "read"
        )
    return path


def download(hub_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """A repository's files of these names, from the local cache or the hub."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, revision=revision, allow_patterns=list(files))
    except Exception as error:  # the hub's client raises from several libraries
        raise CheckpointError(
            f"scorer {hub_id!r} is not a local folder, and could not be downloaded from the "
            f"Hugging Face hub: {type(error).__name__}: {error}"
        ) from error
    return Path(folder)


def scorer_fingerprint(path: Path) -> str:
    """Hash of the files that a scorer is loaded from, 32 hex digits; equal for equal files on every
    machine. `path`: a folder, or a file of weights."""
    digest = hashlib.blake2b(digest_size=16)
    for file in _files_of(path):
        hash_file(digest, "weights" if file == path else file.name, file)
    return digest.hexdigest()


def scorer_bytes(path: Path) -> int:
    """How many bytes the weights at `path`, a folder or a file, take in memory as float32."""
    weights = [file for file in _files_of(path) if file.suffix == ".safetensors"]
    return sum(4 * _values_in(file) for file in weights)


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(f for f in path.iterdir() if any(fnmatch.fnmatch(f.name, n) for n in _HUB_FILES))


def _values_in(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except Exception as error:  # truncated, or something else under that name
        raise CheckpointError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
