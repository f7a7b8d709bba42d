"""How well a source is reconstructed: what is measured, what it costs, and when it is refused."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from fpe_core import Checkpoint, Editor, EditParameters, psnr_db
from fpe_core.judging.reconstruction import ReconstructionLimits, measure_autoencoder
from fpe_core.judging.rules import RejectReason
from fpe_core.unet.row_limit import RowLimit

SMALL = EditParameters(steps=3, guidance_scale=2.0, width_px=64, height_px=64)


@pytest.fixture
def editor(tiny: Checkpoint) -> Editor:
    return Editor(tiny)


def test_the_figure_is_that_of_what_an_inversion_begins_with(
    editor: Editor, photos: list[Image.Image]
) -> None:
    inversion = editor.invert(photos, None, SMALL)
    before = editor.unet_rows
    found = measure_autoencoder(editor, inversion.images, SMALL)
    assert editor.unet_rows == before, "no UNet row"
    decoded, _ = editor.autoencoder.decode(inversion.trajectory[:, 0], RowLimit(16))
    assert list(found) == psnr_db(inversion.images, decoded)
    assert measure_autoencoder(editor, [], SMALL) == ()


def test_the_limit_is_an_allowed_value_and_the_verdict_has_both_figures() -> None:
    limits = ReconstructionLimits(20.0)
    for allowed in (20.0, math.inf, None):
        assert limits.verdict(allowed).is_accepted
    verdict = limits.verdict(19.94)
    assert verdict.reason == RejectReason.SOURCE_NOT_RECONSTRUCTED
    assert "autoencoder 19.9 dB, less than 20" in verdict.message
    assert not limits.verdict(math.nan).is_accepted


def test_without_a_limit_nothing_is_refused() -> None:
    assert not ReconstructionLimits().is_on
    assert ReconstructionLimits(0.0).is_on
    for figure in (0.0, math.nan, None):
        assert ReconstructionLimits().verdict(figure).is_accepted
