"""What to try after an edit was rejected: other parameters, by the reason, from the same inversion.

    Ladder(most=2).next_parameters(parameters, [(parameters, RejectReason.NO_CHANGE)])

More of the source's attention maps keep more of its structure and allow less change (FPE, arXiv
2403.03431, sec. 4): an edit that changed nothing asks for fewer of them, one that lost the
structure for more, one that shows something else for more guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fpe_core.errors import ParameterError
from fpe_core.judging.rules import RejectReason
from fpe_core.parameters import EditParameters, LayerRule, LayersByTokens

MOST_SECOND_TRIES = 10
_EVERY_LAYER = LayersByTokens(2**31)


@dataclass(frozen=True)
class Change:
    """What a rung of the ladder sets; None leaves it as it was at first.

    Raises ParameterError for a change of nothing.
    """

    replaced_fraction: float | None = None
    layers: LayerRule | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if self.replaced_fraction is None and self.layers is None and self.guidance_scale is None:
            raise ParameterError(
                "a second try changes something: replaced_fraction, layers or guidance_scale"
            )

    def applied_to(self, first: EditParameters, *, keeps_guidance: bool = False) -> EditParameters:
        """The parameters of the try. `keeps_guidance`: a synthetic source is sampled with the
        guidance of its edits, so another one would make another source."""
        changed = first
        if self.replaced_fraction is not None:
            changed = replace(changed, replaced_fraction=self.replaced_fraction)
        if self.layers is not None:
            changed = replace(changed, layers=self.layers)
        if self.guidance_scale is not None and not keeps_guidance:
            changed = replace(changed, guidance_scale=self.guidance_scale)
        return changed


@dataclass(frozen=True)
class Ladder:
    """Changes by reason of rejection, in the order in which they are tried.

    `by_reason` None: `default_rungs` of the first parameters. `most`: further tries of an edit,
    1..MOST_SECOND_TRIES; more or fewer raise ParameterError.
    """

    by_reason: Mapping[RejectReason, tuple[Change, ...]] | None = None
    most: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST_SECOND_TRIES:
            raise ParameterError(f"second tries must be 1 to {MOST_SECOND_TRIES}, got {self.most}")

    def next_parameters(
        self,
        first: EditParameters,
        tried: Sequence[tuple[EditParameters, RejectReason]],
        *,
        keeps_guidance: bool = False,
    ) -> EditParameters | None:
        """The first rung of the latest reason that was not tried yet; None where it ends.

        `tried`: parameters and reason of every try so far, the first one included.
        """
        if len(tried) > self.most:
            return None
        _, reason = tried[-1]
        before = [parameters for parameters, _ in tried]
        rungs = default_rungs(first) if self.by_reason is None else self.by_reason
        for change in rungs.get(reason, ()):
            parameters = change.applied_to(first, keeps_guidance=keeps_guidance)
            if parameters not in before:
                return parameters
        return None


def default_rungs(first: EditParameters) -> dict[RejectReason, tuple[Change, ...]]:
    """What is tried where nobody says otherwise.

    More replacement alone keeps the structure of what should have changed, too; with more guidance
    less so (`fpe bench tries`).
    """
    fraction, louder = first.replaced_fraction, 1.5 * first.guidance_scale
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
