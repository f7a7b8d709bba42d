"""What workers and the driver call: a client of the supervisor, which runs as a Ray actor."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import SupervisorLostError, TooManyFailuresError
from pipeline.logs import LogSettings, about, log_to_stderr
from pipeline.supervision.supervisor import Orders, Oversight, StageFigures, Supervisor, Worker
from pipeline.supervision.watchdog import TimeLimits, Watchdog

ANSWER_TIMEOUT_S = 120.0
"""How long a worker or the driver waits for an answer, also while the supervisor starts."""
_POLL_TIMEOUT_S = 10.0
_REPORT_INTERVAL_S = 0.25
"""Time between two reports of the UNet rows that a block has cost so far. Rows since the last
report are lost in a crash, but never more than half of all: a report is also sent whenever their
number has doubled."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisorClient:
    """What workers and the driver call to reach the supervisor. Small and picklable.

    `of_pass`: the pass of the workers that have it; None: not of a pass.
    """

    actor: Any
    limits: TimeLimits
    logs: LogSettings = field(default_factory=LogSettings)
    of_pass: int | None = None

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

        Raises SupervisorLostError, but not at the end: what is done is done.
        """
        log_to_stderr(self.logs, stage)
        worker, watchdog = _this_worker(), Watchdog(self.limits)
        orders: Orders = self._ask(self.actor.begin, stage, worker, groups, self.of_pass)
        if orders.is_stopping or orders.is_handed_on or orders.left_out:
            yield _RayOversight(orders, watchdog, partial(self._focus, stage, worker))
            return
        one = {"group_id": groups[0]} if len(groups) == 1 and stage != "load" else {}
        _log.info("began a block of %d", len(groups), extra=about(groups=len(groups), **one))
        with watchdog.watching(len(groups)) if is_watched else nullcontext():
            focus, report = partial(self._focus, stage, worker), partial(self._report, worker)
            yield _RayOversight(orders, watchdog, focus, report)
        cost = figures()
        try:
            self._ask(self.actor.end, stage, worker, cost)
        except SupervisorLostError as error:
            _log.warning("%s", error)
        of_block = about(groups=len(groups), figures=cost, **one)
        _log.info("ended a block of %d", len(groups), extra=of_block)

    def is_suspect(self, stage: str, groups: Sequence[bytes]) -> bool:
        """`Supervisor.is_suspect`."""
        return bool(self._ask(self.actor.is_suspect, stage, groups))

    def number_in(self, pool: int, member: str) -> int:
        """`Supervisor.number_in`."""
        return int(self._ask(self.actor.number_in, pool, member))

    def begin_pass(self, workers: int) -> SupervisorClient:
        """The client for the workers of a new pass, see `Supervisor.begin_pass`."""
        return replace(self, of_pass=int(self._ask(self.actor.begin_pass, workers)))

    def device_failed(self, error: str) -> None:
        """`Supervisor.device_failed`, called by a worker for itself."""
        self._ask(self.actor.device_failed, _this_worker(), error)

    def leave_out(self, member: bytes, reason: str) -> bool:
        """`Supervisor.leave_out`, called by a worker for itself."""
        return bool(self._ask(self.actor.leave_out, _this_worker(), member, reason))

    def stand_by(self, member: bytes) -> str | None:
        """`Supervisor.stand_by`."""
        answer: str | None = self._ask(self.actor.stand_by, member)
        return answer

    def left_out(self) -> list[str]:
        """`Supervisor.left_out`."""
        return list(self._ask(self.actor.left_out))

    def _focus(self, stage: str, worker: Worker, groups: Sequence[bytes]) -> None:
        self._ask(self.actor.focus, stage, worker, groups)

    def _report(self, worker: Worker, unet_rows: int) -> None:
        self.actor.report.remote(worker, unet_rows)  # does not wait for the call to arrive

    def stop(self, stage: str) -> frozenset[bytes]:
        """Stops workers from beginning blocks; returns the groups that a stage is processing."""
        self.actor.stop.remote()  # Ray keeps the order of one caller's calls
        return frozenset(self._ask(self.actor.in_progress, stage, timeout_s=_POLL_TIMEOUT_S))

    def raise_if_too_many_deaths(self) -> None:
        """Raises TooManyFailuresError if too many workers in a row have died."""
        if self._ask(self.actor.has_too_many_deaths):
            raise TooManyFailuresError(
                "stopped: one worker after the other died while it processed a block "
                "(failures.max_in_a_row). Is there enough memory for the model? The workers' logs "
                "are in Ray's session folder. What had arrived is committed; fix the cause and "
                "start the same command again."
            )

    def figures(self) -> StageFigures:
        """`Supervisor.figures`; {}, with a warning, if it does not answer."""
        try:
            figures: StageFigures = self._ask(self.actor.figures, timeout_s=_POLL_TIMEOUT_S)
        except SupervisorLostError as error:
            _log.warning("the figures of the workers are lost: %s", error)
            return {}
        return figures

    def poll(self) -> tuple[StageFigures, StageFigures] | None:
        """`Supervisor.state`; None if it does not answer."""
        try:
            figures, queues = self._ask(self.actor.state, timeout_s=_POLL_TIMEOUT_S)
        except SupervisorLostError:
            return None
        return figures, queues

    def lost_workers(self) -> tuple[float, float]:
        """Workers that died so far while they processed a block; and failures of devices."""
        figures: StageFigures = self._ask(self.actor.figures)
        deaths, failures = (
            sum(of.get(name, 0.0) for of in figures.values())
            for name in ("worker_deaths", "device_failures")
        )
        return deaths, failures

    @staticmethod
    def _ask(method: Any, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Raises SupervisorLostError if there is no answer in time."""
        try:
            return ray.get(method.remote(*arguments), timeout=timeout_s or ANSWER_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise SupervisorLostError(
                "the run's supervisor, a process on the driver's machine, is gone or does not "
                "answer; has the machine run out of memory? What had arrived is committed; start "
                f"the same command again. Ray says: {_first_line(error)}"
            ) from error


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
    could place it on another machine, and its state would be lost with that one.) It is not started
    again if it dies, because its state would be lost: who calls it gets a SupervisorLostError, and
    the run ends.
    """
    logs = logs or LogSettings()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = (
        ray.remote(_LoggingSupervisor)
        .options(num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=here)
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
    here = ray.get_runtime_context()
    name = f"{socket.gethostname()}:{os.getpid()}"
    return Worker(name, here.get_node_id(), threading.get_ident(), _devices(here))


def _devices(here: Any) -> str:
    """The devices that Ray gave this worker: "GPU 3", "GPU 0, 1", "CPU" if none."""
    given = here.get_accelerator_ids()
    names = [f"{kind} {', '.join(map(str, ids))}" for kind, ids in sorted(given.items()) if ids]
    return " and ".join(names) or "CPU"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
