"""What a retry ladder achieves on edits whose exact answers are known.

    for each in run_retries(editor, seeds_of("test", 40), parameters, rules, ladder, score=score):
        [(a.reason, a.judgement, a.unet_rows) for a in each.attempts]

Edits of held-out scenes are judged by rules over scores, as a job's are, and the rejected ones are
attempted again along the ladder, from the same inversion. In addition to the rules' verdict, each
attempt has what only the renderer knows: whether the image really is right.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from fpe_core.editor import Editor
from fpe_core.inversion import Inversion
from fpe_core.judging.retry_ladder import RetryLadder
from fpe_core.judging.rules import RejectReason, Rules
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
class BenchmarkAttempt:
    """One attempt at one edit. `reason` None: the rules accept it; `unet_rows`: its share."""

    parameters: EditParameters
    reason: RejectReason | None
    judgement: Judgement
    unet_rows: float


@dataclasses.dataclass(frozen=True)
class AttemptedBenchmarkEdit:
    """An edit and its attempts, in order."""

    edit: BenchmarkEdit
    attempts: tuple[BenchmarkAttempt, ...]


def run_retries(
    editor: Editor,
    seeds: Sequence[int],
    parameters: EditParameters,
    rules: Rules,
    ladder: RetryLadder,
    *,
    score: Score,
    factors: Iterable[str] = FACTORS,
) -> Iterator[AttemptedBenchmarkEdit]:
    """Every factor of every scene, attempted until the rules accept it or the ladder ends.

    The rules of an edit are those of its factor. The rows of attempt 1 include the inversion's.
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
        while again := _next_attempts(tried, parameters, ladder):
            for changed, places in again.items():
                made = trial.of(inversion, [asked[place] for place in places], changed)
                for place, each in zip(places, made, strict=True):
                    tried[place].append(each)
        for (_, edit), attempts in zip(asked, tried, strict=True):
            yield AttemptedBenchmarkEdit(edit, tuple(attempts))


def _next_attempts(
    tried: Sequence[Sequence[BenchmarkAttempt]], first: EditParameters, ladder: RetryLadder
) -> dict[EditParameters, list[int]]:
    """The indices of the edits to attempt again, by the parameters of that attempt."""
    chosen: dict[EditParameters, list[int]] = defaultdict(list)
    for place, attempts in enumerate(tried):
        rejected = [(each.parameters, each.reason) for each in attempts if each.reason is not None]
        if len(rejected) == len(attempts):
            parameters = ladder.next_parameters(first, rejected)
            if parameters is not None:
                chosen[parameters].append(place)
    return chosen


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
    ) -> list[BenchmarkAttempt]:
        """One attempt at each edit of `asked`, (index of its scene, edit), in scene order."""
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
            BenchmarkAttempt(
                parameters=parameters,
                reason=self.rules.verdict(edit.factor, each).reason,
                judgement=judge(edit, output),
                unet_rows=result.unet_rows / len(asked),
            )
            for (_, edit), each, output in zip(asked, scores, outputs, strict=True)
        ]
