"""Pixels in memory are limited; whoever comes first is served first; a large image goes alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from pipeline.pixel_budget import PixelBudget

MOST = 100


@given(st.lists(st.integers(0, 2 * MOST), min_size=1, max_size=60), st.integers(1, 8))
def test_no_more_is_held_than_the_budget_or_one_image(sizes: list[int], threads: int) -> None:
    budget, held, seen, guard = PixelBudget(MOST), [], [], threading.Lock()

    def work(pixels: int) -> None:
        with budget.hold(pixels):
            with guard:
                held.append(pixels)
                seen.append(list(held))
            with guard:
                held.remove(pixels)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, sizes))
    assert len(seen) == len(sizes)
    for at_once in seen:
        others = [pixels for pixels in at_once if pixels]
        assert sum(others) <= MOST or len(others) == 1


def test_small_images_are_held_side_by_side() -> None:
    budget, all_there = PixelBudget(MOST), threading.Barrier(4, timeout=60)

    def work(pixels: int) -> None:
        with budget.hold(pixels):
            all_there.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [MOST // 4] * 4))


def test_a_large_image_is_not_overtaken() -> None:
    """A small one that would fit waits behind it, so it gets its turn."""
    budget, order = PixelBudget(MOST), []
    budget.take(MOST // 2)

    def work(name: str, pixels: int) -> None:
        with budget.hold(pixels):
            order.append(name)

    large = threading.Thread(target=work, args=("large", 2 * MOST))
    large.start()
    while not budget._waiting:
        pass
    small = threading.Thread(target=work, args=("small", 1))
    small.start()
    while len(budget._waiting) < 2:
        pass
    assert order == []
    budget.give_back(MOST // 2)
    large.join(60)
    small.join(60)
    assert order == ["large", "small"]


def test_an_error_frees_the_room() -> None:
    budget = PixelBudget(MOST)
    try:
        with budget.hold(MOST):
            raise ValueError
    except ValueError:
        pass
    budget.take(MOST)
