from __future__ import annotations

import pytest
import torch

from fpe_core import RowsOutOfMemoryError
from fpe_core.rows import RowLimit, is_out_of_memory, rows_that_fit


def test_chunks_cover_everything_once_and_in_order():
    limit = RowLimit(3)
    chunks = []

    def evaluate(first: int, last: int) -> torch.Tensor:
        chunks.append((first, last))
        return torch.arange(first, last)

    assert limit.map(8, evaluate).tolist() == list(range(8))
    assert chunks == [(0, 3), (3, 6), (6, 8)]
    assert limit.evaluated == 8


def test_the_limit_halves_until_it_fits_and_stays_there():
    limit = RowLimit(16)

    def evaluate(first: int, last: int) -> torch.Tensor:
        if last - first > 4:
            raise torch.OutOfMemoryError("on purpose")
        return torch.arange(first, last)

    assert limit.map(10, evaluate).tolist() == list(range(10))
    assert limit.rows <= 4
    assert limit.evaluated == 10


def test_one_row_too_many():
    def evaluate(_first: int, _last: int) -> torch.Tensor:
        raise MemoryError

    limit = RowLimit(8)
    with pytest.raises(RowsOutOfMemoryError):
        limit.map(8, evaluate)
    assert limit.rows == 8, "one input that never fits does not slow the others down"


def test_other_errors_are_not_taken_for_memory():
    def evaluate(_first: int, _last: int) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        RowLimit(8).map(8, evaluate)


def test_the_cpu_allocator_s_real_error_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_first_limit_from_memory():
    cpu = torch.device("cpu")
    assert rows_that_fit(cpu, 10**15, 4, 1.0) == 2
    assert rows_that_fit(cpu, 1, 4, 1.0) == 128
    assert rows_that_fit(cpu, 10**6, 4, 1.0) >= rows_that_fit(cpu, 10**6, 4, 0.25)
