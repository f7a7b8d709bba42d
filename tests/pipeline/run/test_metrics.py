"""What is counted, without Ray. `test_observed_run` has what comes out at the endpoint."""

from __future__ import annotations

from pipeline.ledger.outcome import outcomes_table
from pipeline.run.metrics import FAMILIES, FiguresPoller, RunMetrics
from pipeline.supervision.supervisor import StageFigures
from tests.builders.outcome_rows import accepted, failed, rejected


def test_labels_are_closed_and_no_edit_has_a_series_of_its_own() -> None:
    metrics = RunMetrics("run-1")
    many = [o for n in range(50) for o in (accepted(3 * n), failed(3 * n + 1), rejected(3 * n + 2))]
    metrics.committed(outcomes_table(many))
    few = RunMetrics("run-1")
    few.committed(outcomes_table(many[:3]))
    assert metrics.values().keys() == few.values().keys()
    assert sum(v for (name, _), v in metrics.values().items() if name == "fpe_edits_total") == 150


def test_every_series_is_of_a_family_and_has_its_labels() -> None:
    metrics = RunMetrics("run-1")
    every = {"rows": 1.0, "blocks": 1.0, "seconds": 1.0, "lost_blocks": 1.0, "retries": 1.0}
    metrics.spent({"edit": {**every, "sample_seconds": 1.0}, "commit": every})
    metrics.planned(3, 2, 1)
    metrics.arrived(1, 1)
    metrics.queued({}, to_read=1)
    metrics.committed(outcomes_table([accepted(1)]))
    labels = {family.name: set(family.labels) for family in FAMILIES}
    for name, of_series in metrics.values():
        assert {label for label, _ in of_series} == labels[name]


class Answers:
    """What a supervisor answers, as it is set."""

    def __init__(self) -> None:
        self.next: tuple[StageFigures, StageFigures] | None = None

    def poll(self) -> tuple[StageFigures, StageFigures] | None:
        return self.next


def test_figures_are_counted_once_however_often_they_are_polled() -> None:
    answers, metrics = Answers(), RunMetrics("run-1")
    for _ in range(2):  # two rounds, with a supervisor each
        poller = FiguresPoller(metrics, answers.poll)
        metrics.blocks_to_do = 5
        edit = {"rows": 3.0, "blocks": 2.0, "unet_rows": 50.0, "lost_unet_rows": 10.0}
        queues = {"decode": {"in_progress": 1.0}, "edit": {"in_progress": 1.0, "waiting": 3.0}}
        answers.next = ({"edit": edit, "decode": {"blocks": 2.0}}, queues)
        poller.poll()
        poller.poll()
        values = metrics.values()
        assert values["fpe_queue_blocks", (("stage", "edit"),)] == 3
        assert values["fpe_queue_blocks", (("stage", "decode"),)] == 2, "5, less 2 and 1 in hand"
        poller.finish({"edit": edit | {"rows": 4.0}, "decode": {"blocks": 5.0}})
    values = metrics.values()
    of_edit = (("stage", "edit"),)
    assert values["fpe_stage_rows_total", of_edit] == 8
    assert values["fpe_unet_rows_made_total", ()] == 100
    assert values["fpe_unet_rows_lost_total", ()] == 20
    assert values["fpe_queue_blocks", of_edit] == 0
    assert values["fpe_blocks_in_hand", of_edit] == 0


def test_a_supervisor_that_forgot_takes_nothing_back() -> None:
    """Ray may have started it anew."""
    answers, metrics = Answers(), RunMetrics("run-1")
    poller = FiguresPoller(metrics, answers.poll)
    for rows in (4.0, 1.0, 3.0):
        answers.next = ({"edit": {"rows": rows}}, {})
        poller.poll()
    answers.next = None
    poller.poll()
    assert metrics.values()["fpe_stage_rows_total", (("stage", "edit"),)] == 6
