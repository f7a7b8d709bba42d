"""Whose fault a failure is: the device's if it alone fails, the source's if others fail too."""

from __future__ import annotations

from pipeline.supervision.places import Place, Places
from pipeline.supervision.supervisor import Supervisor, Worker

A, B, C, D = (bytes([n]) * 16 for n in range(4))
ONE, TWO = b"actor 1", b"actor 2"


def worker(number: int, device: str = "GPU 0", thread: int = 0) -> Worker:
    return Worker(f"host:{number}", "here", thread, device)


def loaded(supervisor: Supervisor, number: int, member: bytes, device: str) -> Worker:
    """A worker that has loaded its model."""
    me = worker(number, device)
    assert not supervisor.begin("load", me, [member]).left_out
    supervisor.end("load", me, {})
    return me


def failing(supervisor: Supervisor, me: Worker, block: list[bytes]) -> None:
    """A worker begins a block, its device fails, and Ray gives the block to its next process."""
    assert not supervisor.begin("edit", me, block).is_handed_on
    supervisor.device_failed(me, "CUDA error: it broke")


def test_blocks_of_a_failed_device_go_on_to_another_worker_without_a_death() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(2)
    bad = loaded(supervisor, 1, ONE, "GPU 0")
    good = loaded(supervisor, 2, TWO, "GPU 1")
    failing(supervisor, bad, [A, B])
    again = loaded(supervisor, 3, ONE, "GPU 0")
    assert supervisor.begin("edit", again, [A, B]).is_handed_on, "as Ray retries it there"
    orders = supervisor.begin("edit", good, [A, B])
    assert (orders.is_handed_on, orders.quarantined) == (False, {})
    supervisor.end("edit", good, {})
    assert not supervisor.is_suspect("edit", [A, B])
    edit = supervisor.figures()["edit"]
    assert (edit["device_failures"], edit["lost_blocks"]) == (1, 1)
    assert "worker_deaths" not in edit


def test_a_block_that_was_lost_with_its_actor_is_begun_in_the_next_pass() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(1)
    failing(supervisor, loaded(supervisor, 1, ONE, "GPU 0"), [A])
    supervisor.begin_pass(1)
    orders = supervisor.begin("edit", loaded(supervisor, 2, ONE, "GPU 0"), [A])
    assert (orders.is_handed_on, orders.is_careful) == (False, True)


def test_one_bad_device_of_eight_costs_no_source_however_often_it_fails() -> None:
    """What used to quarantine 64 sources: its failures were deaths of whatever it had in hand."""
    supervisor, failures = Supervisor(most_deaths_in_a_row=20), 0
    supervisor.begin_pass(8)
    good = [loaded(supervisor, n, bytes([n]), f"GPU {n}") for n in range(1, 8)]
    for number in range(100, 200):
        me = worker(number, "GPU 0")
        if supervisor.begin("load", me, [b"0"]).left_out:
            break
        supervisor.end("load", me, {})
        block = [bytes([number, n]) for n in range(4)]
        failing(supervisor, me, block)
        failures += 1
        for each in good:
            orders = supervisor.begin("edit", each, block)
            if not orders.is_handed_on:
                assert not orders.quarantined
                supervisor.end("edit", each, {})
    assert failures == 2
    assert not supervisor.has_too_many_deaths()


def test_two_blocks_of_a_process_are_one_failure_of_its_device() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(1)
    loaded(supervisor, 1, ONE, "GPU 0")
    for thread, block in enumerate(([A], [B])):
        supervisor.begin("edit", worker(1, thread=thread), block)
    for thread in range(2):
        supervisor.device_failed(worker(1, thread=thread), "CUDA error")
    assert supervisor.figures()["edit"]["device_failures"] == 1
    for thread, block in enumerate(([A], [B])):
        assert supervisor.begin("edit", worker(2, thread=thread), block).is_handed_on


def test_a_device_that_finishes_a_block_in_between_is_not_left_out() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(1)
    for number in range(0, 10, 2):
        me = loaded(supervisor, number, ONE, "GPU 0")
        failing(supervisor, me, [bytes([number])])
        me = loaded(supervisor, number + 1, ONE, "GPU 0")
        supervisor.begin("edit", me, [b"another block"])
        supervisor.end("edit", me, {})


def test_a_source_that_breaks_two_devices_is_quarantined_and_its_neighbours_are_not() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(2)
    first = loaded(supervisor, 1, ONE, "GPU 0")
    second = loaded(supervisor, 2, TWO, "GPU 1")
    failing(supervisor, first, [A, B])
    supervisor.begin_pass(1)
    orders = supervisor.begin("edit", second, [A, B])
    assert orders.is_careful
    supervisor.focus("edit", second, [B])
    supervisor.device_failed(second, "CUDA error")
    supervisor.begin_pass(1)
    third = loaded(supervisor, 3, TWO, "GPU 1")
    assert set(supervisor.begin("edit", third, [A, B]).quarantined) == {B}


def test_a_source_that_breaks_the_only_device_twice_is_quarantined_if_others_do_not() -> None:
    places = Places()
    only = Place("here", "GPU 0")
    places.begin_pass(1)
    places.join(ONE, only, "host")
    places.loaded(ONE)
    assert places.failed(only, "it broke") == 1
    places.finished_block(only)
    assert places.failed(only, "it broke") == 1
    assert places.blame([only, only]) == 2
    assert places.failed(only, "it broke") == 2, "and no block in between"
    assert places.blame([only, only, only]) == 1, "then nobody knows, and the run stops"
    places.join(TWO, Place("here", "GPU 1"), "host")
    places.loaded(TWO)
    assert places.blame([only, only]) == 1, "there is another device to ask"
    assert places.blame([only, Place("here", "GPU 1")]) == 2
    assert places.blame([Place("here"), only, only]) == 2, "a death counts whatever the device"
    assert places.blame([]) == 0


def test_the_run_stops_when_no_worker_is_left_and_not_before() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(2)
    first, second = worker(1, "GPU 0"), worker(2, "GPU 1")
    supervisor.begin("load", first, [ONE])
    assert not supervisor.leave_out(first, ONE, "the disk is full"), "no block waits for it"
    assert supervisor.stand_by(ONE) is None, "the other has not begun"
    supervisor.begin("load", second, [TWO])
    assert supervisor.stand_by(ONE) is None
    supervisor.end("load", second, {})
    assert supervisor.stand_by(ONE) is None
    assert supervisor.left_out() == ["GPU 0 of host (Ray node here): the disk is full"]
    failing(supervisor, second, [A])
    again = worker(3, "GPU 1")
    supervisor.begin("load", again, [TWO])
    assert supervisor.leave_out(again, TWO, "it is gone"), "Ray keeps its block for it"
    for member in (ONE, TWO):
        stop = supervisor.stand_by(member)
        assert stop is not None
        assert "none of 2 workers can work. GPU 1 of host" in stop
    supervisor.begin_pass(1)
    assert supervisor.stand_by(ONE) == "", "its pass is over"


def test_a_single_worker_that_cannot_work_says_why_in_its_own_words() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(1)
    supervisor.begin("load", worker(1), [ONE])
    supervisor.leave_out(worker(1), ONE, "the model cannot be used: it is no model")
    assert supervisor.stand_by(ONE) == "the model cannot be used: it is no model"
    assert supervisor.in_progress("load") == frozenset()


def test_two_deaths_while_loading_leave_a_worker_out() -> None:
    supervisor = Supervisor()
    supervisor.begin_pass(2)
    for number in (1, 2):
        assert not supervisor.begin("load", worker(number), [ONE]).left_out
    assert "2 workers died while they loaded" in supervisor.begin("load", worker(3), [ONE]).left_out


def test_a_worker_that_starts_when_its_pass_is_over_does_not_count() -> None:
    """Else one that is gone would be waited for when all others are left out."""
    supervisor = Supervisor()
    late = supervisor.begin_pass(2)
    now = supervisor.begin_pass(1)
    assert supervisor.begin("load", worker(1), [ONE], late).is_stopping
    assert not supervisor.begin("load", worker(2), [TWO], now).is_stopping
    supervisor.leave_out(worker(2), TWO, "the disk is full")
    assert supervisor.stand_by(TWO) == "the disk is full"
