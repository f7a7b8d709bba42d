"""ARCHITECTURE.md names every wing of the house, and only files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_house import WINGS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("floor", WINGS)
def test_every_wing_is_in_the_drawing(floor: str) -> None:
    drawing = PAGE[PAGE.index(f"    {floor}/ ") :]
    drawing = drawing[: drawing.index("\n    ───")] if "\n    ───" in drawing else drawing
    drawing = drawing[: drawing.index("\n1. ")] if "\n1. " in drawing else drawing
    assert set(re.findall(r"\w+", drawing)) >= set(WINGS[floor])


def test_the_files_on_the_path_of_a_row_are_there() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_it_is_one_page_with_twelve_lines_of_text() -> None:
    assert len(re.findall(r"^\d+\. ", PAGE, re.M)) == 12
    assert len(PAGE.split()) < 900
