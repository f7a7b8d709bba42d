"""Nothing is timed before it is right: final latents against the authors' procedure, in float32.

Each arm's latents have to agree with A's, and each of A's deliberate mistakes has to disagree: a
gate that lets a mistake through proves nothing about the arms.

The gate compares in float32, at a size and with sources of its own. In addition, every arm's
latents from its first run in a cell are compared in the type that is timed (`agreements`): an arm
that is wrong there has no speed.
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

Guidance enlarges rounding from step to step. On a CPU the editor is 4e-4 away with random models in
ten steps and 7e-4 in fifty; the mistakes are 0.1 and more away.
"""

_OF_MODEL = {"still-life": 5e-4}
"""A trained model has smooth trajectories: in 25 steps arms are within 5e-6, and the nearest
mistake, one step off, is 8.5e-3 away."""

MARGIN = 10.0
"""A mistake has to be this many tolerances away, in its farthest edit."""

CONTROLS = ("nothing_replaced", "wrong_layers", "source_not_pinned", "one_step_off")
"""The mistakes, of `fpe_core.reference.MISTAKES`."""

_LEAST_REPLACED_STEPS = 2


def tolerance_of(model: str) -> float:
    """The gate's tolerance for a model of `jobs.bench.speed.models`, or any other checkpoint."""
    return _OF_MODEL.get(model, TOLERANCE)


@dataclass(frozen=True)
class GateComparison:
    """One arm or one mistake against A.

    Attributes:
        name, title: of the arm, or of the mistake.
        distance: of the edit that is farthest from A's, as a share of its latent's norm.
        bound: what the distance is held against.
        is_control: whether this is a mistake, which has to be beyond the bound, not within it.
    """

    name: str
    title: str
    distance: float
    bound: float
    is_control: bool

    @property
    def ok(self) -> bool:
        """A distance that is no number is neither within nor beyond."""
        return self.distance >= self.bound if self.is_control else self.distance <= self.bound


def pass_gate(
    arms: Sequence[Arm], workload: BenchWorkload, tolerance: float = TOLERANCE
) -> list[GateComparison]:
    """Compares every arm, and every mistake, with A, the first of the arms. All in float32.

    Raises:
        ParameterError: fewer than two steps replace maps; an unpinned source shows from the second.
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
    """The largest `latent_distance` of any edit; of (edits, C, h, w) each. NaN if any is."""
    distances = [
        latent_distance(latent.double(), reference.double())
        for latent, reference in zip(latents, expected, strict=True)
    ]
    return float(torch.tensor(distances, dtype=torch.float64).max())


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 is float32 inside: by default cuDNN's convolutions round it to TF32."""
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
"""In half precision an arm may be this many times as far away as D, and D as B, from A.

Rounding alone decides how far that is: guidance enlarges it from step to step, and random weights
more than trained ones.
"""


@dataclass(frozen=True)
class Agreement:
    """One arm's latents.

    Attributes:
        from_authors, from_ours: see `Measured`.
        wrong: what is wrong with them, in a line; "" for nothing.
    """

    from_authors: float | None
    from_ours: float | None
    wrong: str


def agreements(
    latents: Mapping[str, Tensor], *, is_exact: bool, tolerance: float
) -> dict[str, Agreement]:
    """Judges the arms of a cell.

    Args:
        latents: (edits, C, h, w) by arm, source by source; an arm may have made fewer edits, the
            first of each of the first sources. An arm that failed is not there.
        is_exact: whether they were made in float32, so that the gate's tolerance holds.
        tolerance: of the gate.
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
    """Infinite where what it is measured by failed."""
    unit = from_authors.get("B" if name == "D" else "D")
    return float("inf") if unit is None else HALF_MARGIN * unit


def _distance(latents: Tensor, expected: Tensor | None) -> float | None:
    """Of the edits that both made."""
    if expected is None:
        return None
    both = min(len(latents), len(expected))
    return farthest(latents[:both], expected[:both])
