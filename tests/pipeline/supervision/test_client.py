"""What workers call to reach the supervisor: no call waits for ever, and its loss is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from pipeline.errors import SupervisorLostError
from pipeline.supervision import client
from pipeline.supervision.client import SupervisorClient, _RayOversight, supervision
from pipeline.supervision.supervisor import Orders, Supervisor
from pipeline.supervision.watchdog import TimeLimits, Watchdog

LIMITS = TimeLimits(600.0, 600.0)


def begin(supervisor: SupervisorClient) -> None:
    with supervisor.block("edit", [b"a group"], is_watched=False):
        pass


CALLS: dict[str, Callable[[SupervisorClient], Any]] = {
    "begin": begin,
    "is_suspect": lambda supervisor: supervisor.is_suspect("edit", [b"a group"]),
    "number_in": lambda supervisor: supervisor.number_in(0, "actor"),
    "begin_pass": lambda supervisor: supervisor.begin_pass(1),
    "device_failed": lambda supervisor: supervisor.device_failed("it broke"),
    "leave_out": lambda supervisor: supervisor.leave_out(b"actor", "it broke"),
    "stand_by": lambda supervisor: supervisor.stand_by(b"actor"),
    "left_out": lambda supervisor: supervisor.left_out(),
    "stop": lambda supervisor: supervisor.stop("edit"),
    "too many deaths": lambda supervisor: supervisor.raise_if_too_many_deaths(),
    "lost_workers": lambda supervisor: supervisor.lost_workers(),
}
"""All that a worker or the driver asks, and cannot go on without."""


class StandsStill(Supervisor):
    """A supervisor that does not answer any more."""

    def stand_still(self) -> None:
        threading.Event().wait()


@pytest.fixture
def still(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SupervisorClient]:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(client, "_POLL_TIMEOUT_S", 0.2)
    actor: Any = ray.remote(StandsStill).options(num_cpus=0).remote()
    actor.stand_still.remote()
    yield SupervisorClient(actor, LIMITS)
    ray.kill(actor)


def test_no_call_waits_for_ever(still: SupervisorClient) -> None:
    for call in CALLS.values():
        with pytest.raises(SupervisorLostError, match=r"does not answer.*same command again"):
            call(still)
    assert still.poll() is None
    assert still.figures() == {}


@pytest.mark.usefixtures("ray_cluster")
def test_a_supervisor_that_is_gone_is_told_by_every_call_and_not_started_again() -> None:
    with supervision(LIMITS, 100) as supervisor:
        for call in CALLS.values():
            call(supervisor)
        with supervisor.block("edit", [b"the last"], is_watched=False):
            ray.kill(supervisor.actor, no_restart=False)  # as the kernel would end it
            while supervisor.poll() is not None:  # the kill is on its way
                time.sleep(0.05)
        # What the block was for is done, so its end raises nothing.
        for call in CALLS.values():
            with pytest.raises(SupervisorLostError, match=r"is gone.*same command again"):
                call(supervisor)
        assert supervisor.poll() is None
        assert supervisor.figures() == {}


def test_a_death_hides_half_of_the_rows_at_most_however_short_the_block() -> None:
    told: list[int] = []
    oversight = _RayOversight(
        Orders(),
        Watchdog(TimeLimits(60.0, 60.0)),
        lambda _groups: None,
        told.append,
    )
    for rows in range(1000):
        oversight.made(rows)
        assert 2 * told[-1] >= rows
    assert told == sorted(set(told))
    assert len(told) < 1000, "and not each of them is a message"
