"""The outcomes of a run on their way into the ledger: buffered, committed, counted.

Every few seconds what has arrived is entered into the ledger, and then the memory that it took is
given back to the system. Between what stays (ids of edits, Ray's records of blocks) a commit leaves
holes, which glibc keeps: without this a driver grows with the edits that go through it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

import pyarrow as pa

from pipeline.ledger.id_set import IdSet
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import as_outcomes
from pipeline.plan.plan import Plan
from pipeline.run.metrics import RunMetrics
from pipeline.run.stats import RunTotals
from pipeline.storage.requests import RequestCounts, request_counts
from pipeline.supervision.supervisor import merged

COMMIT_INTERVAL_S = 5.0
COMMIT_EDITS = 2000


class ProgressSink(Protocol):
    """Is informed of how far a run is."""

    def start(self, total: int, done: int) -> None: ...
    def advance(self, outcomes_table: pa.Table) -> None: ...
    def finish(self) -> None: ...


class Commits:
    """Takes the outcomes of a plan as they arrive, and enters them into the ledger.

    Attributes:
        plan: whose outcomes arrive.
        totals: of the run, over all of its plans.
        groups_done: ids of the groups of the plan of which outcomes have arrived.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        totals: RunTotals,
        *,
        metrics: RunMetrics,
        progress: ProgressSink,
        requests: RequestCounts,
    ) -> None:
        """`requests`: what this process had asked of stores when the run began."""
        self.plan = plan
        self.totals = totals
        self.groups_done = IdSet()
        self._ledger = ledger
        self._metrics = metrics
        self._progress = progress
        self._arrived: list[pa.Table] = []
        self._committed_at = time.monotonic()
        self._committing = threading.Lock()
        self._requests = requests

    def start_progress(self) -> None:
        """The progress of the plan begins."""
        self._progress.start(self.plan.edits_done + self.plan.edits_pending, self.plan.edits_done)

    def finish_progress(self) -> None:
        """The progress of the plan ends, complete or not."""
        self._progress.finish()

    def next_round(self, plan: Plan) -> None:
        """From now on outcomes are of another plan, which knows of all that arrived before."""
        self.totals.next_round()
        self.plan = plan
        self.groups_done = IdSet()  # the same sources are edited again, with other prompts

    @property
    def left(self) -> int:
        """Edits of the plan without an outcome."""
        return self.totals.left(self.plan)

    @property
    def is_due(self) -> bool:
        """Whether enough has arrived, or waited long enough, to be committed."""
        is_late = time.monotonic() - self._committed_at >= COMMIT_INTERVAL_S
        return is_late or sum(map(len, self._arrived)) >= COMMIT_EDITS

    def take(self, table: pa.Table) -> None:
        """Buffers the outcomes of a block, with their worker where there was one."""
        self.totals.add(table)
        outcomes = as_outcomes(table)
        self._arrived.append(outcomes)
        self.groups_done.update(outcomes["group_id"].to_pylist())
        self._metrics.arrived(self.left, len(self._arrived))
        self._progress.advance(outcomes)

    def commit(self) -> None:
        """Enters what has arrived into the ledger: now it is done. From any thread.

        Raises LeaseError, LedgerError and StorageError; what was not entered stays buffered.
        """
        with self._committing:
            arrived, began = [*self._arrived], time.monotonic()
            if arrived:
                added = self._ledger.commit(pa.concat_tables(arrived))
                del self._arrived[: len(arrived)]
                self._metrics.committed(added)
                self._metrics.arrived(self.left, len(self._arrived))
                self._count_commit(added.num_rows, time.monotonic() - began)
                give_back_memory()
            self._committed_at = time.monotonic()

    def _count_commit(self, rows: int, seconds: float) -> None:
        requests, self._requests = request_counts() - self._requests, request_counts()
        figures = {"rows": rows, "seconds": seconds, **asdict(requests)}
        self.totals.stages = merged(self.totals.stages, {"commit": figures})
        self._metrics.spent({"commit": figures})


def give_back_memory() -> None:
    """Gives memory that this process has freed back to the system. Takes some milliseconds.

    If the C library is not glibc, this is done for Arrow's memory only.
    """
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return trim
