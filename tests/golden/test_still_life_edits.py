"""The built-in model really edits: colours become what was asked for, in place, the rest stays.

The judge knows the true answer of every edit (`fpe_core.still_life.measure`; that it fails pictures
which were left as they were is tested beside it). The bounds are what the shipped model reaches on
48 scenes, 48 of 48 and 30.6 dB, less a margin for eight.
"""

from __future__ import annotations

import pytest

from fpe_core import Editor, load_checkpoint
from fpe_core.still_life.measure import Figures, measure

SEEDS = range(300, 308)


@pytest.fixture(scope="module", params=["colour", "background"])
def figures(request: pytest.FixtureRequest) -> Figures:
    editor = Editor(load_checkpoint("builtin:still-life", device="cpu"))
    return measure(editor, request.param, SEEDS)


def test_edits_show_what_was_asked_for(figures: Figures) -> None:
    assert figures.obeyed >= 0.8


def test_objects_keep_their_shape(figures: Figures) -> None:
    assert figures.shape_kept >= 0.8


def test_what_should_not_change_stays(figures: Figures) -> None:
    assert figures.outside_psnr_db >= 27.0
