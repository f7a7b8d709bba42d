"""Times p2p, pnp and masactrl beside a plain diffusers loop of each, on the same weights.

The two arms are measured as `fpe bench speed` measures its own (`jobs.bench.speed.rounds`): in one
process, in alternating rounds, with hooks that count the UNet rows. An arm whose final latents are
not the other's has no times.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from fpe_core import Checkpoint, Editor, EditParameters
from fpe_core.editors.method import method_named
from jobs.bench.editors.plain import PLAIN, plain_loop
from jobs.bench.machine import Machine, this_machine
from jobs.bench.speed.arms import OurArm, PlainArm
from jobs.bench.speed.gate import tolerance_of
from jobs.bench.speed.models import load_model
from jobs.bench.speed.results import Failed, Measured
from jobs.bench.speed.rounds import CellTimer
from jobs.bench.speed.workload import BenchWorkload, make_workload
from jobs.terminal.titled_table import titled_table

EDITS_PER_SOURCE = 4
LEAST_TIMES = 2.0
"""The aim: our edits per second as a multiple of the plain loop's."""

_PLAIN, _OURS = "B+", "C"  # as `fpe bench speed` names a plain loop that inverts a source once


@dataclass(frozen=True)
class MethodTimes:
    """One method by both arms.

    Attributes:
        method: its name.
        parameters: of all edits, as `EditParameters.to_dict` has them.
        plain, ours: None for an arm that failed; see `failed`.
        failed: with the reason, such as latents that are not the other arm's.
    """

    method: str
    parameters: dict[str, Any]
    plain: Measured | None
    ours: Measured | None
    failed: tuple[Failed, ...]

    @property
    def times(self) -> float | None:
        """Our edits per second divided by the plain loop's; None unless both arms have times, so
        that the latents of both are the same."""
        if self.plain is None or self.ours is None or self.failed:
            return None
        return self.ours.edits_per_s / self.plain.edits_per_s


@dataclass(frozen=True)
class SpeedTimes:
    """All methods, and where and how they were measured.

    Attributes:
        tolerance: bound on the distance of the final latents of the two arms, as a share of the
            latents' norm, float32.
    """

    model: str
    size_px: int
    steps: int
    tolerance: float
    machine: Machine
    methods: tuple[MethodTimes, ...]


def time_methods(
    model: str,
    device: str,
    *,
    size_px: int | None = None,
    steps: int = 10,
    rounds: int = 3,
    tolerance: float | None = None,
) -> SpeedTimes:
    """Times every method that has a plain loop: one source, four edits, published parameters.

    Args:
        model: as `jobs.bench.speed.models.load_model` takes it; runs in float32.
        device: as `load_checkpoint` takes it.
        size_px: edge of the images; None for the model's own size.
        rounds: how often each arm is timed; each round begins with the other arm.
        tolerance: None for that of `fpe bench speed`'s gate.

    Raises:
        CheckpointError, ParameterError: the model or the settings cannot be used.
    """
    checkpoint = load_model(model, device)
    size_px = size_px or checkpoint.default_parameters.width_px
    bound = tolerance_of(model) if tolerance is None else tolerance
    plain = replace(
        checkpoint.default_parameters,
        steps=steps,
        negative_prompt="",
        width_px=size_px,
        height_px=size_px,
    )
    return SpeedTimes(
        model=model,
        size_px=size_px,
        steps=steps,
        tolerance=bound,
        machine=this_machine(checkpoint.device),
        methods=tuple(
            _time_method(name, checkpoint, plain.edited_by(method_named(name)()), rounds, bound)
            for name in PLAIN
        ),
    )


def _time_method(
    name: str, checkpoint: Checkpoint, parameters: EditParameters, rounds: int, tolerance: float
) -> MethodTimes:
    timer = CellTimer(
        [
            PlainArm.of(
                checkpoint,
                name=_PLAIN,
                title=f"a plain diffusers loop of {name}",
                shares="inversion",
                loop=plain_loop,
            ),
            OurArm(Editor(checkpoint), _OURS, f"{name}, ours", batched=False),
        ],
        rounds=rounds,
        baseline_edits=EDITS_PER_SOURCE,
        tolerance=tolerance,
        profiles=False,
    )
    cell = timer.time_cell(_workload(name, parameters))
    measured = {each.arm: each for each in cell.measured}
    return MethodTimes(
        name, parameters.to_dict(), measured.get(_PLAIN), measured.get(_OURS), cell.failed
    )


def _workload(method: str, parameters: EditParameters) -> BenchWorkload:
    """One source with four edits; for masactrl without a source prompt, as it is published."""
    work = make_workload(1, EDITS_PER_SOURCE, parameters)
    return work.without_source_prompts() if method == "masactrl" else work


def speed_table(times: SpeedTimes) -> Table:
    """Both arms of every method; a method whose arms disagree has no ratio."""
    table = titled_table(
        f"{times.model}, {times.size_px} px, {times.steps} steps, {EDITS_PER_SOURCE} edits of a "
        f"source, {times.machine.device}; aim: {LEAST_TIMES:g} times",
        ("method", "plain/h", "spread", "rows", "ours/h", "spread", "rows", "apart", "times"),
    )
    for each in times.methods:
        cells = [cell for arm in (each.plain, each.ours) for cell in _cells(arm)]
        apart = each.plain.from_ours if each.plain else None
        table.add_row(
            each.method,
            *cells,
            "-" if apart is None else f"{apart:.1e}",
            "-" if each.times is None else f"{each.times:.2f}",
        )
    return table


def write_times(times: SpeedTimes, path: pathlib.Path) -> None:
    """Writes all figures as JSON, raw times included."""
    report = asdict(times)
    for written, each in zip(report["methods"], times.methods, strict=True):
        written["times"] = each.times
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _cells(arm: Measured | None) -> list[str]:
    """Edits per hour, spread of the rounds, and UNet rows per edit."""
    if arm is None:
        return ["-"] * 3
    return [f"{3600 * arm.edits_per_s:,.0f}", f"{arm.spread:.1%}", f"{arm.rows_per_edit:.1f}"]
