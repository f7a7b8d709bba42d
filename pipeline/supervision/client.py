"""What workers and the driver call: a client of the supervisor, which runs as a Ray actor."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import TooManyFailuresError
from pipeline.logs import LogSettings, about, log_to_stderr
from pipeline.supervision.supervisor import Orders, Oversight, StageFigures, Supervisor, Worker
from pipeline.supervision.watchdog import TimeLimits, Watchdog

ANSWER_TIMEOUT_S = 10.0
_REPORT_INTERVAL_S = 0.25
"""Time between two reports of the UNet rows that a block has cost so far. Rows since the last
report are lost in a crash, but never more than half of all: a report is also sent whenever their
number has doubled."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisorClient:
    """What workers and the driver call to reach the supervisor. Small and picklable."""

    actor: Any
    limits: TimeLimits
    logs: LogSettings = field(default_factory=LogSettings)

    @contextmanager
    def block(
        self,
        stage: str,
        groups: Sequence[bytes],
        figures: Callable[[], StageFigures] = dict,
        *,
        is_watched: bool = True,
    ) -> Iterator[Oversight]:
        """Reports that this worker processes a block in this context, and watches its progress.

        `figures` is called at the end and returns what the block cost. If the context raises, the
        supervisor keeps the block as in progress: the worker that begins it next learns from its
        orders that an earlier worker died with it.
        """
        log_to_stderr(self.logs, stage)
        worker, watchdog = _this_worker(), Watchdog(self.limits)
        orders = ray.get(self.actor.begin.remote(stage, worker, groups))
        if orders.is_stopping:
            yield _RayOversight(orders, watchdog, partial(self._focus, stage, worker))
            return
        one = {"group_id": groups[0]} if len(groups) == 1 and stage != "load" else {}
        _log.info("began a block of %d", len(groups), extra=about(groups=len(groups), **one))
        with watchdog.watching(len(groups)) if is_watched else nullcontext():
            focus, report = partial(self._focus, stage, worker), partial(self._report, worker)
            yield _RayOversight(orders, watchdog, focus, report)
        cost = figures()
        ray.get(self.actor.end.remote(stage, worker, cost))
        of_block = about(groups=len(groups), figures=cost, **one)
        _log.info("ended a block of %d", len(groups), extra=of_block)

    def is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        """`Supervisor.is_suspect`."""
        return bool(ray.get(self.actor.is_suspect.remote(stage, groups)))

    def number_in(self, pool: int, member: str) -> int:
        """`Supervisor.number_in`."""
        return int(ray.get(self.actor.number_in.remote(pool, member)))

    def _focus(self, stage: str, worker: Worker, groups: Sequence[bytes]) -> None:
        ray.get(self.actor.focus.remote(stage, worker, groups))

    def _report(self, worker: Worker, unet_rows: int) -> None:
        self.actor.report.remote(worker, unet_rows)  # does not wait for the call to arrive

    def stop(self, stage: str) -> frozenset[bytes]:
        """Stops workers from beginning blocks; returns the groups that a stage is processing."""
        self.actor.stop.remote()  # Ray keeps the order of one caller's calls
        in_progress = ray.get(self.actor.in_progress.remote(stage), timeout=ANSWER_TIMEOUT_S)
        return frozenset(in_progress)

    def raise_if_too_many_deaths(self) -> None:
        """Raises TooManyFailuresError if too many workers in a row have died."""
        if self._ask(self.actor.has_too_many_deaths, default=False):
            raise TooManyFailuresError(
                "stopped: one worker after the other died while it processed a block "
                "(failures.max_in_a_row). Is there enough memory for the model? The workers' logs "
                "are in Ray's session folder. What had arrived is committed; fix the cause and "
                "start the same command again."
            )

    def figures(self) -> StageFigures:
        """`Supervisor.figures`; {} if it does not answer."""
        figures: StageFigures = self._ask(self.actor.figures, default={})
        return figures

    def poll(self) -> tuple[StageFigures, StageFigures] | None:
        """`Supervisor.state`; None, without a warning, if it does not answer."""
        try:
            figures, queues = ray.get(self.actor.state.remote(), timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayError:
            return None
        return figures, queues

    def deaths(self) -> float:
        """Workers that have died so far while they processed a block."""
        return sum(of.get("worker_deaths", 0.0) for of in self.figures().values())

    @staticmethod
    def _ask(method: Any, *, default: Any) -> Any:
        try:
            return ray.get(method.remote(), timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            _log.warning("the supervisor does not answer: %s", error)
            return default


class _RayOversight:
    def __init__(
        self,
        orders: Orders,
        watchdog: Watchdog,
        focus: Callable[[Sequence[bytes]], None],
        report: Callable[[int], None] = lambda _rows: None,
    ) -> None:
        self.orders = orders
        self._watchdog = watchdog
        self._focus = focus
        self._report = report
        self._reported_at, self._reported_rows = 0.0, 0

    @contextmanager
    def focus(self, groups: Sequence[bytes]) -> Iterator[None]:
        self._focus(groups)
        if self.orders.is_careful:
            self._watchdog.limit(len(groups))
        yield
        if self.orders.is_careful:
            self._watchdog.limit(1)
        self._focus([])

    def alive(self) -> None:
        self._watchdog.feed()

    def made(self, unet_rows: int) -> None:
        now = time.monotonic()
        is_late = now - self._reported_at >= _REPORT_INTERVAL_S
        if is_late or unet_rows > 2 * self._reported_rows:
            self._reported_at, self._reported_rows = now, unet_rows
            self._report(unet_rows)


class _LoggingSupervisor(Supervisor):
    """A supervisor that writes its log like a worker, in the format of the run."""

    def __init__(self, logs: LogSettings, most_deaths_in_a_row: int) -> None:
        log_to_stderr(logs, "supervise")
        super().__init__(is_node_alive, most_deaths_in_a_row)


@contextmanager
def supervision(
    limits: TimeLimits, most_deaths_in_a_row: int, logs: LogSettings | None = None
) -> Iterator[SupervisorClient]:
    """Runs a supervisor as a Ray actor for the length of the context.

    It is pinned to the driver's machine, which exists as long as the driver. (With `soft=True` Ray
    could place it on another machine, and its state would be lost with that one.)
    """
    logs = logs or LogSettings()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = (
        ray.remote(_LoggingSupervisor)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(logs, most_deaths_in_a_row)
    )
    try:
        yield SupervisorClient(actor, limits, logs)
    finally:
        ray.kill(actor)


def is_node_alive(node_id: str) -> bool:
    """Whether Ray reports a machine as alive."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["NodeID"] == node_id and node["Alive"] for node in nodes)


def _this_worker() -> Worker:
    node = ray.get_runtime_context().get_node_id()
    return Worker(f"{socket.gethostname()}:{os.getpid()}", node, threading.get_ident())
