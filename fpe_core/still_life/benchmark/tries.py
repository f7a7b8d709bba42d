"""What a ladder of second tries is worth, where the right answers are known.

    for each in run_tries(editor, seeds_of("test", 40), parameters, rules, ladder, score=score):
        [(t.reason, t.is_right, t.unet_rows) for t in each.tries]

Edits of held-out scenes are judged by rules over scores, as a job's are, and the rejected ones go
up the ladder from the same inversion. Beside it stands what only the renderer knows: whether a
picture really is right.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from fpe_core.editor import Editor
from fpe_core.inversion import Inversion
from fpe_core.judging.rules import RejectReason, Rules
from fpe_core.judging.second_tries import Ladder
from fpe_core.parameters import EditParameters
from fpe_core.scores.edit_scores import EditScores
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.judgement import Judgement, judge
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS

_SCENES_AT_ONCE = 8

Score = Callable[
    [Sequence[Image.Image], Sequence[Image.Image], Sequence[str], Sequence[str]],
    Sequence[EditScores],
]
"""Sources, edits, source prompts and target prompts to the scores of each."""


@dataclasses.dataclass(frozen=True)
class BenchmarkTry:
    """One try of one edit. `reason` None: the rules accept it; `unet_rows`: its share."""

    parameters: EditParameters
    reason: RejectReason | None
    judgement: Judgement
    unet_rows: float


@dataclasses.dataclass(frozen=True)
class TriedBenchmarkEdit:
    """An edit and its tries, the first one first."""

    edit: BenchmarkEdit
    tries: tuple[BenchmarkTry, ...]


def run_tries(
    editor: Editor,
    seeds: Sequence[int],
    parameters: EditParameters,
    rules: Rules,
    ladder: Ladder,
    *,
    score: Score,
    factors: Iterable[str] = FACTORS,
) -> Iterator[TriedBenchmarkEdit]:
    """Every factor of every scene, tried as often as the rules and the ladder will.

    The rules of an edit are those of its factor. The first try's rows include the inversion's.
    """
    factors, trial = tuple(factors), _Trial(editor, rules, score)
    for first in range(0, len(seeds), _SCENES_AT_ONCE):
        scenes = [edits_of_scene(seed, factors) for seed in seeds[first : first + _SCENES_AT_ONCE]]
        inversion = editor.invert(
            [render(edits[0].source, parameters.width_px) for edits in scenes],
            [edits[0].source_prompt for edits in scenes],
            parameters,
        )
        asked = [(place, edit) for place, edits in enumerate(scenes) for edit in edits]
        made = trial.of(inversion, asked, parameters)
        share = inversion.unet_rows / len(asked)
        tried = [[dataclasses.replace(t, unet_rows=t.unet_rows + share)] for t in made]
        while again := _next_rungs(tried, parameters, ladder):
            for rung, places in again.items():
                made = trial.of(inversion, [asked[place] for place in places], rung)
                for place, each in zip(places, made, strict=True):
                    tried[place].append(each)
        for (_, edit), tries in zip(asked, tried, strict=True):
            yield TriedBenchmarkEdit(edit, tuple(tries))


def _next_rungs(
    tried: Sequence[Sequence[BenchmarkTry]], first: EditParameters, ladder: Ladder
) -> dict[EditParameters, list[int]]:
    """Which edits are tried again, by the parameters."""
    rungs: dict[EditParameters, list[int]] = defaultdict(list)
    for place, tries in enumerate(tried):
        rejected = [(each.parameters, each.reason) for each in tries if each.reason is not None]
        if len(rejected) == len(tries):
            parameters = ladder.next_parameters(first, rejected)
            if parameters is not None:
                rungs[parameters].append(place)
    return rungs


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Edits, scores and judges."""

    editor: Editor
    rules: Rules
    score: Score

    def of(
        self,
        inversion: Inversion,
        asked: Sequence[tuple[int, BenchmarkEdit]],
        parameters: EditParameters,
    ) -> list[BenchmarkTry]:
        """One try of each edit; `asked` has the place of its scene, in the order of the scenes."""
        by_scene: dict[int, list[str]] = defaultdict(list)
        for place, edit in asked:
            by_scene[place].append(edit.target_prompt)
        sources = inversion.select([*by_scene])
        result = self.editor.edit(sources, [*by_scene.values()], parameters)
        outputs = [made.image for of_scene in result.edits for made in of_scene]
        scores = self.score(
            [inversion.images[place] for place, _ in asked],
            outputs,
            [edit.source_prompt for _, edit in asked],
            [edit.target_prompt for _, edit in asked],
        )
        return [
            BenchmarkTry(
                parameters=parameters,
                reason=self.rules.verdict(edit.factor, each).reason,
                judgement=judge(edit, output),
                unet_rows=result.unet_rows / len(asked),
            )
            for (_, edit), each, output in zip(asked, scores, outputs, strict=True)
        ]
