"""The models of a judge: finds their files, computes fingerprints, chooses the device and loads
them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import fpe_core
from fpe_core import CheckpointError
from fpe_core.scores.check import check_clip, check_structure
from fpe_core.scores.files import locate_lpips, locate_scorer, scorer_bytes, scorer_fingerprint
from pipeline.errors import StorageError
from pipeline.storage.model_store import ModelStore

if TYPE_CHECKING:
    import torch

    from fpe_core.scores.clip import ClipScorer
    from fpe_core.scores.lpips import LpipsModel, LpipsNet
    from fpe_core.scores.structure import StructureModel

_SHARE_OF_FREE = 0.25
"""The share of the memory left free by the checkpoint that the judge's weights may take. The rest
is for the edits' UNet rows, which take at most 0.6, and for scoring itself."""

_log = logging.getLogger(__name__)


class ModelNames(Protocol):
    """Where a judge's models come from: a folder, a hub id or a built-in name; None: off."""

    @property
    def clip(self) -> str | None: ...
    @property
    def clip_revision(self) -> str | None: ...
    @property
    def structure(self) -> str | None: ...
    @property
    def structure_revision(self) -> str | None: ...
    @property
    def lpips(self) -> str | None: ...
    @property
    def lpips_revision(self) -> str | None: ...
    @property
    def lpips_net(self) -> LpipsNet: ...


@dataclass(frozen=True)
class JudgeModels:
    """The loaded models; one that is None is off."""

    clip: ClipScorer | None
    structure: StructureModel | None
    lpips: LpipsModel | None
    device: torch.device


def fingerprints(names: ModelNames, store: ModelStore | None = None) -> dict[str, str]:
    """`scorer_fingerprint` of each model that is on, by key ("clip", "structure", "lpips").

    Raises CheckpointError, with the key of the job file, if a model's files cannot be read or are
    not those of such a model, and StorageError if `store` cannot fetch them.
    """
    return {key: scorer_fingerprint(path) for key, path in _files(names, store).items()}


def load_models(
    names: ModelNames,
    planned: Mapping[str, str],
    *,
    device: str,
    model_device: torch.device,
    memory_share: float = 1.0,
    store: ModelStore | None = None,
) -> JudgeModels:
    """Loads the models that are on.

    Args:
        planned: fingerprints of the files on the planning machine, which must be the same here;
            empty: they are not compared.
        device: the job's `judge.device`; "auto": see `choose_judge_device`.
        model_device: the device of the checkpoint, which is loaded already.
        memory_share: this process's share of that device's memory, 0..1.
        store: where models are found that lie in an object store.

    Raises:
        CheckpointError: a model cannot be loaded, or differs from the one of the planning machine.
        StorageError: a model cannot be fetched.
    """
    import torch  # here, because planning needs the fingerprints only

    from fpe_core.device import free_memory_bytes

    if planned:
        _compare(names, planned, fingerprints(names, store))
    chosen = torch.device(device) if device != "auto" else model_device
    if device == "auto" and model_device.type == "cuda":
        weights = sum(scorer_bytes(path) for path in _files(names, store).values())
        chosen = choose_judge_device(
            model_device, weights, free_memory_bytes(model_device, memory_share)
        )
    store = store or ModelStore()
    clip, structure, lpips = map(store.scorer, (names.clip, names.structure, names.lpips))
    return JudgeModels(
        None
        if clip is None
        else fpe_core.load_scorer(clip, device=chosen, revision=names.clip_revision),
        None
        if structure is None
        else fpe_core.load_structure_model(
            structure, device=chosen, revision=names.structure_revision
        ),
        None
        if lpips is None
        else fpe_core.load_lpips(
            lpips, net=names.lpips_net, device=chosen, revision=names.lpips_revision
        ),
        chosen,
    )


def choose_judge_device(
    model_device: torch.device, weights_bytes: float, free_bytes: float
) -> torch.device:
    """The checkpoint's GPU if the judge's weights take at most a quarter of its free memory, else
    the CPU."""
    import torch

    if weights_bytes <= _SHARE_OF_FREE * free_bytes:
        return model_device
    _log.info(
        "the judge's models take %.1f GB, and %s has %.1f GB free: they run on the CPU",
        weights_bytes / 1e9,
        model_device,
        free_bytes / 1e9,
    )
    return torch.device("cpu")


def _files(names: ModelNames, store: ModelStore | None) -> dict[str, Path]:
    """The file of each model that is on, by key. Models on the hub or in a store are fetched."""
    found, store = {}, store or ModelStore()
    for key, source, revision in (
        ("clip", names.clip, names.clip_revision),
        ("structure", names.structure, names.structure_revision),
        ("lpips", names.lpips, names.lpips_revision),
    ):
        if source is None:
            continue
        try:
            local = store.scorer(source) or source
            if key == "lpips":
                found[key] = locate_lpips(local, revision)
            elif key == "clip":
                found[key] = locate_scorer(local, revision, "a CLIP")
                check_clip(found[key])
            else:
                found[key] = locate_scorer(local, revision, "a ViT")
                check_structure(found[key])
        except CheckpointError as error:
            raise CheckpointError(f"judge.{key}: {error}") from error
        except StorageError as error:
            raise StorageError(f"judge.{key}: {error}") from error
    return found


def _compare(names: ModelNames, planned: Mapping[str, str], found: Mapping[str, str]) -> None:
    for key, fingerprint in found.items():
        if planned.get(key) != fingerprint:
            raise CheckpointError(
                f"judge.{key}: {getattr(names, key)} is another model here ({fingerprint}) than "
                f"on the machine that planned the job ({planned.get(key)}); give all machines the "
                f"same files, or set judge.{key}_revision"
            )
