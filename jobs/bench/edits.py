"""`fpe bench edits` and `fpe bench findings`: edits compared with their exact answers."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.bench.options import (
    Checkpoint,
    Device,
    Out,
    Rows,
    Split,
    SplitName,
    collect,
    held_out_seeds,
    load_editor,
)
from jobs.terminal import console
from jobs.terminal.exits import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fpe_core.still_life.benchmark.benchmark import Arm, Floors, JudgedOutput
    from jobs.bench.tables import ClipScores


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Parameters other than the checkpoint's own, such as guidance_scale=5.",
    ),
]
SourcePrompt = Annotated[
    bool, typer.Option(help="Invert with the scene's caption, or with no prompt.")
]
Scorer = Annotated[
    str,
    typer.Option(metavar="SOURCE", help="CLIP that scores in addition to the renderer, or none."),
]


@guarded
def edits(
    settings: Settings = None,
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.TEST,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 40,
    source_prompt: SourcePrompt = True,
    scorer: Scorer = "builtin:still-life",
    out: Out = pathlib.Path("out/bench-edits"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Edit colour, material, shape, background and style of held-out scenes; judge every output.

    Three arms: the settings, no layer replaced, all layers replaced.
    """
    from fpe_core import EditParameters
    from fpe_core.scores.clip import load_scorer
    from fpe_core.still_life.benchmark.benchmark import measure_floors, run_benchmark
    from jobs.bench import tables as bench_tables
    from jobs.bench.arms import settings_from_text, three_arms

    changed = settings_from_text(settings or [])
    editor, seeds = load_editor(checkpoint, device, max_rows), held_out_seeds(split, scenes)
    clip = None if scorer == "none" else load_scorer(scorer, device=device)
    recommended = editor.checkpoint.default_parameters
    parameters = EditParameters.from_dict({**recommended.to_dict(), **changed})
    arms = three_arms(editor, parameters)
    judged = collect(
        run_benchmark(editor, seeds, arms, with_source_prompt=source_prompt),
        len(seeds) * 5 * len(arms),
        "edits",
    )
    floors = collect(measure_floors(editor, seeds, parameters), len(seeds), "floors")
    scores = bench_tables.clip_scores(clip, judged) if clip else None

    _write_edits(out, judged, arms, floors, scores)
    console.out().print(bench_tables.factor_table(judged, arms[0]))
    console.out().print(bench_tables.arm_table(judged, arms))
    console.out().print(bench_tables.floors_line(floors))
    if scores:
        console.out().print(bench_tables.scores_line(judged, scores, scorer))
    console.out().print(f"{out}/edits.parquet, floors.parquet, grid.png")


def _write_edits(
    out: pathlib.Path,
    judged: Sequence[JudgedOutput],
    arms: Sequence[Arm],
    floors: Sequence[Floors],
    scores: Sequence[ClipScores] | None,
) -> None:
    from jobs.bench import pictures, tables

    out.mkdir(parents=True, exist_ok=True)
    tables.write_edits(judged, arms, out / "edits.parquet", scores)
    tables.write_floors(floors, out / "floors.parquet")
    pictures.edits_grid(judged, arms[0].name).save(out / "grid.png", optimize=True)


@guarded
def findings(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.TEST,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 10,
    out: Out = pathlib.Path("out/bench-findings"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure the paper's findings: which layers, how many steps, cross-attention; draw a plot."""
    from fpe_core.still_life.benchmark.benchmark import run_benchmark
    from jobs.bench import pictures as bench_pictures
    from jobs.bench import tables as bench_tables
    from jobs.bench.arms import findings_arms

    editor, seeds = load_editor(checkpoint, device, max_rows), held_out_seeds(split, scenes)
    studies = findings_arms(editor, editor.checkpoint.default_parameters)
    arms = list({arm.name: arm for arms in studies.values() for arm in arms}.values())
    judged = collect(run_benchmark(editor, seeds, arms), len(seeds) * 5 * len(arms), "edits")

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet")
    bench_pictures.findings_plot(judged, studies, out / "findings.png")
    bench_pictures.arms_grid(judged, arms).save(out / "grid.png", optimize=True)
    for title, study in studies.items():
        console.out().print(bench_tables.arm_table(judged, study, title))
    console.out().print(f"{out}/edits.parquet, findings.png, grid.png")
