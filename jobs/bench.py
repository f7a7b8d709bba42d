"""`fpe bench`: what a checkpoint's edits are worth, measured where the right answers are known."""

from __future__ import annotations

import enum
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from jobs.bench_speed import speed
from jobs.exits import guarded

if TYPE_CHECKING:
    from fpe_core import Editor

app = typer.Typer(
    help="Measure how well a checkpoint edits, where the right answers are known, and how fast.",
    no_args_is_help=True,
)
app.command()(speed)

_out = Console(highlight=False, soft_wrap=True, emoji=False)
_log = logging.getLogger(__name__)
_LOG_EVERY = 40

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
    editor, seeds = _editor(checkpoint, device, max_rows), _seeds(split, scenes)
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
    _out.print(bench_tables.factor_table(judged, arms[0]))
    _out.print(bench_tables.arm_table(judged, arms))
    _out.print(bench_tables.floors_line(floors))
    if scores:
        _out.print(bench_tables.scores_line(judged, scores, scorer))
    _out.print(f"{out}/edits.parquet, floors.parquet, grid.png")


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

    editor, seeds = _editor(checkpoint, device, max_rows), _seeds(split, scenes)
    studies = findings_arms(editor, editor.checkpoint.default_parameters)
    arms = list({arm.name: arm for arms in studies.values() for arm in arms}.values())
    judged = _collect(run_benchmark(editor, seeds, arms), len(seeds) * 5 * len(arms), "edits")

    out.mkdir(parents=True, exist_ok=True)
    bench_tables.write_edits(judged, arms, out / "edits.parquet")
    bench_pictures.findings_plot(judged, studies, out / "findings.png")
    bench_pictures.arms_grid(judged, arms).save(out / "grid.png", optimize=True)
    for title, study in studies.items():
        _out.print(bench_tables.arm_table(judged, study, title))
    _out.print(f"{out}/edits.parquet, findings.png, grid.png")


def _silence_loading_bars() -> None:
    """transformers draws one for every network, however small."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _editor(checkpoint: str, device: str, max_rows: int) -> Editor:
    from fpe_core import Editor, load_checkpoint

    _silence_loading_bars()
    return Editor(load_checkpoint(checkpoint, device=device), max_rows=max_rows)


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
