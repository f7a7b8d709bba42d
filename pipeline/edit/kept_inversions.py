"""Inversions that are kept in a folder, for other jobs on the same sources.

What a trajectory depends on is in the name of its file: the pixels and the prompt of the source,
the checkpoint, the steps, the data type and the kind of device, and whether it is regularised, as
pix2pix_zero's is. So jobs with different editors, guidance, target prompts and masks share it, and
a source that changed gets another one. A file has
z_0 .. z_K as safetensors, as exact as they were: 3.3 MB at 512 px and 50 steps. An editor that
needs fewer levels also takes a file that has all of them. Null-text and edit-friendly inversions
are not kept.

The folder only saves time: what cannot be read is inverted, and what cannot be written is not kept.
Nothing in it is ever removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from fpe_core import ALGORITHM_VERSION, EditParameters, Fit, Inversion
from fpe_core.size_ids import size_ids_of
from pipeline.edit.phase_clock import ClockedEditor
from pipeline.errors import StorageError
from pipeline.storage.folder import Folder

_THREADS = 8
_NAME = "trajectory"
_log = logging.getLogger(__name__)


class KeptInversions:
    """An `ImageEditor` that looks for inversions in a folder, and keeps there what it inverts."""

    def __init__(self, editor: ClockedEditor, folder: Folder) -> None:
        self._editor = editor
        self._folder = folder
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="inversions")
        self._warned: set[str] = set()
        self._damaged: set[str] = set()
        checkpoint = editor.checkpoint
        self._identity = [ALGORITHM_VERSION, checkpoint.fingerprint, str(checkpoint.dtype)]
        self._identity.append(checkpoint.device.type)
        self.synthesise = editor.synthesise
        self.edit = editor.edit
        self.through_autoencoder = editor.through_autoencoder

    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
        *,
        fits: Sequence[Fit] | None = None,
    ) -> Inversion:
        """As `fpe_core.Editor.invert`; `unet_rows` are those of what was not in the folder."""
        parameters = parameters or self._editor.checkpoint.default_parameters
        levels = parameters.inverted_steps
        prompts = list(source_prompts or [""] * len(images))
        if not levels or parameters.inversion not in ("direct", "negative_prompt"):
            return self._editor.invert(images, prompts, parameters, fits=fits)
        kind = [] if parameters.rule.cross_guidance is None else ["regularised"]
        whole = [Fit("crop", *image.size, 1.0, 1.0, 0.0, 0.0) for image in images]
        sizes: list[tuple[int, ...]] = [()] * len(images)
        if self._editor.checkpoint.is_told_sizes:
            edges = parameters.width_px, parameters.height_px
            sizes = [size_ids_of(fit, *edges) for fit in fits or whole]
        names = [
            self._name_of(image, prompt, parameters.steps, *kind, *size)
            for image, prompt, size in zip(images, prompts, sizes, strict=True)
        ]
        kept = list(self._pool.map(lambda name: self._read(name, levels, parameters.steps), names))
        missing = [place for place, each in enumerate(kept) if each is None]
        made = self._editor.invert(
            [images[place] for place in missing],
            [prompts[place] for place in missing],
            parameters,
            fits=None if fits is None else [fits[place] for place in missing],
        )
        if len(missing) == len(images):
            self._keep(made, names, levels)
            return made
        self._keep(made, [names[place] for place in missing], levels)
        return self._together(made, kept, images, prompts, fits or whole)

    def _together(
        self,
        made: Inversion,
        kept: Sequence[tuple[Tensor, str] | None],
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        fits: Sequence[Fit],
    ) -> Inversion:
        """One inversion of what was made and what was kept, in the order of the images."""
        own = iter(zip(made.trajectory, made.diverged, made.truncated_prompts, strict=True))
        device = self._editor.device
        each = [
            next(own) if of_file is None else (of_file[0].to(device), False, of_file[1])
            for of_file in kept
        ]
        trajectories, diverged, truncated = zip(*each, strict=True)
        return replace(
            made,
            trajectory=torch.stack(trajectories),
            images=tuple(images),
            fits=tuple(fits),
            source_prompts=tuple(prompts),
            diverged=tuple(diverged),
            truncated_prompts=tuple(truncated),
        )

    def _name_of(self, image: Image.Image, prompt: str, steps: int, *kind: object) -> str:
        """`kind`: what it is besides a plain inversion, and what the model is told of its size."""
        pixels = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        own = [steps, image.size, image.mode, pixels, prompt, *kind]
        content = json.dumps([*self._identity, *own])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _read(self, name: str, levels: int, steps: int) -> tuple[Tensor, str] | None:
        """(z_0 .. z_K, what did not fit of the prompt); None if there is no such file."""
        for there in dict.fromkeys((levels, steps)):
            path = _path(name, there)
            try:
                data = self._folder.read(path)
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    self._warn("read", error)
                continue
            if not data:  # left by a write that failed
                continue
            try:
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                trajectory = load(data)[_NAME]
                if len(trajectory) != there + 1:
                    raise ValueError(f"{len(trajectory)} levels instead of {there + 1}")
                return trajectory[: levels + 1], header["__metadata__"]["truncated_prompt"]
            except Exception as error:  # noqa: BLE001 - whatever the bytes are, it can be inverted
                self._warn("used", f"{self._folder.url_of(path)}: {error}")
                self._damaged.add(path)
        return None

    def _keep(self, made: Inversion, names: Sequence[str], levels: int) -> None:
        """Writes what was made, at the same time, and returns when all of it is there."""

        def write(place: int) -> None:
            if made.diverged[place]:
                return
            own = made.trajectory[place].to("cpu").contiguous()
            data = save({_NAME: own}, {"truncated_prompt": made.truncated_prompts[place]})
            path = _path(names[place], levels)
            try:
                if path in self._damaged:
                    self._folder.replace(path, data)
                else:
                    self._folder.write_if_absent(path, data, is_synced=False)
            except StorageError as error:
                self._warn("kept", error)

        for _ in self._pool.map(write, range(len(made))):
            pass

    def _warn(self, done: str, error: Any) -> None:
        """Once for each kind of trouble: it costs time, and nothing else."""
        if done not in self._warned:
            self._warned.add(done)
            _log.warning(
                "an inversion cannot be %s, and is made again where needed: %s", done, error
            )


def _path(name: str, levels: int) -> str:
    return f"{name[:2]}/{name}-{levels}.safetensors"
