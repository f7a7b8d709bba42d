"""The benchmark's results: printed tables, Parquet with one row per judged edit, and CLIP
scores."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from fpe_core import EditParameters
from fpe_core.scores.clip import ClipScorer, directional_similarity, text_score
from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    Floors,
    JudgedOutput,
    figures_by_factor,
    mean_scores,
)
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table

EDITS_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("parameters", pa.string()),  # JSON
        ("seed", pa.int64()),
        ("factor", pa.string()),
        ("source_value", pa.string()),
        ("target_value", pa.string()),
        ("source_prompt", pa.string()),
        ("target_prompt", pa.string()),
        ("read_value", pa.string()),
        ("success", pa.bool_()),
        ("structure", pa.float64()),
        ("psnr_db", pa.float64()),
        ("kept_psnr_db", pa.float64()),
        ("text_score", pa.float64()),
        ("directional_similarity", pa.float64()),
    ]
)
FLOORS_SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("autoencoder_psnr_db", pa.float64()),
        ("inversion_psnr_db", pa.float64()),
    ]
)


def write_edits(
    judged: Sequence[JudgedOutput],
    arms: Sequence[Arm],
    path: pathlib.Path,
    scores: Sequence[ClipScores] | None = None,
) -> None:
    """Writes one row per arm and edit. Without `scores` their columns are null."""
    parameters = {arm.name: json.dumps(arm.parameters.to_dict()) for arm in arms}
    scored: Sequence[ClipScores | None] = scores or [None] * len(judged)
    rows = [
        {
            "arm": each.arm,
            "parameters": parameters[each.arm],
            "seed": each.edit.seed,
            "factor": each.edit.factor,
            "source_value": each.edit.source_value,
            "target_value": each.edit.target_value,
            "source_prompt": each.edit.source_prompt,
            "target_prompt": each.edit.target_prompt,
            "read_value": each.judgement.read_value,
            "success": each.judgement.success,
            "structure": each.judgement.structure,
            "psnr_db": each.judgement.psnr_db,
            "kept_psnr_db": each.judgement.kept_psnr_db,
            "text_score": score.text if score else None,
            "directional_similarity": score.directional if score else None,
        }
        for each, score in zip(judged, scored, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EDITS_SCHEMA), path)


def write_floors(floors: Sequence[Floors], path: pathlib.Path) -> None:
    """Writes one row per scene."""
    rows = [
        {
            "seed": floor.seed,
            "autoencoder_psnr_db": floor.autoencoder_psnr_db,
            "inversion_psnr_db": floor.inversion_psnr_db,
        }
        for floor in floors
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=FLOORS_SCHEMA), path)


def factor_table(judged: Sequence[JudgedOutput], arm: Arm) -> Table:
    """The figures of one arm by factor. The score is the mean of success x structure."""
    table = titled_table(
        f"Edits, {_in_words(arm.parameters)}",
        ("edit of", "edits", "success", "structure", "score", "PSNR dB", "kept dB"),
    )
    for (name, factor), figures in figures_by_factor(judged).items():
        if name == arm.name:
            table.add_row(
                factor,
                str(figures.edits),
                f"{figures.success:.2f}",
                f"{figures.structure:.2f}",
                f"{figures.score:.2f}",
                f"{figures.psnr_db:.1f}",
                or_dash(figures.kept_psnr_db, ".1f"),
            )
    return table


def arm_table(judged: Sequence[JudgedOutput], arms: Sequence[Arm], title: str = "") -> Table:
    """The scores of several arms, by factor and as the mean over the factors."""
    figures, means = figures_by_factor(judged), mean_scores(judged)
    factors = [factor for factor in FACTORS if (arms[0].name, factor) in figures]
    table = titled_table(
        title or "The arms",
        ("score", *factors, "mean"),
    )
    for arm in arms:
        own = [figures[arm.name, factor] for factor in factors]
        table.add_row(
            arm.name,
            *(f"{each.score:.2f}" for each in own),
            f"{means[arm.name]:.2f}",
        )
    return table


def scores_line(judged: Sequence[JudgedOutput], scores: Sequence[ClipScores], scorer: str) -> str:
    """A sentence on how a CLIP scores edits that are right, and edits that are wrong."""
    means = [mean_directional(judged, scores, success) for success in (True, False)]
    right, wrong = (or_dash(mean, ".2f") for mean in means)
    return (
        f"Directional similarity by {scorer}, all arms: {right} of edits that are right, {wrong} "
        "of those that are not"
    )


def floors_line(floors: Sequence[Floors]) -> str:
    """A sentence on the two floors: the PSNR of the autoencoder alone, and with the inversion."""
    first = float(np.mean([floor.autoencoder_psnr_db for floor in floors]))
    second = float(np.mean([floor.inversion_psnr_db for floor in floors]))
    return (
        f"Floors, {len(floors)} scenes: autoencoder alone {first:.1f} dB, inversion and "
        f"reconstruction {second:.1f} dB"
    )


def _in_words(parameters: EditParameters) -> str:
    return (
        f"{parameters.steps} steps, guidance {parameters.guidance_scale:g}, layers "
        f"{parameters.layers}, replaced fraction {parameters.replaced_fraction:g}"
    )


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """CLIP scores of one output, each -1..1: cosine to its target prompt, directional similarity.

    `directional` is None if the output does not differ from its source.
    """

    text: float
    directional: float | None


def clip_scores(scorer: ClipScorer, judged: Sequence[JudgedOutput]) -> list[ClipScores]:
    """The scores of the judged edits, in order. Each source is embedded once for all its edits."""
    size_px = judged[0].output.width
    sources = {each.edit.seed: each.edit for each in judged}
    rendered = scorer.embed_images(render(edit.source, size_px) for edit in sources.values())
    prompts = scorer.embed_texts(edit.source_prompt for edit in sources.values())
    place = {seed: number for number, seed in enumerate(sources)}
    of_source = [place[each.edit.seed] for each in judged]
    outputs = scorer.embed_images(each.output for each in judged)
    targets = scorer.embed_texts(each.edit.target_prompt for each in judged)
    texts = text_score(outputs, targets)
    directions = directional_similarity(rendered[of_source], outputs, prompts[of_source], targets)
    return [ClipScores(*pair) for pair in zip(texts, directions, strict=True)]


def mean_directional(
    judged: Sequence[JudgedOutput], scores: Sequence[ClipScores], success: bool
) -> float | None:
    """Mean directional similarity of the edits that are right, or of those that are not."""
    values = [
        score.directional
        for each, score in zip(judged, scores, strict=True)
        if each.judgement.success == success and score.directional is not None
    ]
    return float(np.mean(values)) if values else None
