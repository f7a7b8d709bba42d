from __future__ import annotations

import pytest
import torch

from fpe_core import RowsOutOfMemoryError
from fpe_core.device import is_out_of_memory
from fpe_core.unet.row_limit import RowLimit, rows_that_fit


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


GIB = 2**30
ROW_ELEMENTS = GIB // (4 * 48)
"""Elements of the widest map of a row that takes a gibibyte at its peak."""


@pytest.mark.parametrize(
    ("share", "free", "held", "kept", "rows"),
    [
        (1.0, 78, 2, 0, 46),  # of 80 all but the model, and of that 0.6
        (0.5, 78, 2, 0, 22),  # the first of two processes: of 40
        (0.5, 38, 2, 0, 22),  # the second, which finds half of it taken, may have as much
        (0.5, 10, 2, 0, 6),  # no more than is free
        (0.5, 10, 2, 5, 9),  # or kept by torch for its next tensors
        (0.1, 60, 9, 0, 2),  # its share is used up
    ],
)
def test_processes_on_one_gpu_have_equal_shares(
    monkeypatch: pytest.MonkeyPatch, share: float, free: int, held: int, kept: int, rows: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: (held + kept) * GIB)
    assert rows_that_fit(torch.device("cuda"), ROW_ELEMENTS, 4, share) == rows
