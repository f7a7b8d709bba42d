"""Measures one model: loads its arms, passes the gate, and times them cell by cell."""

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
"""Size of the gate's workload: the smallest with several sources and several edits of each."""

GATE_STEPS = 10
"""Most steps in the gate. With more steps the mistake of a trajectory that is one step off has a
smaller distance: 4.9e-3 with 50 steps of Stable Diffusion 1.5's shapes. Arms are within 1.2e-5.
"""

_MAY_DIFFER = {"cells", "profiles"}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device, dtype: as `load_checkpoint` takes them; A always runs in float32.
        steps: DDIM steps of the inversion and of every edit.
        size_px: edge of the images; None for the model's own size.
        gate_size_px: edge of the gate's images, at most `size_px`; None for the same.
        cells: the cells to measure: (sources, edits per source).
        rounds: how many times each arm is timed in each cell.
        baseline_edits: most edits per run of an arm that shares nothing.
        arms: names of the arms to measure, A among them, separated by commas.
        tolerance: of the gate, and of float32 latents in every cell; None for the model's own.
        authors: folder of the authors' checkout, whose code is then A; "" for `fpe_core.reference`.
            With it sources have no prompts, and the authors' rule selects the layers.
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
        """The settings that must be equal for cells of two runs to be in one report."""
        return {name: own for name, own in asdict(self).items() if name not in _MAY_DIFFER}

    def tolerance_for(self, model: str) -> float:
        """The gate's tolerance for a model."""
        return tolerance_of(model) if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Checked:
    """A model whose arms were compared by the gate, whether they passed or not.

    Attributes:
        name: the model's name, as given.
        parameters: the parameters of all edits.
        reference, checkpoint: the model in float32, and in the dtype that is timed; often the same.
        arms: the arms to time.
        gate: the results of the gate; see `ok`.
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
    """Loads a model and compares its arms with the authors' procedure. Times nothing.

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
    """Times every arm of a model that passed the gate; yields all results so far after each cell.

    Args:
        checked: the model.
        settings: what to measure.
        earlier: results of this model with the same settings; its cells are not measured again.

    Raises:
        ValueError: the model did not pass the gate.
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
    """The cells that are still to be measured."""
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
    layers = own.layers if checkpoint.is_told_sizes else LAYERS
    return EditParameters(
        steps=settings.steps,
        layers=AUTHORS_LAYERS if settings.authors else layers,
        width_px=settings.size_px or own.width_px,
        height_px=settings.size_px or own.height_px,
    )


def parameters_in_the_gate(parameters: EditParameters, settings: Settings) -> EditParameters:
    """The parameters of the gate: at most `gate_size_px` and `GATE_STEPS`."""
    size_px = min(settings.gate_size_px or parameters.width_px, parameters.width_px)
    steps = min(GATE_STEPS, parameters.steps)
    return replace(parameters, steps=steps, width_px=size_px, height_px=size_px)
