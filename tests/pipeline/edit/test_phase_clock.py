"""A clocked editor makes the same edits as a plain one, and divides its time among phases."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fpe_core import Checkpoint, Editor, load_checkpoint
from pipeline.edit.phase_clock import MODEL_PHASES, ClockedEditor


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def editor(checkpoint: Checkpoint) -> ClockedEditor:
    return ClockedEditor(Editor(checkpoint))


def test_every_phase_of_an_edit_has_its_seconds_and_together_they_are_its_time(
    editor: ClockedEditor, picture: Callable[..., Image.Image]
) -> None:
    editor.take_seconds()
    rows_before, began = editor.unet_rows, time.monotonic()
    inversion = editor.invert([picture(1)])
    result = editor.edit(inversion, [["a red cat"]])
    gone = time.monotonic() - began
    seconds = editor.take_seconds()
    assert tuple(seconds) == MODEL_PHASES
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= gone
    assert editor.unet_rows - rows_before == inversion.unet_rows + result.unet_rows
    assert set(editor.take_seconds().values()) == {0.0}, "taken once"


def test_it_edits_like_any_editor(
    editor: ClockedEditor, checkpoint: Checkpoint, picture: Callable[..., Image.Image]
) -> None:
    plain = Editor(checkpoint)
    pictures = [
        each.edit(each.invert([picture(1)]), [["a red cat"]]).edits[0][0].image
        for each in (plain, editor)
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_the_autoencoder_alone_is_encoding_and_decoding(
    editor: ClockedEditor, checkpoint: Checkpoint, picture: Callable[..., Image.Image]
) -> None:
    editor.take_seconds()
    editor.through_autoencoder([picture(1)], checkpoint.default_parameters)
    seconds = editor.take_seconds()
    assert seconds["encode"] > 0
    assert seconds["decode"] > 0
    assert (seconds["invert"], seconds["sample"]) == (0.0, 0.0)


def test_a_call_that_raises_is_timed_and_its_rows_are_counted(
    editor: ClockedEditor, checkpoint: Checkpoint, picture: Callable[..., Image.Image]
) -> None:
    inversion = editor.invert([picture(1)])
    calls = 0

    def fail_late(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("in the third step")

    editor.take_seconds()
    rows_before = editor.unet_rows
    hook = checkpoint.unet.get_submodule("conv_in").register_forward_hook(fail_late)
    try:
        with pytest.raises(RuntimeError, match="third step"):
            editor.edit(inversion, [["a red cat"]])
    finally:
        hook.remove()
    assert editor.take_seconds()["sample"] > 0
    assert editor.unet_rows > rows_before
