"""`fpe calibrate`: chooses a judge's thresholds from edits whose quality is known."""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.bench.options import Checkpoint, Device, Rows
from jobs.terminal import console
from jobs.terminal.exits import guarded
from pipeline.errors import JobError

if TYPE_CHECKING:
    from fpe_core import Editor
    from fpe_core.scores.clip import ClipScorer
    from fpe_core.scores.structure import StructureModel

_log = logging.getLogger(__name__)


Table = Annotated[
    pathlib.Path | None,
    typer.Argument(
        help="Parquet or CSV: columns good, edit_type, source_id, scores.", metavar="TABLE"
    ),
]
Check = Annotated[
    pathlib.Path | None, typer.Option(help="A second table of judged edits, to test the rules on.")
]
Precision = Annotated[
    float, typer.Option(min=0, max=1, help="Wanted share of good edits among the accepted.")
]
Recall = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the good edits that is enough to accept.")
]
RulesFile = Annotated[pathlib.Path, typer.Option(help="File to write the rules to.")]
Benchmark = Annotated[
    bool, typer.Option("--benchmark", help="Edit rendered scenes and judge them by the renderer.")
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", help="Only this type of edit; may be given repeatedly."),
]
Scenes = Annotated[int, typer.Option(min=1, max=1000, help="Validation scenes.")]
TestScenes = Annotated[int, typer.Option(min=1, max=1000, help="Test scenes.")]
Clip = Annotated[str, typer.Option(metavar="SOURCE", help="The judge's CLIP, or none.")]
Structure = Annotated[
    str, typer.Option(metavar="SOURCE", help="The judge's structure model, or none.")
]


@guarded
def calibrate(
    judgements: Table = None,
    *,
    check: Check = None,
    precision: Precision = 0.95,
    recall: Recall = 0.8,
    out: RulesFile = pathlib.Path("rules.yaml"),
    benchmark: Benchmark = False,
    types: Types = None,
    scenes: Scenes = 80,
    test_scenes: TestScenes = 80,
    checkpoint: Checkpoint = "builtin:still-life",
    clip: Clip = "builtin:still-life",
    structure: Structure = "builtin:still-life",
    device: Device = "auto",
    max_rows: Rows = 32,
) -> None:
    """Choose the judge's thresholds from edits that a person has judged; write them as rules.

    With --benchmark the renderer judges: thresholds are chosen on edits of validation scenes, and
    only measured on edits of test scenes. Both tables are written next to the rules.
    """
    if out.exists():
        raise JobError(f"{out} already exists; name another file with --out")
    if benchmark:
        if judgements or check:
            raise JobError("--benchmark judges its own edits: do not give TABLE or --check with it")
        judgements, check = _table_files(out)
        _refuse(types, (judgements, check))
        asked = {judgements: ("validation", scenes), check: ("test", test_scenes)}
        _judge(asked, types, *_models(checkpoint, clip, structure, device, max_rows))
    elif judgements is None:
        raise JobError("name a TABLE of judged edits, or give --benchmark")
    _choose(judgements, check, types, (precision, recall), out)


def _choose(
    judgements: pathlib.Path,
    check: pathlib.Path | None,
    types: list[str] | None,
    wanted: tuple[float, float],
    out: pathlib.Path,
) -> None:
    """Fits rules to a table, writes them, and prints their precision and recall on both tables.

    `wanted` is the precision and the recall that are aimed for.
    """
    from jobs.commands.fit_rules import (
        curve_table,
        fit,
        fitted_table,
        quality_table,
        rules_of,
        rules_yaml,
    )
    from jobs.commands.judgements import of_types, read_judgements

    judged = of_types(read_judgements(judgements), types, judgements)
    others = None if check is None else of_types(read_judgements(check), types, check)
    fitted = fit(judged, *wanted)
    rules = rules_of(fitted)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(rules_yaml(rules), encoding="utf-8")
    console.out().print(curve_table(judged))
    console.out().print(
        fitted_table(fitted, f"Chosen on {judgements}; precision and recall on held-out edits")
    )
    for edit_type, each in fitted.items():
        if each.sure_precision < wanted[0] or each.sure_recall < wanted[1]:
            console.out().print(
                f"Edits of {edit_type}: a precision of {wanted[0]:g} and a recall of "
                f"{wanted[1]:g} are not certain. More judged edits can help, or models whose "
                "scores separate good edits better; a lower --recall allows a higher precision",
                markup=False,
            )
    if others is not None:
        console.out().print(quality_table(rules, others, f"The same rules on {check}"))
    console.out().print(f"{out}: name it as judge.rules in the job file, or copy its rules there")


def _judge(
    asked: dict[pathlib.Path, tuple[str, int]],
    types: list[str] | None,
    editor: Editor,
    clip: ClipScorer | None,
    structure: StructureModel | None,
) -> None:
    """Judges edits of each split, and writes the split's table as soon as it is complete."""
    import pyarrow.parquet as pq

    from fpe_core.still_life.benchmark.edits import seeds_of
    from fpe_core.still_life.scene import FACTORS
    from jobs.bench.judged import judge_benchmark

    for file, (split, scenes) in asked.items():
        table = judge_benchmark(
            editor,
            clip,
            structure,
            seeds_of(split, scenes),
            factors=types or FACTORS,
            progress=functools.partial(_log_progress, split),
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)


def _log_progress(split: str, edits: int) -> None:
    _log.info("%d edits of %s scenes judged", edits, split)


def _models(
    checkpoint: str, clip: str, structure: str, device: str, max_rows: int
) -> tuple[Editor, ClipScorer | None, StructureModel | None]:
    from fpe_core import load_scorer, load_structure_model
    from jobs.bench.options import load_editor

    return (
        load_editor(checkpoint, device, max_rows),
        None if clip == "none" else load_scorer(clip, device=device),
        None if structure == "none" else load_structure_model(structure, device=device),
    )


def _refuse(types: list[str] | None, tables: Iterable[pathlib.Path]) -> None:
    """Raises JobError for mistakes that would otherwise be found only after the edits are made."""
    from fpe_core.still_life.scene import FACTORS

    for name in types or ():
        if name not in FACTORS:
            raise JobError(f"--type {name}: the benchmark has {', '.join(FACTORS)}")
    for file in tables:
        if file.exists():
            raise JobError(
                f"{file} already exists. To fit to it again: fpe calibrate TABLE --check TABLE; "
                "to judge again, name another file of rules with --out"
            )


def _table_files(rules: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The files, next to `rules`, for the judged edits of validation scenes and of test scenes."""
    named = (f"{rules.stem}-{split}.parquet" for split in ("validation", "test"))
    validation, test = (rules.with_name(name) for name in named)
    return validation, test
