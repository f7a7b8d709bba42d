"""`fpe bench boxes`: how well verdicts predict which boxes and masks are still right."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.bench.options import (
    Checkpoint,
    Device,
    Out,
    Rows,
    SplitName,
    collect,
    held_out_seeds,
    load_editor,
)
from jobs.terminal import console
from jobs.terminal.exits import guarded

if TYPE_CHECKING:
    from fpe_core import Editor, StructureModel
    from fpe_core.still_life.benchmark.regions import RegionSample


@guarded
def boxes(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="Scenes per split; fifteen edits of each.")
    ] = 8,
    moved: Annotated[
        int, typer.Option(min=1, max=1000, help="Scenes per split with moved objects.")
    ] = 60,
    scorer: Annotated[
        str, typer.Option(metavar="SOURCE", help="ViT to compare with, or none.")
    ] = "builtin:still-life",
    out: Out = pathlib.Path("out/bench-boxes"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure which boxes and masks are still right in edits, and how well verdicts predict it.

    Thresholds are chosen on validation scenes, and compared with the defaults on test scenes.
    """
    from fpe_core.scores.structure import load_structure_model
    from jobs.bench import box_figures as bench_boxes

    editor = load_editor(checkpoint, device, max_rows)
    vit = None if scorer == "none" else load_structure_model(scorer, device=device)
    samples = {split: _region_samples(editor, split, scenes, moved, vit) for split in SplitName}

    out.mkdir(parents=True, exist_ok=True)
    rows = [(split.value, sample) for split, of in samples.items() for sample in of]
    bench_boxes.write_samples(rows, out / "regions.parquet")
    validation, test = samples[SplitName.VALIDATION], samples[SplitName.TEST]
    console.out().print(bench_boxes.separation_table(validation, "validation"))
    for region, default in bench_boxes.REGIONS.items():
        rule = bench_boxes.fit_rule(validation, region)
        console.out().print(
            f"Chosen on validation scenes for a {region}: keep_at_least={rule.keep_at_least:g}, "
            f"review_at_least={rule.review_at_least:g}. On test scenes:"
        )
        console.out().print(bench_boxes.verdict_table(test, region, rule))
        console.out().print("And the defaults:")
        console.out().print(bench_boxes.verdict_table(test, region, default))
    console.out().print(f"{out}/regions.parquet")


def _region_samples(
    editor: Editor, split: SplitName, scenes: int, moved: int, vit: StructureModel | None
) -> list[RegionSample]:
    """Samples of moved objects, and of edits with the checkpoint's settings and the two
    extremes."""
    from fpe_core.still_life.benchmark.regions import model_samples, moved_samples
    from jobs.bench.arms import three_arms

    arms = [arm.parameters for arm in three_arms(editor, editor.checkpoint.default_parameters)]
    made = model_samples(editor, held_out_seeds(split, scenes), arms, vit)
    return [
        *collect(moved_samples(held_out_seeds(split, moved), vit), 5 * moved, f"{split} moved"),
        *collect(made, 5 * scenes * len(arms), f"{split} edits"),
    ]
