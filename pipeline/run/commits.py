"""Buffers the outcomes of a run, commits them to the ledger every few seconds, and counts them.

After a commit the memory of the outcomes is returned to the operating system. Small objects that
stay (ids of edits, Ray's records of blocks) lie between the freed ones, and glibc keeps such
fragments: without this, a driver's memory would grow with the number of edits.
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
    """Receives the progress of a run."""

    def start(self, total: int, done: int) -> None: ...
    def advance(self, outcomes_table: pa.Table) -> None: ...
    def finish(self) -> None: ...


class Commits:
    """Takes the outcomes of a plan as they arrive, and commits them to the ledger.

    Attributes:
        plan: the plan of the current round.
        totals: the counts of the run, over all of its rounds.
        groups_done: ids of the plan's groups whose outcomes have arrived.
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
        """`requests`: the requests that this process had sent to stores when the run began."""
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
        """Starts the progress display of the plan."""
        self._progress.start(self.plan.edits_done + self.plan.edits_pending, self.plan.edits_done)

    def finish_progress(self) -> None:
        """Ends the progress display, whether the plan is complete or not."""
        self._progress.finish()

    def next_round(self, plan: Plan) -> None:
        """Goes on with the plan of the next round, in which all earlier outcomes count as done."""
        self.totals.next_round()
        self.plan = plan
        self.groups_done = IdSet()  # the same sources are edited again, with other prompts

    @property
    def left(self) -> int:
        """How many edits of the plan have no outcome yet."""
        return self.totals.left(self.plan)

    @property
    def is_due(self) -> bool:
        """Whether it is time to commit: enough outcomes arrived, or the last commit is long ago."""
        is_late = time.monotonic() - self._committed_at >= COMMIT_INTERVAL_S
        return is_late or sum(map(len, self._arrived)) >= COMMIT_EDITS

    def take(self, table: pa.Table) -> None:
        """Buffers and counts the outcomes of a block. A column `worker` is optional."""
        self.totals.add(table)
        outcomes = as_outcomes(table)
        self._arrived.append(outcomes)
        self.groups_done.update(outcomes["group_id"].to_pylist())
        self._metrics.arrived(self.left, len(self._arrived))
        self._progress.advance(outcomes)

    def commit(self) -> None:
        """Commits the buffered outcomes to the ledger. May be called from any thread.

        Raises LeaseError, LedgerError and StorageError; outcomes not committed stay buffered.
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
    """Returns memory that this process has freed to the operating system, in a few milliseconds.

    If the C library is not glibc, only Arrow's memory is returned.
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
