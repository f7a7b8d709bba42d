"""One model: its arms, the gate, and then all numbers of sources and edits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch._dynamo.exc import TorchDynamoException

from fpe_core import Checkpoint, EditParameters
from fpe_core.checkpoint import choose_dtype
from jobs.speed.arms import Arm, exact_arms
from jobs.speed.clock import PhaseClock
from jobs.speed.flops import count_row, minimal_flops, product_flops_per_s
from jobs.speed.gate import Comparison, pass_gate
from jobs.speed.models import LAYERS, cast, load_model
from jobs.speed.report import Sweep
from jobs.speed.rounds import measure_cell
from jobs.speed.workload import Workload, make_workload

GATE_SOURCES, GATE_EDITS = 2, 2
"""What the gate edits: the fewest that are batched both ways."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device, dtype: as `load_checkpoint` takes them; A runs in float32 always.
        steps: of the inversion and of every edit.
        size_px: edge of the pictures; None for the model's own.
        gate_size_px: the same in the gate, at most `size_px`; None for the same.
        sources, edits: the sweep: every number of sources with every number of edits of each.
        rounds: how many times each arm is timed in each cell.
        baseline_edits: most edits of an arm that shares nothing.
        compiler: torch.compile's backend for E, or "none".
        tolerance: of the gate.
    """

    device: str
    dtype: str
    steps: int
    size_px: int | None
    gate_size_px: int | None
    sources: tuple[int, ...]
    edits: tuple[int, ...]
    rounds: int
    baseline_edits: int
    compiler: str
    tolerance: float


@dataclass(frozen=True)
class Checked:
    """A model whose arms went through the gate, well or not.

    Attributes:
        name: the model's, as it was asked for.
        parameters: of all edits.
        reference, checkpoint: in float32, and in the type that is timed; often one and the same.
        arms: what is to be timed.
        gate: what came out; see `ok`.
        compile_error: why there is no E, "" where there is one or none was asked for.
    """

    name: str
    parameters: EditParameters
    reference: Checkpoint
    checkpoint: Checkpoint
    arms: tuple[Arm, ...]
    gate: tuple[Comparison, ...]
    compile_error: str

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
    workload = make_workload(GATE_SOURCES, GATE_EDITS, _in_the_gate(parameters, settings))
    checkpoint = cast(reference, choose_dtype(settings.dtype, reference.device))
    compiler, compile_error = settings.compiler, ""
    arms = exact_arms(reference, reference, compiler)
    if compiler != "none":
        compile_error = _compile_error(arms[-1], workload)
        if compile_error:
            _log.warning("%s: E is left out, torch.compile failed: %s", name, compile_error)
            compiler, arms = "none", arms[:-1]
    gate = pass_gate(arms, workload, settings.tolerance)
    timed = arms if checkpoint is reference else exact_arms(checkpoint, reference, compiler)
    return Checked(
        name, parameters, reference, checkpoint, tuple(timed), tuple(gate), compile_error
    )


def measure(checked: Checked, settings: Settings) -> Sweep:
    """Times every arm of a model that passed the gate.

    Raises:
        ValueError: it did not: a wrong arm has no speed.
    """
    if not checked.ok:
        raise ValueError(f"{checked.name} did not pass the gate; its arms cannot be timed")
    parameters = checked.parameters
    row = count_row(checked.reference, make_workload(1, 1, parameters))
    measured = []
    for sources in settings.sources:
        for edits in settings.edits:
            workload = make_workload(sources, edits, parameters)
            measured += measure_cell(
                checked.arms, workload, settings.rounds, settings.baseline_edits
            )
    return Sweep(
        model=checked.name,
        parameters=parameters.to_dict(),
        gate=checked.gate,
        measured=tuple(measured),
        minimal_flops={
            edits: minimal_flops(row, parameters.steps, parameters.replaced_steps, edits) / edits
            for edits in settings.edits
        },
        product_flops_per_s={
            str(dtype).removeprefix("torch."): product_flops_per_s(checked.reference.device, dtype)
            for dtype in {torch.float32, checked.checkpoint.dtype}
        },
        compile_error=checked.compile_error,
    )


def _parameters(checkpoint: Checkpoint, settings: Settings) -> EditParameters:
    own = checkpoint.default_parameters
    return EditParameters(
        steps=settings.steps,
        layers=LAYERS,
        width_px=settings.size_px or own.width_px,
        height_px=settings.size_px or own.height_px,
    )


def _in_the_gate(parameters: EditParameters, settings: Settings) -> EditParameters:
    if settings.gate_size_px is None:
        return parameters
    size_px = min(settings.gate_size_px, parameters.width_px)
    return replace(parameters, width_px=size_px, height_px=size_px)


def _compile_error(arm: Arm, workload: Workload) -> str:
    """What torch.compile says against this model on this machine, in a line; "" for nothing."""
    try:
        arm.edit(workload, PhaseClock(arm.checkpoint.device))
    except TorchDynamoException as error:  # no C++ compiler, an unsupported device, ...
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""
