"""The calls of the editor for one block: which edits go into each, and which are attempted again.

While a call is judged and written, the next one is edited, and no more than that one: a thread
makes one call ahead, and waits until the results of the call before have gone to `ResultWriter`,
which waits for the storage if that is slow. So the images in memory are those of two calls and
those that are being written, however many edits a source or a block has. Rejected edits of a judged
call are attempted again along the retry ladder, from the same inversions.

A source with more edits than go into one call is inverted once and edited in several calls.

If a call raises, it is halved until only the edit that caused the error is left, and only that edit
fails. Errors that no row caused (a device that is lost, parameters that do not fit the model) are
raised instead.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from fpe_core import EditParameters, Inversion, ParameterError
from fpe_core.device import DEVICE_FAILED
from pipeline.edit.attempt import (
    Attempt,
    AttemptedEdit,
    AttemptImages,
    ModelCost,
    PreparedSources,
    Result,
    UnmadeEdit,
    code_of,
    message_of,
    notes_of,
)
from pipeline.edit.image_editor import ImageEditor
from pipeline.edit.no_editor import NOT_EDITED
from pipeline.edit.results import ResultWriter
from pipeline.editor_calls import call_by_call, edits_per_call
from pipeline.judge.gate import ReconstructionGate
from pipeline.judge.judge import Candidate, Judge, Judged
from pipeline.ledger.outcome import FailureCode
from pipeline.read.group import Group, PlannedEdit

_T = TypeVar("_T")
_PIXELS_INVERTED = 32 * 2**20
"""Of the sources that are inverted together, and whose trajectories are kept together: 128 sources
of 512 px, which take 0.4 GB for 50 steps."""

_NO_ROWS_FAULT: tuple[type[Exception], ...] = (*DEVICE_FAILED, ParameterError)
"""The device is lost, or the job's parameters do not fit the model."""

_Asked = tuple[int, PlannedEdit]  # index of the source in the call, and one of its edits
_Judgement = Judged | Exception | None


@dataclass(frozen=True)
class _Call:
    """One call of the editor. `verdicts` will hold one answer for each of `tried`; None: no
    judge."""

    sources: PreparedSources
    tried: list[AttemptedEdit]
    verdicts: Future[list[_Judgement]] | None


class BlockEditor:
    """Chooses the calls of the editor for one block.

    It decides what goes into a call, what is tried again after a call raised, and which attempt
    follows a rejection. `ResultWriter` decides what is written.
    """

    def __init__(
        self,
        editor: ImageEditor,
        results: ResultWriter,
        gate: ReconstructionGate,
        *,
        judge: Judge | None = None,
        judging: Executor | None = None,
        makes_edits: bool = True,
        begin_thread: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            judging: an executor with one thread, because a model serves one thread at a time;
                required if `judge` is given.
            makes_edits: False for a `NoEditor`.
            begin_thread: called on the thread that makes calls ahead, before anything else.
        """
        self._editor = editor
        self._begin_thread = begin_thread
        self._results = results
        self._gate = gate
        self._judge = judge
        self._ladder = judge.settings.ladder if judge is not None else None
        self._judging = judging
        self._makes_edits = makes_edits
        self._turn = threading.Lock()
        self.model_seconds = 0.0
        """Seconds that the editor took so far."""

    def edit(
        self, groups: Sequence[Group], done_with_model: Callable[[], None] = lambda: None
    ) -> Iterator[Result]:
        """Makes all edits of groups with equal parameters and yields their results.

        `done_with_model` is called when only judging and writing are left; it may be called twice.
        """
        calls = self._calls(groups)

        def next_call() -> _Call | UnmadeEdit | None:
            call = next(calls, None)
            if call is None and self._ladder is None:  # else a verdict may ask for an attempt
                done_with_model()
            return call

        with ThreadPoolExecutor(1, "calls", initializer=self._begin_thread) as ahead:
            upcoming = ahead.submit(next_call)
            while (call := upcoming.result()) is not None:
                upcoming = ahead.submit(next_call)
                if isinstance(call, _Call):
                    yield from self._settle(call)
                else:
                    yield call
                del call  # its trajectories are not needed while the next one is awaited
        done_with_model()

    def _calls(self, groups: Sequence[Group]) -> Iterator[_Call | UnmadeEdit]:
        """The calls for all groups, a limited number of sources at a time."""
        parameters = groups[0].parameters
        pixels = parameters.width_px * parameters.height_px
        count = max(1, _PIXELS_INVERTED // pixels)
        for first in range(0, len(groups), count):
            yield from self._calls_of(groups[first : first + count])

    def _calls_of(self, groups: Sequence[Group]) -> Iterator[_Call | UnmadeEdit]:
        """Inverts every group and makes its first attempts. Yields the calls, and an `UnmadeEdit`
        for each edit that failed or whose source the gate rejected."""
        try:
            measured = self._measure(groups)
            passed = [i for i, each in enumerate(measured) if self._gate.verdict(each).is_accepted]
            prepared = [(groups[i], measured[i]) for i in passed]
            sources = self._prepare(*zip(*prepared, strict=True)) if prepared else None
        except _NO_ROWS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, only the guilty group fails
            if len(groups) == 1:
                (group,) = groups
                for edit in group.edits:
                    yield UnmadeEdit.failed(group, edit, code_of(error), message_of(error))
                return
            for half in _halves(groups):
                yield from self._calls_of(half)
            return
        for index in sorted({*range(len(groups))} - {*passed}):
            psnr_db = measured[index]
            yield from self._results.refuse(groups[index], self._gate.verdict(psnr_db), psnr_db)
        if sources is None:
            return
        sound = []
        for index, group in enumerate(sources.groups):
            if not isinstance(sources.start, Inversion) or not sources.start.diverged[index]:
                sound.append(index)
                continue
            for edit in group.edits:
                yield UnmadeEdit.failed(
                    group,
                    edit,
                    FailureCode.INVERSION_DIVERGED,
                    "the inversion of the source is not finite; try float32 or more steps",
                    sources.cost_each / len(group.edits),
                )
        sizes = [len(group.edits) for group in sources.groups]
        parameters = groups[0].parameters
        most = edits_per_call(parameters.width_px, parameters.height_px)
        for call in call_by_call(sizes, sound, most):
            edits = [sources.groups[index].edits[part.start : part.stop] for index, part in call]
            yield from self._first_attempts(sources.select([index for index, _ in call]), edits)

    def _with_model(self, call: Callable[[], _T]) -> tuple[_T, float]:
        """The result of `call`, which uses the editor, and its seconds. One call at a time."""
        with self._turn:
            began = time.monotonic()
            result = call()
            seconds = time.monotonic() - began
            self.model_seconds += seconds
        return result, seconds

    def _measure(self, groups: Sequence[Group]) -> list[float | None]:
        measured, _ = self._with_model(lambda: self._gate.measure(groups))
        return measured

    def _prepare(
        self, groups: Sequence[Group], measured: Sequence[float | None]
    ) -> PreparedSources:
        """Inverts real sources, all in one call. Synthetic sources only get their noise here."""
        parameters = groups[0].parameters
        prompts = [group.source_prompt for group in groups]
        if groups[0].image is None:
            seeds = [group.seed or 0 for group in groups]
            start = self._editor.synthesise(prompts, seeds, parameters)
            return PreparedSources(tuple(groups), start, ModelCost(), tuple(measured))
        images = [group.image for group in groups if group.image is not None]
        fits = [group.fit for group in groups if group.fit is not None]
        inversion, seconds = self._with_model(
            lambda: self._editor.invert(images, prompts, parameters, fits=fits)
        )
        return PreparedSources(
            tuple(groups),
            inversion,
            cost_each=ModelCost(inversion.unet_rows, seconds) / len(groups),
            autoencoder_psnr_db=tuple(measured),
        )

    def _first_attempts(
        self, sources: PreparedSources, edits: Sequence[Sequence[PlannedEdit]]
    ) -> Iterator[_Call | UnmadeEdit]:
        """One call: the first attempts at the given edits of each source."""
        asked = [(index, edit) for index, of_source in enumerate(edits) for edit in of_source]
        tried = []
        answers = self._attempts(sources, asked, sources.groups[0].parameters)
        for (index, edit), attempt in zip(asked, answers, strict=True):
            group = sources.groups[index]
            of_source = sources.cost_each / len(group.edits)
            if isinstance(attempt, Exception):
                code, message = code_of(attempt), message_of(attempt)
                yield UnmadeEdit.failed(group, edit, code, message, of_source)
                continue
            first = replace(attempt, cost=attempt.cost + of_source)
            tried.append(
                AttemptedEdit(group, index, edit, (first,), sources.autoencoder_psnr_db[index])
            )
        if tried:
            yield _Call(sources, tried, self._judge_later(tried))

    def _attempts(
        self, sources: PreparedSources, asked: Sequence[_Asked], parameters: EditParameters
    ) -> list[Attempt | Exception]:
        """Makes each of `asked` with these parameters; returns an attempt or the error, in order.

        `asked` is in the order of the sources.
        """
        by_source: dict[int, list[PlannedEdit]] = defaultdict(list)
        for index, edit in asked:
            by_source[index].append(edit)
        chosen = (
            sources.select(list(by_source)) if len(by_source) < len(sources.groups) else sources
        )
        prompts = [[edit.key.target_prompt for edit in edits] for edits in by_source.values()]
        inputs = [
            [sources.groups[index].inputs_of(edit) for edit in edits]
            for index, edits in by_source.items()
        ]
        try:
            result, seconds = self._with_model(
                lambda: self._editor.edit(chosen.start, prompts, parameters, inputs)
            )
        except _NO_ROWS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, only the guilty edit fails
            if len(asked) == 1:
                return [error]
            return [
                attempt
                for half in _halves(asked)
                for attempt in self._attempts(sources, half, parameters)
            ]
        return [
            Attempt(
                parameters=parameters,
                images=AttemptImages(result.source_images[place], made.image),
                is_finite=made.is_finite,
                notes=notes_of(chosen.start, place, made) if self._makes_edits else NOT_EDITED,
                cost=ModelCost(result.unet_rows, seconds) / len(asked),
            )
            for place, of_source in enumerate(result.edits)
            for made in of_source
        ]

    def _judge_later(self, tried: Sequence[AttemptedEdit]) -> Future[list[_Judgement]] | None:
        """Starts judging the latest attempts, and returns the future answers; None without a judge.

        The answer for an attempt that is not finite is None.
        """
        judge = self._judge
        if judge is None or self._judging is None:
            return None
        candidates = [
            Candidate(each.edit.key, each.group.source_prompt, *latest.images)
            for each in tried
            if (latest := each.attempts[-1]).is_finite and latest.images is not None
        ]
        is_finite = [each.attempts[-1].is_finite for each in tried]

        def verdicts() -> list[_Judgement]:
            answers = iter(judge.judge(candidates) if candidates else ())
            return [next(answers) if finite else None for finite in is_finite]

        return self._judging.submit(verdicts)

    def _settle(self, call: _Call) -> Iterator[Result]:
        """Waits until a call is judged, retries its rejected edits, and yields the results."""
        tried = call.tried
        if call.verdicts is not None:
            tried[:] = self._retry(call.sources, _with_verdicts(tried, call.verdicts.result()))
        yield from self._results.write(tried)

    def _retry(
        self, sources: PreparedSources, tried: Sequence[AttemptedEdit]
    ) -> list[AttemptedEdit]:
        """Attempts rejected edits again until each is accepted or the ladder ends.

        Edits with equal parameters go into one call.
        """
        result = list(tried)
        while again := self._next_attempts(result):
            for parameters, places in again.items():
                asked = [(result[place].source, result[place].edit) for place in places]
                answers = self._attempts(sources, asked, parameters)
                made: dict[int, AttemptedEdit] = {}
                for place, attempt in zip(places, answers, strict=True):
                    if isinstance(attempt, Exception):
                        result[place] = result[place].with_trouble(message_of(attempt))
                    else:
                        made[place] = result[place].with_attempt(attempt)
                verdicts = self._judge_later(list(made.values()))
                assert verdicts is not None  # without a judge nothing is rejected
                judged = _with_verdicts(list(made.values()), verdicts.result())
                for place, each in zip(made, judged, strict=True):
                    result[place] = each
        return result

    def _next_attempts(self, tried: Sequence[AttemptedEdit]) -> dict[EditParameters, list[int]]:
        """The indices of the edits that are attempted again, by the parameters of that attempt."""
        ladder = self._ladder
        chosen: dict[EditParameters, list[int]] = defaultdict(list)
        for place, each in enumerate(tried):
            if ladder is None or each.trouble or each.attempts[-1].reason is None:
                continue
            parameters = ladder.next_parameters(
                each.group.parameters,
                [(a.parameters, a.reason) for a in each.attempts if a.reason is not None],
                keeps_guidance=each.group.image is None,
            )
            if parameters is not None:
                chosen[parameters].append(place)
        return chosen


def _with_verdicts(
    tried: Sequence[AttemptedEdit], verdicts: Sequence[_Judgement]
) -> list[AttemptedEdit]:
    """The edits with their latest attempts judged.

    A retry that cannot be judged does not count, and no further retry follows it.
    """
    result = []
    for each, verdict in zip(tried, verdicts, strict=True):
        *before, latest = each.attempts
        if before and not latest.is_finite:
            latest = replace(latest, trouble="latent or image is not finite")
        elif before and isinstance(verdict, Exception):
            latest = replace(latest, trouble=message_of(verdict, "the judge"))
        else:
            latest = replace(latest, judged=verdict)
        judged = replace(each, attempts=(*before, latest))
        result.append(judged.with_trouble(latest.trouble) if latest.trouble else judged)
    return result


def _halves(items: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    middle = len(items) // 2
    return items[:middle], items[middle:]
