"""The retry ladder: the parameters of the next attempt at a rejected edit, by the reason.

    RetryLadder(most=2).next_parameters(parameters, [(parameters, RejectReason.NO_CHANGE)])

More of the source's attention maps keep more of its structure and allow less change (FPE, arXiv
2403.03431, sec. 4), so an edit that changed nothing is tried again with fewer of them, one that
lost the structure with more, and one that shows something else with more guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fpe_core.errors import ParameterError
from fpe_core.judging.rules import RejectReason
from fpe_core.layer_rules import LayerRule, LayersByTokens
from fpe_core.parameters import EditParameters

MOST_RETRIES = 10
_EVERY_LAYER = LayersByTokens(2**31)


@dataclass(frozen=True)
class Change:
    """What one step of the ladder sets; None keeps the value of attempt 1.

    Raises ParameterError if everything is None.
    """

    replaced_fraction: float | None = None
    layers: LayerRule | None = None
    guidance_scale: float | None = None
    source_kept: float | None = None
    """Of another method than Free-Prompt-Editing: how much more of the source it keeps, -1..1
    (`EditMethod.keeping`)."""

    def __post_init__(self) -> None:
        if all(value is None for value in vars(self).values()):
            raise ParameterError(
                "a retry changes at least one of replaced_fraction, layers and guidance_scale"
            )

    def applied_to(self, first: EditParameters, *, keeps_guidance: bool = False) -> EditParameters:
        """The parameters of the attempt. `first`: those of attempt 1.

        `keeps_guidance`: for synthetic sources, which are sampled with the guidance of their edits,
        so that another guidance would give another source.
        """
        changed = first
        if self.replaced_fraction is not None:
            changed = replace(changed, replaced_fraction=self.replaced_fraction)
        if self.layers is not None:
            changed = replace(changed, layers=self.layers)
        if self.source_kept is not None:
            changed = changed.keeping(self.source_kept)
        if self.guidance_scale is not None and not keeps_guidance:
            changed = replace(changed, guidance_scale=self.guidance_scale)
        return changed


@dataclass(frozen=True)
class RetryLadder:
    """Changes by reason of rejection, in the order in which they are tried.

    Attributes:
        by_reason: the changes; None: `default_changes` for the parameters of attempt 1.
        most: attempts of an edit after the first, 1..MOST_RETRIES; others raise ParameterError.
    """

    by_reason: Mapping[RejectReason, tuple[Change, ...]] | None = None
    most: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST_RETRIES:
            raise ParameterError(f"retries must be 1 to {MOST_RETRIES}, got {self.most}")

    def next_parameters(
        self,
        first: EditParameters,
        tried: Sequence[tuple[EditParameters, RejectReason]],
        *,
        keeps_guidance: bool = False,
    ) -> EditParameters | None:
        """The first change for the latest reason that was not tried yet; None if there is none.

        `tried`: parameters and reason of every attempt so far, the first included.
        """
        if len(tried) > self.most:
            return None
        _, reason = tried[-1]
        before = [parameters for parameters, _ in tried]
        changes = default_changes(first) if self.by_reason is None else self.by_reason
        for change in changes.get(reason, ()):
            parameters = change.applied_to(first, keeps_guidance=keeps_guidance)
            if parameters not in before:
                return parameters
        return None


def default_changes(first: EditParameters) -> dict[RejectReason, tuple[Change, ...]]:
    """The ladder of a job that does not define one. `first`: the parameters of attempt 1.

    More replacement alone also keeps the structure of what should change; more guidance counteracts
    that (`fpe bench retries`).
    """
    fraction, louder = first.replaced_fraction, 1.5 * first.guidance_scale
    if first.editor is not None:
        freer = Change(source_kept=-0.2, guidance_scale=louder)
        return {
            RejectReason.NO_CHANGE: (Change(source_kept=-0.2), Change(source_kept=-0.4)),
            RejectReason.STRUCTURE_LOST: (
                Change(source_kept=0.2, guidance_scale=louder),
                Change(source_kept=0.2),
            ),
            RejectReason.WRONG_DIRECTION: (Change(guidance_scale=louder), freer),
            RejectReason.OFF_TARGET: (Change(guidance_scale=louder), freer),
        }
    less = [max(0.0, fraction - by) for by in (0.2, 0.4)]
    more = min(1.0, fraction + 0.2)
    return {
        RejectReason.NO_CHANGE: tuple(Change(replaced_fraction=share) for share in less),
        RejectReason.STRUCTURE_LOST: (
            Change(replaced_fraction=more, guidance_scale=louder),
            Change(replaced_fraction=more),
            Change(replaced_fraction=more, layers=_EVERY_LAYER),
        ),
        RejectReason.WRONG_DIRECTION: (
            Change(guidance_scale=louder),
            Change(replaced_fraction=less[0], guidance_scale=louder),
        ),
        RejectReason.OFF_TARGET: (
            Change(guidance_scale=louder),
            Change(replaced_fraction=less[0], guidance_scale=louder),
        ),
    }
