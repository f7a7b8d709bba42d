"""Tables of benchmark edits with their scores, and whether the renderer judges them to be good.

    table = judge_benchmark(editor, clip, structure, seeds_of("validation", 80))
    pq.write_table(table, "judged.parquet")      # what `fpe calibrate` reads

A type of edit is a factor of the benchmark. An edit is good if the factor has the requested value
and the object is where it is in the exact answer (LEAST_STRUCTURE). Thresholds need bad edits too,
so every edit is made in four ways (`calibration_arms`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from fpe_core import SCORES, Editor, EditParameters, score_edits
from fpe_core.scores.clip import ClipScorer
from fpe_core.scores.edit_scores import EditScores
from fpe_core.scores.structure import StructureModel
from fpe_core.still_life.benchmark.benchmark import Arm, JudgedOutput, run_benchmark
from fpe_core.still_life.benchmark.judgement import is_good
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS

_SCORED_AT_ONCE = 64

JUDGED_SCHEMA = pa.schema(
    [
        ("good", pa.bool_()),
        ("edit_type", pa.string()),
        ("arm", pa.string()),
        ("source_id", pa.string()),
        ("source_prompt", pa.string()),
        ("target_prompt", pa.string()),
        ("success", pa.bool_()),
        ("structure", pa.float64()),
        *((name, pa.float64()) for name in sorted(SCORES)),
    ]
)


def calibration_arms(parameters: EditParameters) -> list[Arm]:
    """The given parameters, and three variants that give bad edits more often.

    With no step replaced the structure is lost, with all steps replaced the edit has little effect,
    and without guidance the prompt is followed less.
    """
    return [
        Arm("default", parameters),
        Arm("fraction 0", dataclasses.replace(parameters, replaced_fraction=0.0)),
        Arm("fraction 1", dataclasses.replace(parameters, replaced_fraction=1.0)),
        Arm("guidance 1", dataclasses.replace(parameters, guidance_scale=1.0)),
    ]


def judge_benchmark(
    editor: Editor,
    clip: ClipScorer | None,
    structure: StructureModel | None,
    seeds: Sequence[int],
    *,
    factors: Iterable[str] = FACTORS,
    progress: Callable[[int], None] = lambda _edits: None,
) -> pa.Table:
    """One row of JUDGED_SCHEMA for every edit of every arm; scores whose model is None are null.

    `progress` is called now and then with the number of edits that are done.
    """
    arms = calibration_arms(editor.checkpoint.default_parameters)
    rows: list[dict[str, Any]] = []
    for some in _batches(run_benchmark(editor, seeds, arms, factors=factors), _SCORED_AT_ONCE):
        scores = _score(some, clip, structure)
        rows += [_row(*pair) for pair in zip(some, scores, strict=True)]
        progress(len(rows))
    return pa.Table.from_pylist(rows, schema=JUDGED_SCHEMA)


def _score(
    judged: Sequence[JudgedOutput], clip: ClipScorer | None, structure: StructureModel | None
) -> list[EditScores]:
    sources = {each.edit.seed: render(each.edit.source, each.output.width) for each in judged}
    return score_edits(
        [sources[each.edit.seed] for each in judged],
        [each.output for each in judged],
        [each.edit.source_prompt for each in judged],
        [each.edit.target_prompt for each in judged],
        clip=clip,
        structure=structure,
    )


def _row(judged: JudgedOutput, scores: EditScores) -> dict[str, Any]:
    return {
        "good": is_good(judged.judgement),
        "edit_type": judged.edit.factor,
        "arm": judged.arm,
        "source_id": str(judged.edit.seed),
        "source_prompt": judged.edit.source_prompt,
        "target_prompt": judged.edit.target_prompt,
        "success": judged.judgement.success,
        "structure": judged.judgement.structure,
        **dataclasses.asdict(scores),
    }


def _batches(edits: Iterable[JudgedOutput], size: int) -> Iterator[list[JudgedOutput]]:
    remaining = iter(edits)
    while some := list(itertools.islice(remaining, size)):
        yield some
