"""Checkpoints and scoring models that lie in an object store: every node fetches a copy, once.

    <cache>/<name>-<key>/files/...       the copy; the models' code sees only this folder, or file
                         fetched.json    size and hash of each file

The key is a hash of the URL and of the sizes and versions (ETags) of the objects, so a model that
is written again is another copy. A copy is made under a lock and appears as a whole, so processes
of a node share one download. Each process checks its hashes before it uses it; a copy that is
damaged or incomplete is fetched again. The run compares the content with what was planned anyway:
its fingerprint is that of the same files on a disk.

Only what is loaded is fetched: configs, tokenizer, and one set of weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fpe_core import CheckpointError
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.checkpoint.files import weights_files
from pipeline.errors import StorageError
from pipeline.storage.folder import Folder, absolute_url, is_local_path

_CONFIGS = (".json", ".txt", ".model")
_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_OF_VAE = r"config\.json|diffusion_pytorch_model(\.fp16)?\.safetensors"
_OF_VAE_OR_PICKLE = rf"{_OF_VAE}|diffusion_pytorch_model\.bin"
_PIECE_BYTES = 1 << 24
_RECORD = "fetched.json"
_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """The default folder of copies (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if Path(cache).is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111  # never raises
    return base / "fpe" / "models"


@dataclass(frozen=True)
class ModelStore:
    """Finds models for code that knows local files only. Small and picklable.

    A built-in name, a hub id, a local path and None are returned as they are, except that a `file:`
    URI becomes a path. For any other URL the copy's path is returned, fetched if it is not there.

    Attributes:
        options: fsspec options of the stores.
        cache: the folder of copies on every node; None: `default_cache`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    cache: str | None = None

    def checkpoint(self, source: str, *, allow_pickle: bool = False) -> str:
        """A diffusers folder, or a single file.

        Raises CheckpointError if there is nothing at the URL, StorageError if the store or the disk
        fails.
        """

        def wanted(names: list[str]) -> list[str]:
            return [*_configs(names), *_weights(names, allow_pickle)]

        return self._local(source, wanted)

    def config(self, source: str | None) -> str | None:
        """A diffusers folder of which only configs and tokenizer are needed. Raises as above."""
        return None if source is None else self._local(source, _configs)

    def add_ons(self, add_ons: AddOns, *, allow_pickle: bool = False) -> AddOns:
        """A checkpoint's LoRAs, embeddings and autoencoder. Raises as above."""

        def of_vae(names: list[str]) -> list[str]:
            kept = _OF_VAE_OR_PICKLE if allow_pickle else _OF_VAE
            return [name for name in names if re.fullmatch(kept, name)]

        def file(source: str | Path) -> str:
            return self._local(str(source), lambda _: [])

        return AddOns(
            tuple(replace(each, file=file(each.file)) for each in add_ons.loras),
            tuple(replace(each, file=file(each.file)) for each in add_ons.embeddings),
            None if add_ons.vae is None else self._local(str(add_ons.vae), of_vae),
        )

    def scorer(self, source: str | None) -> str | None:
        """A folder of a judge's model, or its file of weights. Raises as above."""

        def wanted(names: list[str]) -> list[str]:
            weights = r"model(-\d+-of-\d+)?\.safetensors"
            here = [name for name in names if "/" not in name]
            return [*_configs(here), *(name for name in here if re.fullmatch(weights, name))]

        return None if source is None else self._local(source, wanted)

    def _local(self, source: str, wanted: Callable[[list[str]], list[str]]) -> str:
        url = absolute_url(source) if "://" in source or source.lower().startswith("file:") else ""
        if not url or is_local_path(url):
            return url or source
        url = url.rstrip("/")
        folder, only = _place(url, self.options)
        found = folder.versions(only)
        if not found:
            raise CheckpointError(
                f"nothing at {url}: check the path, and whether these credentials may list it"
            )
        names = [only] if only in found else wanted([name for name in found if _is_plain(name)])
        if not names:
            raise CheckpointError(f"{url} holds no file of a model")
        chosen = {name: found[name] for name in names}
        digest = hashlib.blake2b(json.dumps([url, chosen]).encode(), digest_size=8).hexdigest()
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", posixpath.basename(url))[:60]
        cache = Path(self.cache) if self.cache else default_cache()
        try:
            files = _Copy(cache / f"{stem}-{digest}", url).made(folder, chosen)
        except OSError as error:
            raise StorageError(
                f"{url} cannot be copied to {cache}: {error.strerror or error}. Name another "
                "folder with model.cache"
            ) from error
        return str(files / only if only in found else files)


@dataclass(frozen=True)
class _Copy:
    """The copy of one model on this node."""

    home: Path
    url: str

    def made(self, folder: Folder, chosen: Mapping[str, tuple[int, str]]) -> Path:
        """The folder with the files, after making sure that they are there and sound.

        Raises StorageError and OSError.
        """
        if not self._is_sound():
            self.home.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.home}.lock"):
                if not self._is_sound():  # another process may have fetched it meanwhile
                    self._fetch(folder, chosen)
        return self.home / "files"

    def _is_sound(self) -> bool:
        try:
            record = json.loads((self.home / _RECORD).read_text(encoding="utf-8"))
            return all(
                _hash_of(self.home / "files" / name) == digest for name, digest in record.items()
            )
        except (OSError, ValueError, AttributeError):
            return False

    def _fetch(self, folder: Folder, chosen: Mapping[str, tuple[int, str]]) -> None:
        if self.home.exists():
            _log.warning(
                "the copy of %s in %s is damaged, and is fetched again", self.url, self.home
            )
            shutil.rmtree(self.home)
        partial = self.home.with_name(f"{self.home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        needed = sum(size for size, _ in chosen.values())
        free = shutil.disk_usage(self.home.parent).free
        if needed > free:
            message = f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there"
            raise OSError(errno.ENOSPC, message)
        _log.info("fetching %s (%.2f GB) to %s", self.url, needed / 1e9, self.home)
        try:
            record = {
                name: _download(folder, name, size, partial / "files" / name)
                for name, (size, _) in chosen.items()
            }
            (partial / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            partial.rename(self.home)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _place(url: str, options: Mapping[str, Any]) -> tuple[Folder, str]:
    """The folder at a URL and "", or the folder of the file at the URL and its name."""
    parent, _, name = url.rpartition("/")
    if not parent.endswith(("/", ":")):
        folder = Folder.open(parent, options)
        if folder.is_file(name):
            return folder, name
    return Folder.open(url, options), ""


def _is_plain(name: str) -> bool:
    """Whether an object's name can be that of a file in a folder."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def _configs(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(_CONFIGS) and name.count("/") < 2]


def _weights(names: list[str], allow_pickle: bool) -> list[str]:
    """The weights that a diffusers folder with these files is loaded from."""
    chosen: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder in _WITH_WEIGHTS:
                (root / folder).mkdir(exist_ok=True)
                (root / folder / file).touch()
        for component in _WITH_WEIGHTS:
            try:
                found = weights_files(root, component, allow_pickle)
            except CheckpointError:
                continue  # it is reported, with what is missing, by who looks at the copy
            chosen.extend(f"{component}/{path.name}" for path in found)
    return chosen


def _download(folder: Folder, name: str, size: int, target: Path) -> str:
    """Copies one file, and returns its hash. Raises StorageError and OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(digest_size=16)
    written = 0
    with folder.open_read(name) as source, target.open("wb") as file:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            written += file.write(piece)
    if size and written != size:  # web servers may not state it
        raise StorageError(
            f"{folder.url_of(name)} had {size} bytes when it was listed, and {written} when it was "
            "read: it is being written; start again when that is over"
        )
    return digest.hexdigest()


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
