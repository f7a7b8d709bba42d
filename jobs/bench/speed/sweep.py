"""One model: its arms, the gate, and then cell by cell all numbers of sources and edits."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fpe_core import Checkpoint, EditParameters
from fpe_core.device import choose_dtype
from jobs.bench.speed.arms import Arm, exact_arms
from jobs.bench.speed.authors_checkout import LAYERS as AUTHORS_LAYERS
from jobs.bench.speed.authors_checkout import load_code
from jobs.bench.speed.flops import count_row, minimal_flops, product_flops_per_s
from jobs.bench.speed.gate import GateComparison, pass_gate, tolerance_of
from jobs.bench.speed.models import LAYERS, cast, load_model
from jobs.bench.speed.results import Sweep
from jobs.bench.speed.rounds import CellTimer
from jobs.bench.speed.workload import BenchWorkload, make_workload

GATE_SOURCES, GATE_EDITS = 2, 2
"""What the gate edits: the fewest that are batched both ways."""

GATE_STEPS = 10
"""Most steps in the gate. With more of them the trajectory one step off is nearer to the right one:
fifty of Stable Diffusion 1.5's shapes are 4.9e-3 away, where no arm is more than 1.2e-5 away.
"""

_MAY_DIFFER = {"cells", "profiles"}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device, dtype: as `load_checkpoint` takes them; A runs in float32 always.
        steps: of the inversion and of every edit.
        size_px: edge of the pictures; None for the model's own.
        gate_size_px: the same in the gate, at most `size_px`; None for the same.
        cells: the sweep: (sources, edits of each).
        rounds: how many times each arm is timed in each cell.
        baseline_edits: most edits of an arm that shares nothing.
        arms: names of those that are measured, A among them, with commas between them.
        tolerance: of the gate, and of float32 latents in every cell; None: the model's own.
        authors: folder of the authors' checkout, whose code is A; "" for `fpe_core.reference`. With
            it sources have no prompts, and layers are the authors' rule.
        profiles: whether our fastest arm of each cell is profiled.
    """

    device: str
    dtype: str
    steps: int
    size_px: int | None
    gate_size_px: int | None
    cells: tuple[tuple[int, int], ...]
    rounds: int
    baseline_edits: int
    arms: str
    tolerance: float | None
    authors: str
    profiles: bool

    def comparable(self) -> dict[str, Any]:
        """What has to be the same for cells of two runs to stand in one report."""
        return {name: own for name, own in asdict(self).items() if name not in _MAY_DIFFER}

    def tolerance_for(self, model: str) -> float:
        """The gate's for a model."""
        return tolerance_of(model) if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Checked:
    """A model whose arms went through the gate, well or not.

    Attributes:
        name: the model's, as it was asked for.
        parameters: of all edits.
        reference, checkpoint: in float32, and in the type that is timed; often one and the same.
        arms: what is to be timed.
        gate: what came out; see `ok`.
    """

    name: str
    parameters: EditParameters
    reference: Checkpoint
    checkpoint: Checkpoint
    arms: tuple[Arm, ...]
    gate: tuple[GateComparison, ...]

    @property
    def ok(self) -> bool:
        return all(each.ok for each in self.gate)


def check(name: str, settings: Settings) -> Checked:
    """Loads a model and holds its arms against the authors' procedure. Times nothing.

    Raises:
        CheckpointError, ParameterError: the model or the settings cannot be used.
    """
    reference = load_model(name, settings.device)
    parameters = _parameters(reference, settings)
    workload = _workload(
        GATE_SOURCES, GATE_EDITS, parameters_in_the_gate(parameters, settings), settings
    )
    code = load_code(pathlib.Path(settings.authors)) if settings.authors else None
    checkpoint = cast(reference, choose_dtype(settings.dtype, reference.device))
    arms = _chosen(exact_arms(reference, reference, code), settings)
    gate = pass_gate(arms, workload, settings.tolerance_for(name))
    timed = arms
    if checkpoint is not reference:
        timed = _chosen(exact_arms(checkpoint, reference, code), settings)
    return Checked(name, parameters, reference, checkpoint, tuple(timed), tuple(gate))


def measure(checked: Checked, settings: Settings, earlier: Sweep | None = None) -> Iterator[Sweep]:
    """Times every arm of a model that passed the gate; yields what there is after each cell.

    Args:
        checked: the model.
        settings: what to measure.
        earlier: of this model, by the same settings; its cells are kept and not measured again.

    Raises:
        ValueError: it did not pass: a wrong arm has no speed.
    """
    if not checked.ok:
        raise ValueError(f"{checked.name} did not pass the gate; its arms cannot be timed")
    sweep = earlier or _empty_sweep(checked)
    parameters = checked.parameters
    row = count_row(checked.reference, make_workload(1, 1, parameters))
    timer = CellTimer(
        checked.arms,
        rounds=settings.rounds,
        baseline_edits=settings.baseline_edits,
        tolerance=settings.tolerance_for(checked.name),
        profiles=settings.profiles,
    )
    for sources, edits in missing_cells(settings, earlier):
        times = timer.time_cell(_workload(sources, edits, parameters, settings))
        needed = minimal_flops(row, parameters.steps, parameters.replaced_steps, edits) / edits
        sweep = replace(
            sweep,
            cells=(*sweep.cells, (sources, edits)),
            measured=(*sweep.measured, *times.measured),
            failed=(*sweep.failed, *times.failed),
            profiles=(*sweep.profiles, *([times.profile] if times.profile else [])),
            minimal_flops={**sweep.minimal_flops, edits: needed},
        )
        yield sweep


def missing_cells(settings: Settings, earlier: Sweep | None) -> list[tuple[int, int]]:
    """What is still to be measured of a model."""
    return [cell for cell in settings.cells if earlier is None or cell not in earlier.cells]


def _empty_sweep(checked: Checked) -> Sweep:
    return Sweep(
        model=checked.name,
        parameters=checked.parameters.to_dict(),
        gate=checked.gate,
        cells=(),
        measured=(),
        failed=(),
        profiles=(),
        minimal_flops={},
        product_flops_per_s={
            str(dtype).removeprefix("torch."): product_flops_per_s(checked.reference.device, dtype)
            for dtype in {torch.float32, checked.checkpoint.dtype}
        },
    )


def _chosen(arms: list[Arm], settings: Settings) -> list[Arm]:
    return [arm for arm in arms if arm.name in settings.arms.split(",")]


def _workload(
    sources: int, edits: int, parameters: EditParameters, settings: Settings
) -> BenchWorkload:
    workload = make_workload(sources, edits, parameters)
    return workload.without_source_prompts() if settings.authors else workload


def _parameters(checkpoint: Checkpoint, settings: Settings) -> EditParameters:
    own = checkpoint.default_parameters
    return EditParameters(
        steps=settings.steps,
        layers=AUTHORS_LAYERS if settings.authors else LAYERS,
        width_px=settings.size_px or own.width_px,
        height_px=settings.size_px or own.height_px,
    )


def parameters_in_the_gate(parameters: EditParameters, settings: Settings) -> EditParameters:
    """What the gate edits with, of what is timed."""
    size_px = min(settings.gate_size_px or parameters.width_px, parameters.width_px)
    steps = min(GATE_STEPS, parameters.steps)
    return replace(parameters, steps=steps, width_px=size_px, height_px=size_px)
