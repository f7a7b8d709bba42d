"""The gate with Stable Diffusion XL's shapes: all arms agree, and mistakes are far off."""

from __future__ import annotations

from jobs.bench.speed.sweep import check
from tests.jobs.bench.speed.test_results import settings_of


def test_arms_agree_on_a_small_xl() -> None:
    """Against the authors' procedure and a plain diffusers loop, with two sources of two edits."""
    checked = check("micro-xl", settings_of())
    assert checked.ok
    assert checked.checkpoint.is_told_sizes
    assert {each.name for each in checked.gate} >= {"B", "C", "D"}
    wrong = [each for each in checked.gate if each.is_control]
    assert len(wrong) == 4
