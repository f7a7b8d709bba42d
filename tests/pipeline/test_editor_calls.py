"""How edits are divided among calls of the editor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.editor_calls import EDITS_PER_CALL, call_by_call, calls_of_source, edits_per_call

SIZES = st.lists(st.integers(1, 40), max_size=30)


def test_the_larger_the_images_the_fewer_are_in_a_call() -> None:
    assert [edits_per_call(size, size) for size in (64, 256, 512)] == [EDITS_PER_CALL] * 3
    assert edits_per_call(1024, 1024) == 32
    assert edits_per_call(2048, 1024) == 16
    assert edits_per_call(8192, 8192) == 1


@given(SIZES, st.integers(1, 16))
def test_every_edit_is_in_one_call_and_no_call_is_too_large(sizes: list[int], most: int) -> None:
    calls = list(call_by_call(sizes, range(len(sizes)), most))
    made = [(index, edit) for call in calls for index, part in call for edit in part]
    assert made == [(index, edit) for index, size in enumerate(sizes) for edit in range(size)]
    assert all(1 <= sum(len(part) for _, part in call) <= most for call in calls)


@given(SIZES, st.integers(1, 16))
def test_only_sources_that_fit_in_no_call_are_divided(sizes: list[int], most: int) -> None:
    calls = list(call_by_call(sizes, range(len(sizes)), most))
    for index, size in enumerate(sizes):
        parts = [len(part) for call in calls for i, part in call if i == index]
        assert len(parts) == calls_of_source(size, most) == -(-size // most)
        assert max(parts) - min(parts) <= 1


def test_small_sources_share_calls() -> None:
    assert list(call_by_call([3, 3, 3, 9, 1], [0, 1, 2, 3, 4], 6)) == [
        [(0, range(3)), (1, range(3))],
        [(2, range(3))],
        [(3, range(4))],
        [(3, range(4, 9))],
        [(4, range(1))],
    ]


def test_only_the_chosen_sources_are_taken() -> None:
    assert list(call_by_call([1, 1, 1], [0, 2], 6)) == [[(0, range(1)), (2, range(1))]]
