"""Work on a pool: results in order, few items ahead, errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.in_order import in_order


def test_results_come_in_order_and_few_items_are_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1, 101):
            taken = number
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, lambda item: -item, items(), ahead=5)
        assert next(results) == -1
        assert taken == 5
        assert list(results) == [-item for item in range(2, 101)]


def test_items_are_worked_on_side_by_side() -> None:
    """Each waits for the other three."""
    meeting = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(in_order(pool, lambda _: meeting.wait(60), range(4), ahead=4)) == [0, 1, 2, 3]


def test_an_error_is_raised_where_its_item_was() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, lambda item: 1 // item, [1, 1, 0, 1], ahead=3)
        assert [next(results), next(results)] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
