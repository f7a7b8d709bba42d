"""`fpe bench`: what a checkpoint's edits are worth, measured where the right answers are known."""

from __future__ import annotations

import enum
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from jobs.bench_pipeline import pipeline
from jobs.bench_scale import scale
from jobs.bench_speed import speed
from jobs.bench_threads import threads
from jobs import console
from jobs.exits import guarded

if TYPE_CHECKING:
    from fpe_core import Editor, StructureModel
    from fpe_core.still_life.region_truth import RegionSample

app = typer.Typer(
    help="Measure how well a checkpoint edits, where the right answers are known, and how fast.",
    no_args_is_help=True,
)
app.command()(speed)
app.command()(pipeline)
app.command()(threads)
app.command()(scale)

_log = logging.getLogger(__name__)
_LOG_EVERY = 40
STILL_LIFE_RULES = pathlib.Path(__file__).parent / "rules" / "still_life.yaml"
"""Chosen for the built-in models by `fpe calibrate --benchmark`."""

T = TypeVar("T")


class SplitName(enum.StrEnum):
    """Which held-out scenes: the ones to report on, or the ones to choose settings by."""

    TEST = "test"
    VALIDATION = "validation"


Checkpoint = Annotated[
    str, typer.Option(help="Built-in model, diffusers folder, file or hub id.", metavar="SOURCE")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Split = Annotated[
    SplitName, typer.Option(help="Held-out scenes: to report on, or to choose settings by.")
]
Out = Annotated[pathlib.Path, typer.Option(help="Folder for tables and pictures.")]
Rows = Annotated[int, typer.Option(min=1, help="Most UNet rows at once.")]


@app.command()
@guarded
def edits(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Instead of the checkpoint's own, such as guidance_scale=5."
        ),
    ] = None,
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.TEST,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 40,
    source_prompt: Annotated[
        bool, typer.Option(help="Invert with the scene's caption, or with no prompt.")
    ] = True,
    scorer: Annotated[
        str, typer.Option(metavar="SOURCE", help="CLIP that scores beside the renderer, or none.")
    ] = "builtin:still-life",
    out: Out = pathlib.Path("out/bench-edits"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Edit colour, material, shape, background and style of held-out scenes; judge every output.

    Three arms: the settings, no layer replaced, all layers replaced.
    """
    from fpe_core import EditParameters
    from fpe_core.scores import load_scorer
    from fpe_core.still_life.benchmark import measure_floors, run_benchmark
    from jobs import bench_pictures, bench_tables
    from jobs.bench_arms import settings_from_text, three_arms
    from jobs.bench_scores import clip_scores

    changed = settings_from_text(settings or [])
    editor, seeds = load_editor(checkpoint, device, max_rows), _seeds(split, scenes)
    clip = None if scorer == "none" else load_scorer(scorer, device=device)
    recommended = editor.checkpoint.default_parameters
    parameters = EditParameters.from_dict({**recommended.to_dict(), **changed})
    arms = three_arms(editor, parameters)
    judged = _collect(
        run_benchmark(editor, seeds, arms, with_source_prompt=source_prompt),
        len(seeds) * 5 * len(arms),
        "edits",
    )
    floors = _collect(measure_floors(editor, seeds, parameters), len(seeds), "floors")

    scores = clip_scores(clip, judged) if clip else None

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet", scores)
    bench_tables.write_floors(floors, out / "floors.parquet")
    bench_pictures.edits_grid(judged, arms[0].name).save(out / "grid.png", optimize=True)
    console.out().print(bench_tables.factor_table(judged, arms[0]))
    console.out().print(bench_tables.arm_table(judged, arms))
    console.out().print(bench_tables.floors_line(floors))
    if scores:
        console.out().print(bench_tables.scores_line(judged, scores, scorer))
    console.out().print(f"{out}/edits.parquet, floors.parquet, grid.png")


@app.command()
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
    from fpe_core.still_life.benchmark import run_benchmark
    from jobs import bench_pictures, bench_tables
    from jobs.bench_arms import findings_arms

    editor, seeds = load_editor(checkpoint, device, max_rows), _seeds(split, scenes)
    studies = findings_arms(editor, editor.checkpoint.default_parameters)
    arms = list({arm.name: arm for arms in studies.values() for arm in arms}.values())
    judged = _collect(run_benchmark(editor, seeds, arms), len(seeds) * 5 * len(arms), "edits")

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet")
    bench_pictures.findings_plot(judged, studies, out / "findings.png")
    bench_pictures.arms_grid(judged, arms).save(out / "grid.png", optimize=True)
    for title, study in studies.items():
        console.out().print(bench_tables.arm_table(judged, study, title))
    console.out().print(f"{out}/edits.parquet, findings.png, grid.png")


@app.command()
@guarded
def presets(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.TEST,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Five edits of each.")] = 12,
    grid: Annotated[
        bool, typer.Option(help="Steps x guidance intervals, to choose from; not the presets.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=0, help="Times that each is timed; 0: not.")] = 3,
    timed_scenes: Annotated[int, typer.Option(min=1, help="Scenes edited in a timed run.")] = 2,
    out: Out = pathlib.Path("out/bench-presets"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure the approximate presets (edit.speed): what they cost in quality beside their speed.

    Networks are float32. The exact way is timed twice in every round: what the two differ is noise.
    """
    from fpe_core.still_life.benchmark import run_benchmark
    from jobs import bench_presets, bench_tables
    from jobs.bench_arms import grid_arms, preset_arms
    from jobs.speed.report import this_machine

    editor = load_editor(checkpoint, device, max_rows, dtype="float32")
    seeds, recommended = _seeds(split, scenes), editor.checkpoint.default_parameters
    arms = grid_arms(recommended) if grid else preset_arms(recommended)
    costs = bench_presets.measure_costs(editor, arms, seeds[:timed_scenes], rounds)
    judged = _collect(run_benchmark(editor, seeds, arms), len(seeds) * 5 * len(arms), "edits")

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet")
    machine = this_machine(editor.checkpoint.device)
    bench_presets.write_report(judged, arms, costs, machine, out / "presets.json")
    console.out().print(bench_presets.preset_table(judged, arms, costs))
    console.out().print(bench_presets.quality_table(judged, arms, by_factor=not grid))
    if noise := bench_presets.noise_line(costs):
        console.out().print(noise)
    console.out().print(f"{machine.device}, {machine.threads} threads, {machine.date}; {len(seeds)} scenes")
    console.out().print(f"{out}/edits.parquet, presets.json")


@app.command()
@guarded
def tries(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    rules: Annotated[
        str, typer.Option(metavar="FILE", help="What is accepted, as fpe calibrate writes it.")
    ] = str(STILL_LIFE_RULES),
    most: Annotated[int, typer.Option(min=1, max=10, help="Further tries of an edit.")] = 2,
    split: Split = SplitName.TEST,
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="An edit of each for every type with rules.")
    ] = 40,
    out: Out = pathlib.Path("out/bench-tries"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure what trying rejected edits again adds, per UNet row; beside it what is really right.

    With the ladder that is the default of a job's judge.second_tries.
    """
    from fpe_core.second_tries import Ladder
    from fpe_core.still_life.further_tries import run_tries
    from jobs import bench_tries
    from jobs.rules_file import read_rules

    accepting = read_rules(rules)
    factors = bench_tries.factors_of(accepting)
    editor, seeds = load_editor(checkpoint, device, max_rows), _seeds(split, scenes)
    tried = _collect(
        run_tries(
            editor,
            seeds,
            editor.checkpoint.default_parameters,
            accepting,
            Ladder(most=most),
            score=bench_tries.scoring(device),
            factors=factors,
        ),
        len(seeds) * len(factors),
        "edits",
    )
    out.mkdir(parents=True, exist_ok=True)
    bench_tries.write_tries(tried, out / "tries.parquet")
    console.out().print(bench_tries.tries_table(tried))
    console.out().print(bench_tries.rungs_table(tried))
    console.out().print(f"{out}/tries.parquet")


@app.command()
@guarded
def gate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Instead of the checkpoint's own, such as steps."),
    ] = None,
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    split: Split = SplitName.VALIDATION,
    scenes: Annotated[int, typer.Option(min=1, max=80, help="Of each of 11 kinds of source.")] = 4,
    out: Out = pathlib.Path("out/bench-gate"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure whether a source that comes back badly, unedited, is edited badly.

    Clean and spoiled scenes and pictures of another world; every estimate against every edit.
    """
    from fpe_core import EditParameters
    from fpe_core.still_life.gate_benchmark import estimate_figures, run_gate_benchmark
    from fpe_core.still_life.hard_sources import hard_sources
    from jobs import bench_gate
    from jobs.bench_arms import settings_from_text

    changed = settings_from_text(settings or [])
    editor = load_editor(checkpoint, device, max_rows)
    recommended = editor.checkpoint.default_parameters
    parameters = EditParameters.from_dict({**recommended.to_dict(), **changed})
    sources = hard_sources(split.value, scenes)
    tried = _collect(run_gate_benchmark(editor, sources, parameters), len(sources), "sources")

    out.mkdir(parents=True, exist_ok=True)
    figures = estimate_figures(tried, parameters.steps)
    bench_gate.write_tried(tried, out / "edits.parquet")
    bench_gate.write_figures(figures, out / "estimates.parquet")
    console.out().print(bench_gate.kinds_table(tried))
    console.out().print(bench_gate.figures_table(figures))
    console.out().print(f"{out}/edits.parquet, estimates.parquet")


@app.command()
@guarded
def boxes(
    *,
    checkpoint: Checkpoint = "builtin:still-life",
    scenes: Annotated[
        int, typer.Option(min=1, max=1000, help="Of each split; fifteen edits of each.")
    ] = 8,
    moved: Annotated[
        int, typer.Option(min=1, max=1000, help="Scenes of each split with moved objects.")
    ] = 60,
    scorer: Annotated[
        str, typer.Option(metavar="SOURCE", help="ViT to compare with, or none.")
    ] = "builtin:still-life",
    out: Out = pathlib.Path("out/bench-boxes"),
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Measure which boxes and masks still hold in edits, and how well the verdicts tell.

    Thresholds are chosen on validation scenes and tried on test scenes, beside the defaults.
    """
    from fpe_core.structure import load_structure_model
    from jobs import bench_boxes

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
    """Moved objects, and edits by the checkpoint's own settings and the two extremes beside it."""
    from fpe_core.still_life.region_truth import model_samples, moved_samples
    from jobs.bench_arms import three_arms

    arms = [arm.parameters for arm in three_arms(editor, editor.checkpoint.default_parameters)]
    made = model_samples(editor, _seeds(split, scenes), arms, vit)
    return [
        *_collect(moved_samples(_seeds(split, moved), vit), 5 * moved, f"{split} moved"),
        *_collect(made, 5 * scenes * len(arms), f"{split} edits"),
    ]


def _silence_loading_bars() -> None:
    """transformers draws one for every network, however small."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def load_editor(checkpoint: str, device: str, max_rows: int, dtype: str = "auto") -> Editor:
    from fpe_core import Editor, load_checkpoint

    _silence_loading_bars()
    return Editor(load_checkpoint(checkpoint, device=device, dtype=dtype), max_rows=max_rows)


def _seeds(split: SplitName, scenes: int) -> range:
    from fpe_core.still_life.benchmark_edits import seeds_of

    return seeds_of(split.value, scenes)


def _collect(results: Iterable[T], total: int, what: str) -> list[T]:
    """All results, with a line now and then for whoever waits."""
    return list(_counted(results, total, what))


def _counted(results: Iterable[T], total: int, what: str) -> Iterator[T]:
    for number, result in enumerate(results, start=1):
        yield result
        if number % _LOG_EVERY == 0 or number == total:
            _log.info("%d of %d %s", number, total, what)
