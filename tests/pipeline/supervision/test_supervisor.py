"""Deaths find their culprit, and only theirs."""

from __future__ import annotations

import pytest

from pipeline.supervision.supervisor import Supervisor, Worker

A, B, C = (bytes([n]) * 16 for n in range(3))
BLOCK = [A, B, C]


def worker(number: int, node: str = "here") -> Worker:
    return Worker(f"host:{number}", node)


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_block_is_begun_without_suspicion() -> None:
    orders = Supervisor().begin("edit", worker(1), BLOCK)
    assert (orders.is_stopping, orders.is_careful, orders.quarantined) == (False, False, {})


def test_a_group_that_kills_two_workers_is_quarantined_and_its_neighbours_are_not() -> None:
    supervisor = Supervisor()
    supervisor.begin("edit", worker(1), BLOCK)  # dies: one of the three did it
    orders = supervisor.begin("edit", worker(2), BLOCK)
    assert (orders.is_careful, orders.quarantined) == (True, {})
    supervisor.focus("edit", worker(2), [A])
    supervisor.focus("edit", worker(2), [])
    supervisor.focus("edit", worker(2), [B])  # dies: B did it
    orders = supervisor.begin("edit", worker(3), BLOCK)
    assert orders.is_careful
    assert set(orders.quarantined) == {B}
    assert "2 workers died" in orders.quarantined[B]
    supervisor.end("edit", worker(3), {})
    assert supervisor.figures()["edit"]["worker_deaths"] == 2
    assert not supervisor.begin("edit", worker(3), BLOCK).is_careful, "what ended is forgiven"


def test_a_death_between_the_groups_is_everybodys() -> None:
    """So that a block that always dies at its last write comes to an end."""
    supervisor = Supervisor()
    for number in (1, 2):
        supervisor.begin("edit", worker(number), BLOCK)
        supervisor.focus("edit", worker(number), [C])
        supervisor.focus("edit", worker(number), [])
    assert set(supervisor.begin("edit", worker(3), BLOCK).quarantined) == set(BLOCK)


def test_a_machine_that_goes_away_is_nobodys_fault() -> None:
    supervisor = Supervisor(is_node_alive=lambda node: node != "spot")
    for number in range(5):
        supervisor.begin("edit", worker(number, "spot"), BLOCK)
    assert not supervisor.begin("edit", worker(9), BLOCK).is_careful
    assert supervisor.figures() == {"edit": {"lost_blocks": 5}}


def test_one_death_after_the_other_is_no_rows_fault() -> None:
    supervisor = Supervisor(most_deaths_in_a_row=3)
    groups = [bytes([n]) * 16 for n in range(9)]
    for number, group in enumerate(groups[:3]):
        supervisor.begin("edit", worker(number), [group])
    for number, group in enumerate(groups[:2]):
        supervisor.begin("edit", worker(10 + number), [group])
    supervisor.end("edit", worker(10), {})
    assert not supervisor.has_too_many_deaths(), "two, and then one came to its end"
    supervisor.begin("edit", worker(20), [groups[1]])
    supervisor.begin("edit", worker(21), [groups[2]])
    supervisor.begin("load", worker(22), [b"the next actor"])
    supervisor.end("load", worker(22), {})
    supervisor.begin("edit", worker(22), [groups[2]])
    assert not supervisor.has_too_many_deaths(), "one row alone may take three"
    assert supervisor.begin("edit", worker(23), [groups[2]]).is_stopping
    assert supervisor.has_too_many_deaths()


def test_a_process_with_two_blocks_in_hand_dies_once() -> None:
    supervisor = Supervisor(most_deaths_in_a_row=3)
    for thread, groups in enumerate(([A, B], [C])):
        supervisor.begin("edit", Worker("host:1", "here", thread), groups)
    supervisor.focus("edit", Worker("host:1", "here", 0), [A])
    assert supervisor.in_progress("edit") == {A, B, C}
    assert supervisor.begin("edit", worker(2), [C]).is_careful
    assert supervisor.begin("edit", worker(3), [A, B]).is_careful
    assert supervisor.figures()["edit"]["worker_deaths"] == 1
    # Either may have done it, so neither has one of its two deaths behind it.
    for number, expected in ((4, set()), (5, {A})):
        supervisor.focus("edit", worker(number - 1), [A])
        orders = supervisor.begin("edit", worker(number), [A, B])
        assert (orders.is_careful, set(orders.quarantined)) == (True, expected)


def test_a_block_is_known_as_a_suspect_before_it_is_begun() -> None:
    supervisor = Supervisor()
    assert not supervisor.is_suspect("edit", [A, B])
    supervisor.begin("edit", worker(1), [A])
    assert supervisor.is_suspect("edit", [A, B])
    assert not supervisor.is_suspect("edit", [B])
    assert not supervisor.is_suspect("decode", [A])


def test_stages_have_state_of_their_own() -> None:
    supervisor = Supervisor()
    supervisor.begin("decode", worker(1), BLOCK)
    supervisor.begin("decode", worker(2), BLOCK)
    supervisor.end("decode", worker(2), {})
    assert not supervisor.begin("edit", worker(3), BLOCK).is_careful
    assert supervisor.in_progress("decode") == frozenset()
    assert supervisor.in_progress("edit") == set(BLOCK)


def test_a_run_that_is_stopped_begins_nothing_and_knows_what_is_in_hand() -> None:
    supervisor = Supervisor()
    supervisor.begin("edit", worker(1), [A])
    supervisor.stop()
    assert supervisor.begin("edit", worker(2), [B]).is_stopping
    assert supervisor.in_progress("edit") == {A}
    supervisor.end("edit", worker(1), {})
    assert supervisor.in_progress("edit") == frozenset()


def test_what_ended_is_summed_up() -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock)
    for number, groups in enumerate(([A, B], [C])):
        supervisor.begin("edit", worker(number), groups)
        clock.now += 1.0
        rows = 10.0 * (number + 1)
        supervisor.end("edit", worker(number), {"edit": {"rows": rows}, "write": {"retries": 1}})
    supervisor.begin("edit", worker(1), [A])
    assert supervisor.figures() == {
        "edit": {"rows": 30.0, "blocks": 2, "block_seconds": 2.0, "span_seconds": 2.0},
        "write": {"retries": 2},
    }


def test_rows_of_a_block_are_counted_once_whether_it_ends_or_is_lost() -> None:
    supervisor = Supervisor()
    supervisor.begin("edit", worker(1), [A])
    supervisor.report(worker(1), 30)
    supervisor.report(worker(1), 50)
    assert supervisor.figures()["edit"] == {"unet_rows": 50}, "in hand, as last told"
    supervisor.begin("edit", worker(2), [A])  # worker 1 is dead
    assert supervisor.figures()["edit"] == {
        "lost_blocks": 1,
        "unet_rows": 50,
        "lost_unet_rows": 50,
        "worker_deaths": 1,
    }
    supervisor.report(worker(2), 60)
    supervisor.end("edit", worker(2), {"edit": {"unet_rows": 70}})
    edit = supervisor.figures()["edit"]
    assert (edit["unet_rows"], edit["lost_unet_rows"]) == (120, 50)


def test_a_block_waits_between_its_stages() -> None:
    supervisor = Supervisor()
    for number, block in enumerate(([A], [B, C])):
        supervisor.begin("decode", worker(number), block)
    assert supervisor.queues()["decode"] == {"in_progress": 2, "waiting": 0}
    for number in range(2):
        supervisor.end("decode", worker(number), {})
    assert supervisor.queues()["edit"] == {"in_progress": 0, "waiting": 2}
    supervisor.begin("edit", worker(5), [C, B])
    assert supervisor.queues()["edit"] == {"in_progress": 1, "waiting": 1}
    supervisor.end("edit", worker(5), {})
    supervisor.begin("edit", worker(5), [A])
    assert supervisor.queues() == {
        "decode": {"in_progress": 0, "waiting": 0},
        "edit": {"in_progress": 1, "waiting": 0},
    }


@pytest.mark.parametrize("call", ["focus", "end"])
def test_a_worker_that_nobody_knows_is_ignored(call: str) -> None:
    """As one whose device has failed, while its other block comes to its end."""
    supervisor = Supervisor()
    getattr(supervisor, call)("edit", worker(1), {})
    assert supervisor.in_progress("edit") == frozenset()
