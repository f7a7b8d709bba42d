"""What `fpe bench presets` measures, prints and writes: UNet rows, time and quality of edits."""

from __future__ import annotations

import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from fpe_core import Editor
from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    FactorFigures,
    JudgedOutput,
    figures_by_factor,
)
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS, caption, sample_scene
from jobs.bench.machine import Machine, wait_for
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table

ALL_FACTORS = "all"


@dataclass(frozen=True)
class ArmCost:
    """What it cost one arm to edit some scenes, five edits of each, in several runs.

    Attributes:
        edits: number of edits in one run.
        unet_rows: UNet rows of one run, inversion included.
        wall_s: duration of each run, from the source images to the edits.
        cpu_s: CPU time of this process in each run, all threads. It is more reliable than `wall_s`
            if other programs keep the machine busy; on a GPU it means nothing.
    """

    arm: str
    edits: int
    unet_rows: int
    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]

    @property
    def rows_per_edit(self) -> float:
        return self.unet_rows / self.edits

    @property
    def edits_per_s(self) -> float:
        """Of the run with the median duration."""
        return self.edits / statistics.median(self.wall_s)

    @property
    def cpu_s_per_edit(self) -> float:
        return statistics.median(self.cpu_s) / self.edits


def measure_costs(
    editor: Editor, arms: Sequence[Arm], seeds: Sequence[int], rounds: int
) -> list[ArmCost]:
    """Times every arm in turn, round after round; each round starts with another arm.

    The first arm is measured twice, the second time as "NAME again": their difference is noise.
    Before the rounds every arm runs once. Without rounds nothing runs and [] is returned.
    """
    if not rounds:
        return []
    entries = [*arms, Arm(f"{arms[0].name} again", arms[0].parameters)]
    wall: dict[str, list[float]] = {arm.name: [] for arm in entries}
    cpu: dict[str, list[float]] = {arm.name: [] for arm in entries}
    work = {arm.name: _edit_scenes(editor, arm, seeds) for arm in arms}
    work[entries[-1].name] = work[arms[0].name]
    for number in range(rounds):
        start = number % len(entries)
        for arm in entries[start:] + entries[:start]:
            wait_for(editor.checkpoint.device)
            began = time.perf_counter(), time.process_time()
            _edit_scenes(editor, arm, seeds)
            wait_for(editor.checkpoint.device)
            wall[arm.name].append(time.perf_counter() - began[0])
            cpu[arm.name].append(time.process_time() - began[1])
    return [
        ArmCost(arm.name, *work[arm.name], tuple(wall[arm.name]), tuple(cpu[arm.name]))
        for arm in entries
    ]


def _edit_scenes(editor: Editor, arm: Arm, seeds: Sequence[int]) -> tuple[int, int]:
    """The number of edits, and the UNet rows, of one run."""
    scenes, parameters = [sample_scene(seed) for seed in seeds], arm.parameters
    pictures = [render(scene, parameters.width_px) for scene in scenes]
    targets = [[edit.target_prompt for edit in edits_of_scene(seed)] for seed in seeds]
    inversion = editor.invert(pictures, [caption(scene) for scene in scenes], parameters)
    result = editor.edit(inversion, targets)
    return sum(map(len, targets)), inversion.unet_rows + result.unet_rows


def preset_table(
    judged: Sequence[JudgedOutput], arms: Sequence[Arm], costs: Sequence[ArmCost]
) -> Table:
    """A row per arm: its parameters, its quality (means over the types of edits), and its speed.

    `of exact` is the first arm's time divided by this arm's. Arms that were not timed have "-".
    """
    table = titled_table(
        "Quality and speed; rows and CPU seconds per edit",
        ("speed", "steps", "success", "structure", "rows", "edits/s", "CPU s", "of exact"),
    )
    figures, cost_of = _figures(judged, arms), {cost.arm: cost for cost in costs}
    for arm in arms:
        quality, cost = figures[arm.name, ALL_FACTORS], cost_of.get(arm.name)
        speed = ["-"] * 4
        if cost:
            speed = [
                f"{cost.rows_per_edit:.1f}",
                f"{cost.edits_per_s:.2f}",
                f"{cost.cpu_s_per_edit:.3f}",
                f"{_times_faster(costs[0], cost):.2f}",
            ]
        table.add_row(
            arm.name,
            str(arm.parameters.steps),
            f"{quality.success:.2f}",
            f"{quality.structure:.3f}",
            *speed,
        )
    return table


def noise_line(costs: Sequence[ArmCost]) -> str:
    """How much the two times of the first arm differ; "" if nothing was timed."""
    if not costs:
        return ""
    share = abs(_times_faster(costs[0], costs[-1]) - 1)
    return f"noise ({costs[0].arm} against {costs[-1].arm}): {share:.1%} of the time"


def _times_faster(exact: ArmCost, cost: ArmCost) -> float:
    """The median of the ratios within rounds: a machine that is busy in a round slows both arms."""
    pairs = zip(exact.wall_s, cost.wall_s, strict=True)
    return statistics.median(first / own for first, own in pairs)


def quality_table(
    judged: Sequence[JudgedOutput], arms: Sequence[Arm], *, by_factor: bool = True
) -> Table:
    """Success, structure and PSNR of every arm, by type of edit and as the mean over the types."""
    table = titled_table(
        "Quality", ("speed", "edit of", "success", "structure", "score", "PSNR dB", "kept dB")
    )
    for (arm, factor), figures in _figures(judged, arms).items():
        if by_factor or factor == ALL_FACTORS:
            table.add_row(
                arm,
                factor,
                f"{figures.success:.2f}",
                f"{figures.structure:.3f}",
                f"{figures.score:.3f}",
                f"{figures.psnr_db:.2f}",
                or_dash(figures.kept_psnr_db, ".2f"),
            )
    return table


def write_report(
    judged: Sequence[JudgedOutput],
    arms: Sequence[Arm],
    costs: Sequence[ArmCost],
    machine: Machine,
    path: pathlib.Path,
) -> None:
    """Writes all figures as JSON, raw times included."""
    figures = _figures(judged, arms)
    report: dict[str, Any] = {
        "machine": asdict(machine),
        "seeds": sorted({each.edit.seed for each in judged}),
        "arms": {
            arm.name: {
                "parameters": arm.parameters.to_dict(),
                "quality": {
                    factor: asdict(own)
                    for (name, factor), own in figures.items()
                    if name == arm.name
                },
            }
            for arm in arms
        },
        "costs": [
            {
                **asdict(cost),
                "unet_rows_per_edit": cost.rows_per_edit,
                "edits_per_s": cost.edits_per_s,
                "cpu_s_per_edit": cost.cpu_s_per_edit,
                "times_exact": _times_faster(costs[0], cost),
            }
            for cost in costs
        ],
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _figures(
    judged: Sequence[JudgedOutput], arms: Sequence[Arm]
) -> dict[tuple[str, str], FactorFigures]:
    """Figures by arm and type of edit; after an arm's types comes their unweighted mean."""
    of_factors = figures_by_factor(judged)
    figures: dict[tuple[str, str], FactorFigures] = {}
    for arm in arms:
        own = {f: of_factors[arm.name, f] for f in FACTORS if (arm.name, f) in of_factors}
        figures |= {(arm.name, factor): each for factor, each in own.items()}
        figures[arm.name, ALL_FACTORS] = _mean(list(own.values()))
    return figures


def _mean(figures: Sequence[FactorFigures]) -> FactorFigures:
    kept = [each.kept_psnr_db for each in figures if each.kept_psnr_db is not None]
    return FactorFigures(
        edits=sum(each.edits for each in figures),
        success=float(np.mean([each.success for each in figures])),
        structure=float(np.mean([each.structure for each in figures])),
        score=float(np.mean([each.score for each in figures])),
        psnr_db=float(np.mean([each.psnr_db for each in figures])),
        kept_psnr_db=float(np.mean(kept)) if kept else None,
    )
