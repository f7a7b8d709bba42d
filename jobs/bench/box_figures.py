"""How well verdicts on boxes and masks predict which of them are still right after an edit."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from fpe_core.judging.region_verdict import BOX_RULE, MASK_RULE, RegionVerdict, VerdictRule
from fpe_core.still_life.benchmark.measure_scores import area_under_curve
from fpe_core.still_life.benchmark.regions import HOLDS_IOU, RegionSample
from jobs.terminal.texts import or_dash
from jobs.terminal.titled_table import titled_table

REGIONS = {"box": BOX_RULE, "mask": MASK_RULE}
KEEP_PRECISION, DROP_PRECISION = 0.95, 0.9
"""Precision that thresholds are chosen for: the share of kept regions that are still right, and of
dropped ones that are not."""

SAMPLES_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("kind", pa.string()),
        ("factor", pa.string()),
        ("box_iou", pa.float64()),
        ("mask_iou", pa.float64()),
        ("box", pa.float64()),
        ("mask", pa.float64()),
        ("ViT", pa.float64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class VerdictFigures:
    """How a rule judges samples. A share of nothing is None.

    Attributes:
        kept_holds: share of the kept regions that are still right.
        dropped_lost: share of the dropped regions that are not.
        kept, dropped: shares of all regions; a person reviews the others.
        holds: share of all regions that are still right.
    """

    samples: int
    holds: float
    kept: float
    kept_holds: float | None
    dropped: float
    dropped_lost: float | None


def holds(sample: RegionSample, region: str) -> bool:
    """Whether the box, or the mask, is still right."""
    return (sample.box_iou if region == "box" else sample.mask_iou) >= HOLDS_IOU


def separation(samples: Sequence[RegionSample], region: str, score: str) -> float | None:
    """Area under the ROC curve: the probability, 0..1, that a region that is still right has a
    higher score than one that is not."""
    values = [[s.scores[score] for s in samples if holds(s, region) == right] for right in (1, 0)]
    return area_under_curve(*values) if all(values) else None


def fit_rule(samples: Sequence[RegionSample], region: str) -> VerdictRule:
    """The thresholds that keep, and drop, as many regions as possible at the wanted precision.

    They have two decimals. If no threshold reaches the precision, nothing is kept, or nothing
    dropped.
    """
    steps = np.arange(101) / 100
    values = np.array([sample.scores[region] for sample in samples])
    right = np.array([holds(sample, region) for sample in samples])

    def share(chosen: np.ndarray, of: np.ndarray) -> float:
        return float(of[chosen].mean()) if chosen.any() else 0.0

    keep = [step for step in steps if share(values >= step, right) >= KEEP_PRECISION]
    keep_at_least = float(min(keep, default=1.0))
    drop = [
        step
        for step in steps
        if step <= keep_at_least and share(values < step, ~right) >= DROP_PRECISION
    ]
    return VerdictRule(keep_at_least, float(max(drop, default=0.0)))


def figures(samples: Sequence[RegionSample], region: str, rule: VerdictRule) -> VerdictFigures:
    """How a rule judges the boxes, or the masks, of samples."""
    verdicts = [rule.verdict(1.0, sample.scores[region]) for sample in samples]
    right = [holds(sample, region) for sample in samples]
    kept = [r for r, v in zip(right, verdicts, strict=True) if v == RegionVerdict.KEEP]
    dropped = [r for r, v in zip(right, verdicts, strict=True) if v == RegionVerdict.DROP]
    return VerdictFigures(
        samples=len(samples),
        holds=float(np.mean(right)),
        kept=len(kept) / len(samples),
        kept_holds=float(np.mean(kept)) if kept else None,
        dropped=len(dropped) / len(samples),
        dropped_lost=1.0 - float(np.mean(dropped)) if dropped else None,
    )


def separation_table(samples: Sequence[RegionSample], split: str) -> Table:
    """Area under the ROC curve of every score, by kind of image."""
    names = list(samples[0].scores)
    table = titled_table(f"Scores of {split} scenes: area under the curve", ("pictures", *names))
    kinds = sorted({sample.kind for sample in samples})
    for region in REGIONS:
        for kind in kinds:
            chosen = [sample for sample in samples if sample.kind == kind]
            areas = (separation(chosen, region, name) for name in names)
            table.add_row(f"{region} holds, {kind}", *(or_dash(area, ".2f") for area in areas))
    return table


def verdict_table(samples: Sequence[RegionSample], region: str, rule: VerdictRule) -> Table:
    """How a rule judges, by kind of image."""
    title = f"A {region}: keep from {rule.keep_at_least:g}, review from {rule.review_at_least:g}"
    columns = ("pictures", "n", "hold", "kept", "and hold", "dropped", "rightly")
    table = titled_table(title, columns)
    for kind in sorted({sample.kind for sample in samples}):
        chosen = [sample for sample in samples if sample.kind == kind]
        found = figures(chosen, region, rule)
        table.add_row(
            kind,
            str(found.samples),
            f"{found.holds:.2f}",
            f"{found.kept:.2f}",
            or_dash(found.kept_holds, ".2f"),
            f"{found.dropped:.2f}",
            or_dash(found.dropped_lost, ".2f"),
        )
    return table


def write_samples(samples: Sequence[tuple[str, RegionSample]], path: pathlib.Path) -> None:
    """Writes one row per image, with its split, as Parquet."""
    rows = [
        {**dataclasses.asdict(sample), "split": split, **sample.scores} for split, sample in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), path)
