"""How many rows go through a network at once: as many as memory allows, halved when it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fpe_core.device import free_memory_bytes, is_out_of_memory
from fpe_core.errors import RowsOutOfMemoryError
from fpe_core.unet.row_memory import row_bytes

_log = logging.getLogger(__name__)

# Past this many rows a device is busy anyway, and smaller chunks keep latencies and peaks low.
_MOST_ROWS = 128


class RowLimit:
    """A limit on rows per call of a network that halves itself on out-of-memory.

    Attributes:
        rows: the current limit, >= 1. Lowered when memory runs out, and kept there if that helped.
        evaluated: rows evaluated so far; a call that ran out of memory does not count.
    """

    def __init__(self, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"a row limit must be at least 1, got {rows}")
        self.rows = rows
        self.evaluated = 0

    def map(self, count: int, evaluate: Callable[[int, int], Tensor]) -> Tensor:
        """`evaluate(first, last)` over 0..count in chunks of at most `rows`, concatenated.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """
        chunks: list[Tensor] = []
        done = 0
        rows_before = self.rows
        while done < count:
            last = min(done + self.rows, count)
            try:
                chunks.append(evaluate(done, last))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if last - done <= 1:
                    self.rows = rows_before  # this input is too large, whatever the limit
                    raise RowsOutOfMemoryError(
                        "one row alone does not fit into the device's memory; use a smaller "
                        "size_px, a narrower dtype or a larger device"
                    ) from error
                self._halve(last - done)
                continue
            self.evaluated += last - done
            done = last
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def _halve(self, tried: int) -> None:
        self.rows = max(1, tried // 2)
        _log.warning("out of memory with %d rows; going on with %d", tried, self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def rows_that_fit(
    device: torch.device, widest_map_elements: int, element_bytes: int, memory_share: float
) -> int:
    """The row limit to start with, from the memory that this process may use now.

    Args:
        device: where the network lives.
        widest_map_elements: elements of the largest feature map of one row.
        element_bytes: bytes of one of them.
        memory_share: the share of the device's memory that this process may use, 0..1; below 1 if
            several processes share the device. On a GPU it is a share of the total memory, so that
            the first process leaves the others their part; elsewhere of the free memory.
    """
    free_bytes = free_memory_bytes(device, memory_share)
    of_a_row = row_bytes(widest_map_elements, element_bytes)
    return max(2, min(_MOST_ROWS, int(free_bytes * 0.6 // of_a_row)))
