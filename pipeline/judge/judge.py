"""Between edit and write: scores every edit and accepts or rejects it by the job's rules.

Runs in the editing worker, on the device of the model or beside it (`judge.device`; `judge_models`
chooses), because source and edit are at hand there as pictures that went through no encoder.
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

if TYPE_CHECKING:
    import torch

    from fpe_core.scores.lpips import LpipsNet


@dataclass(frozen=True)
class JudgeSettings:
    """What a judge needs to know. Small and picklable. A model that is None has its scores off.

    `edit_type` is that of every edit; None: the manifest's column. `scores` None: all there are.
    `ladder`: how rejected edits are attempted again; None: they are not. `fingerprints`: of the
    models' files where the job was planned (`models.fingerprints`); empty: not compared.
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


@dataclass(frozen=True)
class Candidate:
    """An edit to be judged; an empty source prompt is none."""

    key: EditKey
    source_prompt: str
    source: Image.Image
    edit: Image.Image


@dataclass(frozen=True)
class Judged:
    """What the judge says of one edit."""

    scores: EditScores
    verdict: Verdict


class Judge:
    """Loads the models once and judges call after call."""

    def __init__(
        self, settings: JudgeSettings, model_device: torch.device, memory_share: float = 1.0
    ) -> None:
        """Raises CheckpointError. `model_device`: where the checkpoint is; `memory_share`: the part
        of it that is this process's."""
        self.settings = settings
        self.models = load_models(
            settings,
            settings.fingerprints,
            device=settings.device,
            model_device=model_device,
            memory_share=memory_share,
        )
        self._which = None if settings.scores is None else frozenset(settings.scores)
        self._edits = 0
        self._seconds = 0.0

    def take_figures(self) -> dict[str, float]:
        """Edits judged and seconds taken since this was last asked."""
        figures = {"rows": self._edits, "seconds": self._seconds}
        self._edits, self._seconds = 0, 0.0
        return figures

    def judge(self, candidates: Sequence[Candidate]) -> list[Judged | Exception]:
        """One answer for each, in order; whatever one of them raises is its own answer.

        Raises what a device raises that is gone for good.
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
        except Exception as error:  # noqa: BLE001 - only the guilty edit fails
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
    """Groups whose edits know their type: that of all, else that of their row or their own."""
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
