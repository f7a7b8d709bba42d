"""Pictures of a benchmark's results: grids of edits next to their exact answers, and a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    JudgedOutput,
    figures_by_factor,
    mean_scores,
)
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS
from jobs.bench.options import require_matplotlib

_PAPER, INK, RIGHT, WRONG = (255, 255, 255), (32, 33, 36), (24, 128, 56), (197, 34, 31)
_GAP_PX, _FONT_PX, _LEAST_PX = 6, 12, 128

Cell = tuple[Image.Image, str, tuple[int, int, int]]
"""An image, its caption, and the caption's colour."""


def edits_grid(judged: Sequence[JudgedOutput], arm: str, scenes: int = 10) -> Image.Image:
    """A row per scene: the source, then each edit next to its exact answer."""
    rows: dict[int, list[Cell]] = {}
    for each in judged:
        if each.arm != arm or (each.edit.seed not in rows and len(rows) == scenes):
            continue
        size_px = each.output.width
        row = rows.setdefault(each.edit.seed, [(render(each.edit.source, size_px), "source", INK)])
        row.append(_judged_cell(each, f"{each.edit.source_value} > {each.edit.target_value}"))
        row.append((render(each.edit.answer, size_px), "exact answer", INK))
    return draw_grid(list(rows.values()))


def arms_grid(judged: Sequence[JudgedOutput], arms: Sequence[Arm]) -> Image.Image:
    """A row per factor: the source of its first edit, the exact answer, each arm's output."""
    rows = []
    for factor in FACTORS:
        first = {each.arm: each for each in reversed(judged) if each.edit.factor == factor}
        if not first:
            continue
        edit, size_px = first[arms[0].name].edit, first[arms[0].name].output.width
        cells: list[Cell] = [
            (render(edit.source, size_px), edit.source_value, INK),
            (render(edit.answer, size_px), edit.target_value, INK),
        ]
        rows.append([*cells, *(_judged_cell(first[arm.name], arm.name) for arm in arms)])
    return draw_grid(rows)


def findings_plot(
    judged: Sequence[JudgedOutput], studies: Mapping[str, Sequence[Arm]], path: pathlib.Path
) -> None:
    """One panel per study: success, structure and their product, means over the factors.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    by_factor, means = figures_by_factor(judged), mean_scores(judged)
    figure = Figure(figsize=(5.2 * len(studies), 4.6), layout="constrained")
    for panel, (title, arms) in zip(
        np.atleast_1d(figure.subplots(1, len(studies), sharey=True)), studies.items(), strict=True
    ):
        own = [[by_factor[a.name, f] for f in FACTORS if (a.name, f) in by_factor] for a in arms]
        places = range(len(arms))
        panel.plot(
            places, [np.mean([x.success for x in row]) for row in own], "o-", label="success"
        )
        panel.plot(
            places, [np.mean([x.structure for x in row]) for row in own], "s-", label="structure"
        )
        panel.bar(places, [means[a.name] for a in arms], color="0.85", label="success x structure")
        labels = [arm.name.removeprefix("layers ").removeprefix("fraction ") for arm in arms]
        panel.set_xticks(places, labels, rotation=25, ha="right")
        panel.set_title(title, fontsize=11)
        panel.set_ylim(0.0, 1.02)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    figure.axes[0].legend(loc="lower left", fontsize=9)
    figure.savefig(path, dpi=110)


def _judged_cell(each: JudgedOutput, words: str) -> Cell:
    return each.output, words, RIGHT if each.judgement.success else WRONG


def draw_grid(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rows of images with captions on white paper, RGB; rows may be of unequal length."""
    font = ImageFont.load_default(_FONT_PX)
    side = max(_LEAST_PX, rows[0][0][0].width)
    width_px, height_px = side + _GAP_PX, side + _GAP_PX + _FONT_PX + 6
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB", (columns * width_px + _GAP_PX, len(rows) * height_px + _GAP_PX), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (picture, words, colour) in enumerate(row):
            left, top = _GAP_PX + x * width_px, _GAP_PX + y * height_px
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
            draw.text((left, top + side + 2), words, fill=colour, font=font)
    return sheet
