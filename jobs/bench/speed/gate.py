"""Checks that all arms make the same edits before anything is timed.

The gate compares final latents in float32, with its own size and sources. Each arm has to agree
with A, the authors' procedure. Variants of A with a deliberate mistake have to disagree, because a
gate that passes mistakes proves nothing about the arms.

In addition, `agreements` compares the latents of each arm's first run in a cell, in the dtype that
is timed. An arm that is wrong there gets no speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe_core import ParameterError
from fpe_core.agreement import latent_distance
from jobs.bench.speed.arms import Arm, AuthorsArm
from jobs.bench.speed.instruments import PhaseClock
from jobs.bench.speed.workload import BenchWorkload

TOLERANCE = 2e-3
"""Bound on `latent_distance` of every edit of an arm from A's, in float32.

Guidance enlarges rounding errors from step to step. With random weights on a CPU, the editor's
distance is 4e-4 after ten steps and 7e-4 after fifty; the mistakes have distances of 0.1 and more.
"""

_OF_MODEL = {"still-life": 5e-4}
"""Tolerance for the trained model, whose trajectories are smoother: after 25 steps arms are within
5e-6, and the nearest mistake (one step off) has a distance of 8.5e-3."""

MARGIN = 10.0
"""The farthest edit of a mistake has to have a distance of this many tolerances."""

CONTROLS = ("nothing_replaced", "wrong_layers", "source_not_pinned", "one_step_off")
"""The mistakes that are checked, of `fpe_core.reference.MISTAKES`."""

_LEAST_REPLACED_STEPS = 2


def tolerance_of(model: str) -> float:
    """The gate's tolerance for a model of `jobs.bench.speed.models` or any other checkpoint."""
    return _OF_MODEL.get(model, TOLERANCE)


@dataclass(frozen=True)
class GateComparison:
    """The distance of one arm, or one mistake, from A.

    Attributes:
        name, title: of the arm, or of the mistake.
        distance: the largest distance of an edit from A's, as a share of its latent's norm.
        bound: upper bound of the distance of an arm, lower bound of that of a mistake.
        is_control: whether this is a mistake.
    """

    name: str
    title: str
    distance: float
    bound: float
    is_control: bool

    @property
    def ok(self) -> bool:
        """Whether the distance is on the right side of the bound; never for NaN."""
        return self.distance >= self.bound if self.is_control else self.distance <= self.bound


def pass_gate(
    arms: Sequence[Arm], workload: BenchWorkload, tolerance: float = TOLERANCE
) -> list[GateComparison]:
    """Compares every arm, and every mistake, with A, the first of the arms. All in float32.

    Raises:
        ParameterError: fewer than two steps replace maps. The mistake of a source that is not
            pinned only has an effect from the second such step on.
    """
    replaced = workload.parameters.replaced_steps
    if replaced < _LEAST_REPLACED_STEPS:
        raise ParameterError(
            f"steps must be enough for {_LEAST_REPLACED_STEPS} steps that replace maps, got "
            f"{workload.parameters.steps}, of which {replaced} does: give at least 3"
        )
    authors = arms[0]
    with exact_float32():
        expected = _latents(authors, workload)
        found = [
            GateComparison(
                arm.name, arm.title, farthest(_latents(arm, workload), expected), tolerance, False
            )
            for arm in arms[1:]
        ]
        single = workload.cut(1, 1)
        for mistake in CONTROLS:
            control = AuthorsArm.of(authors.checkpoint, wrong=mistake)
            distance = farthest(_latents(control, single), expected[:1])
            title = f"mistake: {mistake.replace('_', ' ')}"
            found.append(GateComparison(mistake, title, distance, MARGIN * tolerance, True))
    return found


def farthest(latents: Tensor, expected: Tensor) -> float:
    """The largest `latent_distance` of any edit; NaN if one is NaN. Both: (edits, C, h, w)."""
    distances = [
        latent_distance(latent.double(), reference.double())
        for latent, reference in zip(latents, expected, strict=True)
    ]
    return float(torch.tensor(distances, dtype=torch.float64).max())


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside it, float32 is exact: by default cuDNN's convolutions round it to TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _latents(arm: Arm, workload: BenchWorkload) -> Tensor:
    return arm.edit(workload, PhaseClock(arm.checkpoint.device))


HALF_MARGIN = 3.0
"""In half precision an arm's distance from A may be this many times D's, and D's this many times
B's.

There is no fixed bound, because these distances come from rounding errors alone. Guidance enlarges
them from step to step, with random weights more than with trained ones.
"""


@dataclass(frozen=True)
class Agreement:
    """How far one arm's latents are from those of A and of ours.

    Attributes:
        from_authors, from_ours: see `Measured`.
        wrong: what is wrong with the latents, in one line; "" if nothing is.
    """

    from_authors: float | None
    from_ours: float | None
    wrong: str


def agreements(
    latents: Mapping[str, Tensor], *, is_exact: bool, tolerance: float
) -> dict[str, Agreement]:
    """Compares the latents of the arms of a cell.

    Args:
        latents: (edits, C, h, w) by arm, source by source. An arm may have made only the first
            edits of the first sources. Arms that failed are missing.
        is_exact: whether they were made in float32, to which the gate's tolerance applies.
        tolerance: the gate's.
    """
    ours = next((name for name in ("C", "D") if name in latents), "")
    from_authors = {name: _distance(own, latents.get("A")) for name, own in latents.items()}
    return {
        name: _agreement(
            own,
            from_authors[name],
            None if name == "A" else _distance(own, latents.get(ours)),
            tolerance if is_exact else _half_bound(name, from_authors),
            ours,
        )
        for name, own in latents.items()
    }


def _agreement(
    latents: Tensor, from_authors: float | None, from_ours: float | None, bound: float, ours: str
) -> Agreement:
    wrong = ""
    if not bool(torch.isfinite(latents).all()):
        wrong = "wrong: its latents are not all finite"
    for distance, whose in ((from_authors, "A"), (from_ours, ours)):
        if not wrong and distance is not None and not distance <= bound:
            wrong = f"wrong: an edit is {distance:.1e} from {whose}'s, more than {bound:.1e}"
    return Agreement(from_authors, from_ours, wrong)


def _half_bound(name: str, from_authors: Mapping[str, float | None]) -> float:
    """The bound in half precision; infinite if the arm that it is derived from failed."""
    unit = from_authors.get("B" if name == "D" else "D")
    return float("inf") if unit is None else HALF_MARGIN * unit


def _distance(latents: Tensor, expected: Tensor | None) -> float | None:
    """The largest distance among the edits that both arms made."""
    if expected is None:
        return None
    both = min(len(latents), len(expected))
    return farthest(latents[:both], expected[:both])
