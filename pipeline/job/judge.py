"""The job file's `judge`: how edits are scored, which are accepted, and how rejected edits are
attempted again (`judge.retries`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fpe_core import SCORES, ParameterError
from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE
from fpe_core.judging.reconstruction import ReconstructionLimits
from fpe_core.judging.retry_ladder import MOST_RETRIES, Change, RetryLadder
from fpe_core.judging.rules import RejectReason, Rule, Rules
from fpe_core.scores.edit_scores import SCORES_OF_MODEL
from pipeline.job.credentials import checked_model
from pipeline.job.section import Layers, Section, tuple_from_list


class RuleSection(Section):
    """One condition on a score."""

    score: str = Field(description="name of a score")
    at_least: float | None = Field(default=None, description="the lowest value that is accepted")
    at_most: float | None = Field(
        default=None, description="the highest value; exactly one of the two is given"
    )
    reason: Literal["no_change", "structure_lost", "wrong_direction", "off_target"] = Field(
        description="reject reason of an edit that breaks the rule"
    )

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        try:
            self.to_rule()
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self

    def to_rule(self) -> Rule:
        return Rule(self.score, RejectReason(self.reason), self.at_least, self.at_most)


class ReconstructionSection(Section):
    """How well the model must reconstruct a source, or else its edits are not made."""

    autoencoder_psnr_db_at_least: float | None = Field(
        default=None,
        description="lowest PSNR in dB of a source after encoding and decoding, against itself; "
        "below it the edits are rejected as source_not_reconstructed before they are made; null: "
        "not measured; costs no UNet row",
    )

    def to_limits(self) -> ReconstructionLimits:
        return ReconstructionLimits(self.autoencoder_psnr_db_at_least)

    @property
    def is_on(self) -> bool:
        return self.to_limits().is_on


Reason: TypeAlias = Literal["no_change", "structure_lost", "wrong_direction", "off_target"]


class ChangeSection(Section):
    """One step of the retry ladder: values that replace the edit's own."""

    replaced_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the steps that use the source's attention maps",
    )
    layers: Layers | None = Field(
        default=None,
        description="{level: N}, {max_tokens: N}, {first: a, last: b} or {part: up, first: a}",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="scale of classifier-free guidance; not changed for edits of synthetic sources",
    )

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        try:
            self.to_change()
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self

    def to_change(self) -> Change:
        return Change(
            replaced_fraction=self.replaced_fraction,
            layers=None if self.layers is None else self.layers.to_rule(),
            guidance_scale=self.guidance_scale,
        )


class RetriesSection(Section):
    """How a rejected edit is attempted again, from the same inversion."""

    most: int = Field(
        default=2,
        ge=1,
        le=MOST_RETRIES,
        description="upper limit of retries of an edit",
    )
    ladder: dict[Reason, list[ChangeSection]] | None = Field(
        default=None,
        description="changes by the reason of the rejection, in the order in which they are "
        "tried; null: after no_change less replacement, after structure_lost more, see "
        "fpe_core/judging/retry_ladder.py",
    )

    def to_ladder(self) -> RetryLadder:
        if self.ladder is None:
            return RetryLadder(most=self.most)
        return RetryLadder(
            {
                RejectReason(reason): tuple(change.to_change() for change in changes)
                for reason, changes in self.ladder.items()
            },
            self.most,
        )


class JudgeSection(Section):
    """How edits are scored, and which are accepted."""

    clip: str | None = Field(
        default=BUILTIN_STILL_LIFE,
        description="CLIP of the text scores: builtin:still-life, a folder (a path, or a URL of an "
        "object store) or a hub id; null: off",
    )
    clip_revision: str | None = Field(
        default=None, description="branch, tag or commit of a clip on the hub"
    )
    structure: str | None = Field(
        default=BUILTIN_STILL_LIFE,
        description="ViT of the structure distance (DINO, CLIP, builtin:still-life); null: off",
    )
    structure_revision: str | None = Field(
        default=None, description="branch, tag or commit of a structure model on the hub"
    )
    lpips: str | None = Field(
        default=None,
        description="weights of LPIPS' classifier, see fpe_core/scores/lpips.py; null: off",
    )
    lpips_revision: str | None = Field(
        default=None, description="branch, tag or commit of an lpips on the hub"
    )
    lpips_net: Literal["alex", "vgg"] = Field(
        default="alex", description="the classifier that the weights belong to: AlexNet or VGG16"
    )
    scores: Annotated[tuple[str, ...], BeforeValidator(tuple_from_list)] | None = Field(
        default=None, description="scores to compute; null: all whose model is on"
    )
    device: str = Field(
        default="auto",
        min_length=1,
        description="device of these models; auto: that of the checkpoint, or the CPU if they "
        "need more than a quarter of the GPU memory that the checkpoint leaves free",
    )
    edit_type: str | None = Field(
        default=None,
        description="the kind of change that the edits ask for, such as colour; null: as in the "
        "manifest's column edit_type",
    )
    rules: dict[str, list[RuleSection]] = Field(
        default_factory=dict,
        description="rules by type of edit, checked in order; those of `other` apply to types "
        "without rules; no rules: every edit is accepted; or the name of a file from fpe calibrate",
    )
    reconstruction: ReconstructionSection = Field(
        default_factory=ReconstructionSection,
        description="how well the model must reconstruct a source; synthetic sources always pass",
    )
    rejected: Literal["keep", "drop"] = Field(
        default="keep", description="keep: rejected edits are written too, to the folder rejected/"
    )
    retries: RetriesSection | None = Field(
        default=None, description="how rejected edits are attempted again; null: they are not"
    )

    @field_validator("clip", "structure", "lpips")
    @classmethod
    def _check_source(cls, source: str | None) -> str | None:
        return None if source is None else checked_model(source)

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        off = self._scores_off()
        for name in self.scores or ():
            if name not in SCORES:
                raise ValueError(f"no score {name!r}; there are {', '.join(sorted(SCORES))}")
        for name in sorted({*(self.scores or ()), *self.to_rules().scores}):
            if name in off:
                raise ValueError(f"{name} needs a model: set {off[name]}, or leave the score out")
        if self.scores is not None:
            for name in sorted(self.to_rules().scores - set(self.scores)):
                raise ValueError(f"a rule looks at {name}, which is not among the scores")
        return self

    def _scores_off(self) -> dict[str, str]:
        """Scores whose model is off, with the model's key."""
        return {
            score: model
            for model, scores in SCORES_OF_MODEL.items()
            if getattr(self, model) is None
            for score in scores
        }

    @property
    def computed_scores(self) -> frozenset[str]:
        return frozenset(SCORES - set(self._scores_off()) if self.scores is None else self.scores)

    def to_rules(self) -> Rules:
        return Rules({name: tuple(r.to_rule() for r in of) for name, of in self.rules.items()})
