"""One source with many prompts: inverted once, edited in several calls, and not all in memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fpe_core import EditResult, checkpoint_fingerprint
from fpe_core.judging.retry_ladder import Change, RetryLadder
from fpe_core.judging.rules import RejectReason, Rules
from pipeline import editor_calls
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.judge.judge import JudgeSettings
from pipeline.pixel_budget import PixelBudget
from pipeline.plan.group_shape import GroupShape
from pipeline.read.decode import DecodeSettings, decode
from pipeline.write.metadata import MetadataLayout
from tests.builders.work_rows import PARAMETERS, work_row, work_table
from tests.faults.peak_memory import is_measurable

ROOT = Path(__file__).parents[3]
MOST = 6
EDITS = 2 * MOST + 3


@pytest.fixture
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of `MOST` edits, instead of 64."""
    monkeypatch.setattr(editor_calls, "EDITS_PER_CALL", MOST)


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> EditSettings:
    return EditSettings(
        output=str(tmp_path / "run"),
        checkpoint=str(tiny_checkpoint),
        checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
        device="cpu",
    )


@pytest.fixture
def block(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> Any:
    """block(n, options): a decoded source with n prompts."""

    def make(edits: int, **options: Any) -> Any:
        targets = [f"a cat {number}" for number in range(edits)]
        row = work_row(0, image_bytes=png(picture(0)), targets=targets, **options)
        return decode(work_table([row]), DecodeSettings())

    return make


class Spy:
    """A real editor, with what is asked of it and how many of its images are still in memory."""

    def __init__(self, editor: Any) -> None:
        self._editor = editor
        self.inverted = 0
        self.calls: list[int] = []
        self.images_before: list[int] = []
        self._images: list[weakref.ref[Image.Image]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._editor, name)

    def invert(self, images: Any, *args: Any, **named: Any) -> Any:
        self.inverted += len(images)
        return self._editor.invert(images, *args, **named)

    def edit(self, sources: Any, prompts: Sequence[Sequence[str]], *others: Any) -> EditResult:
        gc.collect()
        self.images_before.append(sum(each() is not None for each in self._images))
        self.calls.append(sum(map(len, prompts)))
        result: EditResult = self._editor.edit(sources, prompts, *others)
        self._images += [weakref.ref(each.image) for of in result.edits for each in of]
        return result


@pytest.mark.usefixtures("small_calls")
def test_a_source_with_many_prompts_is_inverted_once_and_edited_in_calls(
    settings: EditSettings, block: Any
) -> None:
    actor = EditActor(settings)
    spy = Spy(actor._editor)
    actor._editor = spy
    outcomes = actor(block(EDITS))
    assert outcomes["outcome"].to_pylist() == ["accepted"] * EDITS
    assert spy.inverted == 1
    assert len(spy.calls) == 3
    assert max(spy.calls) <= MOST
    assert sum(spy.calls) == EDITS
    shape = GroupShape.of(PARAMETERS, EDITS, synthetic=False)
    assert shape.calls == len(spy.calls)
    assert sum(outcomes["unet_rows"].to_pylist()) == pytest.approx(shape.unet_rows)
    assert len(list(Path(settings.output).glob("*/edited/*"))) == EDITS
    assert len(list(Path(settings.output).glob("*/source/*"))) == 1, "once, not once a call"


@pytest.mark.usefixtures("small_calls")
def test_a_synthetic_source_is_sampled_in_every_call_and_written_once(
    settings: EditSettings,
) -> None:
    targets = [f"a cat {number}" for number in range(MOST + 1)]
    row = work_row(0, source_prompt="a dog", seed=3, targets=targets)
    outcomes = EditActor(settings)(decode(work_table([row]), DecodeSettings()))
    shape = GroupShape.of(PARAMETERS, len(targets), synthetic=True)
    assert sum(outcomes["unet_rows"].to_pylist()) == pytest.approx(shape.unet_rows)
    assert len(list(Path(settings.output).glob("*/source/*"))) == 1


@pytest.mark.usefixtures("small_calls")
@pytest.mark.parametrize("is_judged", [False, True])
def test_images_are_dropped_call_by_call_retries_too(
    settings: EditSettings, block: Any, is_judged: bool
) -> None:
    """A slow store holds up the editor, instead of filling the memory."""
    if is_judged:
        never = Rules.from_dict(
            {"other": [{"score": "changed_share", "at_least": 2.0, "reason": "no_change"}]}
        )
        changes = tuple(Change(replaced_fraction=share) for share in (0.0, 0.4, 0.8))
        judge = JudgeSettings(
            clip=None,
            structure=None,
            scores=("changed_share",),
            rules=never,
            ladder=RetryLadder({RejectReason.NO_CHANGE: changes}, most=3),
        )
        settings = replace(settings, judge=judge, layout=MetadataLayout(judged=True))
    actor = EditActor(settings)
    actor._being_written = PixelBudget(1)
    spy = Spy(actor._editor)
    actor._editor = spy
    edits = 4 * MOST
    outcomes = actor(block(edits, parameters=replace(PARAMETERS, steps=1)))
    assert set(outcomes["outcome"].to_pylist()) == {"rejected" if is_judged else "accepted"}
    # Of two calls the first attempts, of one the latest retry and the one that follows.
    most = (4 if is_judged else 1) * MOST + 1
    assert max(spy.images_before) <= most
    assert sum(spy.calls) == edits * (4 if is_judged else 1)


class _HeldUp(Spy):
    """Does not begin its second call before a file of the first one is there."""

    def __init__(self, editor: Any, folder: Path) -> None:
        super().__init__(editor)
        self._folder = folder

    def edit(self, *args: Any) -> EditResult:
        until = threading.Event()
        for _ in range(6000 if self.calls else 0):
            if any(self._folder.glob("*/edited/*")):
                break
            until.wait(0.01)
        else:
            assert not self.calls, "what was made should be written while more is made"
        return super().edit(*args)


def test_the_first_of_two_thousand_files_is_there_before_a_twentieth(
    settings: EditSettings, block: Any
) -> None:
    actor = EditActor(replace(settings, makes_edits=False, checkpoint_fingerprint="none"))
    spy = _HeldUp(actor._editor, Path(settings.output))
    actor._editor = spy
    outcomes = actor(block(2000))
    assert outcomes["outcome"].to_pylist() == ["accepted"] * 2000
    assert spy.calls[0] <= 2000 / 20


def measured(folder: Path, prompts: int, size_px: int) -> dict[str, int]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.builders.edit_memory",
            str(folder),
            str(prompts),
            str(size_px),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    said: dict[str, int] = json.loads(done.stdout)
    return said


@pytest.mark.skipif(not is_measurable, reason="Linux only")
def test_memory_is_bounded_by_pixels_and_not_by_prompts(tmp_path: Path) -> None:
    """700 images of 512 px take 734 MB; two calls of 64 and the 64 megapixels that may wait to be
    written take 400 MB."""
    said = measured(tmp_path / "run", 700, 512)
    assert (said["accepted"], said["files"]) == (700, 701)
    assert said["peak_bytes"] < 500e6


@pytest.mark.endurance
@pytest.mark.skipif(not is_measurable, reason="Linux only")
def test_ten_thousand_prompts_of_one_source_stay_under_four_gigabytes(tmp_path: Path) -> None:
    """At 512 px. All of the images together take 10 GB."""
    said = measured(tmp_path / "run", 10_000, 512)
    assert (said["accepted"], said["files"]) == (10_000, 10_001)
    assert said["peak_bytes"] < 1.5e9
    assert said["edits_at_first_file"] <= 10_000 / 20
