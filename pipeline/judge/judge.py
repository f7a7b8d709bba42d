"""Scores every edit, and accepts or rejects it by the job's rules, before it is written.

Runs in the editing worker, where source and edit are still unencoded images: on the GPU of the
model, or on the CPU (`judge.device`; `models` chooses).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import Image

import fpe_core
from fpe_core.judging.reconstruction import ReconstructionLimits
from fpe_core.judging.retry_ladder import RetryLadder
from fpe_core.judging.rules import Rules, Verdict
from fpe_core.scores.edit_scores import EditScores
from pipeline.judge.models import load_models
from pipeline.ledger.outcome import EditKey
from pipeline.manifest.columns import EDIT_TYPE
from pipeline.read.group import Group
from pipeline.storage.model_store import ModelStore

if TYPE_CHECKING:
    import torch

    from fpe_core.scores.lpips import LpipsNet


@dataclass(frozen=True)
class JudgeSettings:
    """The settings of a judge. Small and picklable. The scores of a model that is None are off.

    Attributes:
        fingerprints: of the models' files on the machine that planned the job
            (`models.fingerprints`); empty: they are not compared.
        scores: the scores to compute; None: all whose model is there.
        edit_type: the type of every edit; None: as the manifest's column has it.
        ladder: how rejected edits are attempted again; None: they are not.
        store: where models are found that lie in an object store.
    """

    clip: str | None = "builtin:still-life"
    clip_revision: str | None = None
    structure: str | None = "builtin:still-life"
    structure_revision: str | None = None
    lpips: str | None = None
    lpips_revision: str | None = None
    lpips_net: LpipsNet = "alex"
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[str, ...] | None = None
    device: str = "auto"
    rules: Rules = field(default_factory=Rules)
    edit_type: str | None = None
    keep_rejected: bool = True
    ladder: RetryLadder | None = None
    reconstruction: ReconstructionLimits = field(default_factory=ReconstructionLimits)
    store: ModelStore = field(default_factory=ModelStore)


@dataclass(frozen=True)
class Candidate:
    """An edit to be judged. An empty source prompt means that there is none."""

    key: EditKey
    source_prompt: str
    source: Image.Image
    edit: Image.Image


@dataclass(frozen=True)
class Judged:
    """The judge's scores and verdict for one edit."""

    scores: EditScores
    verdict: Verdict


class Judge:
    """Loads the models once and judges call after call."""

    def __init__(
        self, settings: JudgeSettings, model_device: torch.device, memory_share: float = 1.0
    ) -> None:
        """`model_device`: the device of the checkpoint. `memory_share`: this process's share of its
        memory, 0..1. Raises CheckpointError if a model cannot be loaded."""
        self.settings = settings
        self.models = load_models(
            settings,
            settings.fingerprints,
            device=settings.device,
            model_device=model_device,
            memory_share=memory_share,
            store=settings.store,
        )
        self._which = None if settings.scores is None else frozenset(settings.scores)
        self._edits = 0
        self._seconds = 0.0

    def take_figures(self) -> dict[str, float]:
        """Edits judged and seconds taken since the last call of this method."""
        figures = {"rows": self._edits, "seconds": self._seconds}
        self._edits, self._seconds = 0, 0.0
        return figures

    def judge(self, candidates: Sequence[Candidate]) -> list[Judged | Exception]:
        """One answer per candidate, in order: scores and verdict, or the error that it caused.

        Raises the errors in `fpe_core.device.DEVICE_FAILED`, after which the device is unusable.
        """
        began = time.monotonic()
        try:
            return self._judge_halves(candidates)
        finally:
            self._seconds += time.monotonic() - began

    def _judge_halves(self, candidates: Sequence[Candidate]) -> list[Judged | Exception]:
        from fpe_core.device import DEVICE_FAILED  # here, because it loads torch

        try:
            return list(self._judge_together(candidates))
        except DEVICE_FAILED:
            raise
        except Exception as error:  # noqa: BLE001 - only the edit that caused it fails
            if len(candidates) == 1:
                return [error]
            middle = len(candidates) // 2
            halves = (candidates[:middle], candidates[middle:])
            return [answer for half in halves for answer in self._judge_halves(half)]

    def _judge_together(self, candidates: Sequence[Candidate]) -> list[Judged]:
        scores = fpe_core.score_edits(
            [each.source for each in candidates],
            [each.edit for each in candidates],
            [each.source_prompt or None for each in candidates],
            [each.key.target_prompt for each in candidates],
            clip=self.models.clip,
            structure=self.models.structure,
            lpips_model=self.models.lpips,
            which=self._which,
        )
        self._edits += len(candidates)
        rules = self.settings.rules
        return [
            Judged(score, rules.verdict(each.key.edit_type, score))
            for each, score in zip(candidates, scores, strict=True)
        ]


def with_edit_types(
    groups: Sequence[Group], of_all: str | None, carried: pa.Table | None
) -> list[Group]:
    """Sets the type of each edit: `of_all` if given, else that of its row, else its own."""
    types = [of_all or ""] * len(groups)
    if of_all is None and carried is not None and EDIT_TYPE in carried.column_names:
        types = [str(each or "") for each in carried[EDIT_TYPE].to_pylist()]
    return [
        replace(
            group,
            edits=tuple(
                replace(edit, key=replace(edit.key, edit_type=edit_type or edit.key.edit_type))
                for edit in group.edits
            ),
        )
        for group, edit_type in zip(groups, types, strict=True)
    ]
