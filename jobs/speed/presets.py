"""Ready-made measurements, and what was aimed for in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from jobs.speed.rounds import Measured

OURS = ("C", "D", "E")


@dataclass(frozen=True)
class Target:
    """An aim for one model and one number of edits per source, for the fastest of our arms.

    Attributes:
        against: the arm whose speed is the unit; "" for edits per hour.
        least: how many of that unit.
    """

    model: str
    edits_per_source: int
    against: str
    least: float

    def reached(self, cell: Sequence[Measured]) -> float:
        """By the fastest of our arms among the measurements of this model and number of edits."""
        fastest = max(each.edits_per_s for each in cell if each.arm in OURS)
        if not self.against:
            return 3600 * fastest
        return fastest / max(each.edits_per_s for each in cell if each.arm == self.against)

    def __str__(self) -> str:
        unit = f"times {self.against}" if self.against else "edits per hour"
        edits = "one edit" if self.edits_per_source == 1 else f"{self.edits_per_source} edits"
        return f"{self.model}, {edits} per source: {self.least:,g} {unit}"


@dataclass(frozen=True)
class Preset:
    """What the options of `fpe bench speed` are where they are not given.

    Attributes:
        gate_size_px: where explicit maps would take an hour at the size that is timed, a smaller
            one for the gate; None: the same.
    """

    models: tuple[str, ...]
    device: str
    dtype: str
    steps: int
    sources: tuple[int, ...]
    edits: tuple[int, ...]
    rounds: int
    gate_size_px: int | None = None
    targets: tuple[Target, ...] = ()


PRESETS = MappingProxyType(
    {
        "cpu": Preset(
            models=("cpu-512",),
            device="cpu",
            dtype="float32",
            steps=10,
            sources=(1,),
            edits=(1, 4),
            rounds=3,
            gate_size_px=256,
            targets=(
                Target("cpu-512", 1, "A", 6.0),
                Target("cpu-512", 4, "A", 8.0),
                Target("cpu-512", 1, "B", 1.6),
                Target("cpu-512", 4, "B", 2.2),
            ),
        ),
        "gpu": Preset(
            models=("sd15", "sd21", "still-life"),
            device="cuda",
            dtype="bfloat16",
            steps=50,
            sources=(1, 4, 16),
            edits=(1, 4, 16),
            rounds=3,
            targets=(
                Target("sd15", 1, "", 10_000.0),
                Target("sd15", 4, "", 15_000.0),
                Target("sd15", 1, "A", 12.0),
                Target("sd15", 4, "A", 18.0),
                Target("sd15", 1, "B", 4.5),
                Target("sd15", 4, "B", 6.5),
            ),
        ),
        "micro": Preset(
            models=("micro",),
            device="cpu",
            dtype="float32",
            steps=3,
            sources=(1, 2),
            edits=(1, 2),
            rounds=2,
        ),
    }
)
