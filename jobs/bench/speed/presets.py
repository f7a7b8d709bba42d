"""Ready-made measurements, and the aims for each."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from jobs.bench.speed.arms import OURS
from jobs.bench.speed.results import Measured, Sweep

PER_HOUR, UTILISATION = "edits per hour", "utilisation"
ROWS_PER_S = "UNet rows per second"


@dataclass(frozen=True)
class Target:
    """An aim for one model and one number of edits per source, for the fastest of our arms.

    Attributes:
        unit: `PER_HOUR`, `ROWS_PER_S`, `UTILISATION` (the algorithmic one), or an arm whose speed
            is 1.
        least: the smallest value, in that unit, that reaches the aim.
    """

    model: str
    edits_per_source: int
    unit: str
    least: float

    def reached(self, sweep: Sweep) -> float | None:
        """The value of the fastest of our arms over all numbers of sources; None if not
        measured."""
        fastest: dict[str, Measured] = {}
        for each in sweep.measured:
            known = fastest.get(each.arm, each)
            if each.edits_per_source == self.edits_per_source:
                fastest[each.arm] = max(known, each, key=lambda one: one.edits_per_s)
        ours = [fastest[arm] for arm in OURS if arm in fastest]
        if sweep.model != self.model or not ours:
            return None
        best = max(ours, key=lambda one: one.edits_per_s)
        if self.unit == PER_HOUR:
            return 3600 * best.edits_per_s
        if self.unit == ROWS_PER_S:
            return best.rows_per_s
        if self.unit == UTILISATION:
            return sweep.utilisation(best)[0]
        return best.edits_per_s / fastest[self.unit].edits_per_s if self.unit in fastest else None

    def in_words(self, figure: float) -> str:
        """A value with the unit of this aim."""
        if self.unit == PER_HOUR:
            return f"{figure:,.0f} edits per hour"
        if self.unit == ROWS_PER_S:
            return f"{figure:,.3g} UNet rows per second"
        if self.unit == UTILISATION:
            return f"algorithmic utilisation {figure:.0%}"
        return f"{figure:,.3g} times {self.unit}"

    def __str__(self) -> str:
        edits = "one edit" if self.edits_per_source == 1 else f"{self.edits_per_source} edits"
        return f"{self.model}, {edits} per source: {self.in_words(self.least)}"


@dataclass(frozen=True)
class BenchPreset:
    """Values for the options of `fpe bench speed` that are not given.

    Attributes:
        cells: (sources, edits per source).
        gate_size_px: a smaller size for the gate, if explicit maps would take an hour at the size
            that is timed; None for the same size.
    """

    models: tuple[str, ...]
    device: str
    dtype: str
    steps: int
    cells: tuple[tuple[int, int], ...]
    rounds: int
    gate_size_px: int | None = None
    targets: tuple[Target, ...] = ()


PRESETS = MappingProxyType(
    {
        "cpu": BenchPreset(
            models=("cpu-512",),
            device="cpu",
            dtype="float32",
            steps=10,
            cells=((1, 1), (1, 4)),
            rounds=3,
            gate_size_px=256,
            targets=(
                Target("cpu-512", 1, "A", 6.0),
                Target("cpu-512", 4, "A", 8.0),
                Target("cpu-512", 1, "B", 1.6),
                Target("cpu-512", 4, "B", 2.2),
            ),
        ),
        "gpu": BenchPreset(
            models=("sd15", "sd21", "still-life"),
            device="cuda",
            dtype="bfloat16",
            steps=50,
            cells=((1, 1), (4, 1), (1, 4), (4, 4), (1, 16)),
            rounds=3,
            targets=(
                Target("sd15", 1, PER_HOUR, 10_000.0),
                Target("sd15", 4, PER_HOUR, 15_000.0),
                Target("sd15", 1, UTILISATION, 0.5),
                Target("sd15", 4, UTILISATION, 0.5),
                Target("sd15", 1, "A", 12.0),
                Target("sd15", 4, "A", 18.0),
                Target("sd15", 1, "B", 4.5),
                Target("sd15", 4, "B", 6.5),
            ),
        ),
        "gpu-xl": BenchPreset(
            models=("sdxl",),
            device="cuda",
            dtype="bfloat16",
            steps=20,
            cells=((1, 4), (8, 1)),
            rounds=3,
            gate_size_px=256,
            targets=(Target("sdxl", 4, ROWS_PER_S, 60.0), Target("sdxl", 1, ROWS_PER_S, 60.0)),
        ),
        "micro": BenchPreset(
            models=("micro",),
            device="cpu",
            dtype="float32",
            steps=3,
            cells=((1, 1), (2, 1), (1, 2), (2, 2)),
            rounds=2,
        ),
    }
)
