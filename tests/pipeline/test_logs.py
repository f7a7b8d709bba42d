"""Lines of the log: one JSON object each, with what they are about and without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.lease import hold_lease
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import outcomes_table
from pipeline.logs import (
    FIELDS,
    PACKAGES,
    RETRY_LOGGER,
    Formatter,
    LogSettings,
    about,
    describe_retry,
    label_lines,
    log_to_stderr,
)
from pipeline.storage.folder import Folder
from pipeline.supervision.supervisor import Supervisor, Worker
from tests.builders.outcome_rows import accepted, failed, rejected

SECRET = "s3cr3t"
URL = f"https://user:{SECRET}@example.com/a.png?signature={SECRET}"


class Lines:
    """What was logged, as a worker with these settings writes it."""

    def __init__(self, settings: LogSettings) -> None:
        self.sink = io.StringIO()
        self.handler = logging.StreamHandler(self.sink)
        self.handler.setFormatter(Formatter(settings, "edit"))

    @property
    def text(self) -> str:
        return self.sink.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """JSON, or the format that the test asks for, of everything of ours from INFO on."""
    lines = Lines(LogSettings(getattr(request, "param", "json"), "recoloured-1f2e3d4c-3"))
    loggers = [logging.getLogger(name) for name in (*PACKAGES, RETRY_LOGGER)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(lines.handler)
        logger.setLevel(logging.INFO)
    yield lines
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(lines.handler)
        logger.setLevel(level)


def test_a_line_says_when_how_bad_what_who_and_of_which_edit(lines: Lines) -> None:
    log = logging.getLogger("pipeline.somewhere")
    log.warning("edit %d\nfailed", 7, extra=about(edit_id=b"\x01" * 16, code="nan_latent"))
    (line,) = lines.objects
    assert line.pop("time").endswith("Z")
    assert line.pop("worker").rpartition(":")[2].isdigit()
    assert line == {
        "level": "warning",
        "message": "edit 7\nfailed",
        "logger": "pipeline.somewhere",
        "run": "recoloured-1f2e3d4c-3",
        "stage": "edit",
        "edit_id": "01" * 16,
        "code": "nan_latent",
    }


@pytest.mark.parametrize("lines", ["json", "text"], indirect=True)
def test_no_secret_of_a_url_comes_through(lines: Lines) -> None:
    log = logging.getLogger("pipeline.somewhere")
    log.info("cannot read %s", URL, extra=about(part=URL))
    try:
        raise OSError(f"no {URL}")
    except OSError:
        log.exception("because of %s", URL)
    logging.getLogger(RETRY_LOGGER).warning(URL)
    assert SECRET not in lines.text
    assert lines.text.count("example.com/a.png") >= 4
    assert "Traceback" in lines.text


def test_stages_and_runs_can_change_and_a_line_can_say_its_own(lines: Lines) -> None:
    log = logging.getLogger("pipeline.somewhere")
    label_lines(run="other-2", stage="decode")
    log.info("one")
    log.info("two", extra=about(stage="lease", figures={"edit": {"rows": 2.0}}))
    assert [(line["run"], line["stage"]) for line in lines.objects] == [
        ("other-2", "decode"),
        ("other-2", "lease"),
    ]
    assert lines.objects[1]["figures"] == {"edit": {"rows": 2.0}}


def test_a_field_that_no_collector_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="not a field of a log line: colour"):
        about(colour="red")
    for name in FIELDS:
        assert not hasattr(logging.makeLogRecord({}), name), "would hide logging's own"


def test_a_commit_names_every_edit_that_failed_or_was_rejected(
    lines: Lines, tmp_path: Path
) -> None:
    ledger = Ledger.open(Folder.open(str(tmp_path)))
    ledger.commit(outcomes_table([accepted(0), failed(2), rejected(3), failed(5, "nan_latent")]))
    said = {line["edit_id"]: line for line in lines.objects}
    bad = (failed(2), rejected(3), failed(5, "nan_latent"))
    assert {i: (line["group_id"], line["code"]) for i, line in said.items()} == {
        each.edit_id.hex(): (each.key.group_id.hex(), each.reason) for each in bad
    }
    assert len(lines.objects) == 3, "no line for each commit"
    messages = [said[each.edit_id.hex()]["message"] for each in bad[:2]]
    assert messages == [
        "edit failed: decode_failed: edit 2 is broken",
        "edit rejected: no_change",
    ]


def test_in_detail_every_edit_and_commit_is_named(
    lines: Lines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pipeline.ledger.ledger")
    ledger = Ledger.open(Folder.open(str(tmp_path)))
    ledger.commit(outcomes_table([accepted(0), failed(2)]))
    of_edits = {line["message"]: line["edit_id"] for line in lines.objects if "edit_id" in line}
    assert of_edits == {
        "edit accepted": accepted(0).edit_id.hex(),
        "edit failed: decode_failed: edit 2 is broken": failed(2).edit_id.hex(),
    }
    last = lines.objects[-1]
    assert (last["edits"], last["stage"], last["level"]) == (2, "commit", "debug")


def test_deaths_and_leases_are_told(lines: Lines, tmp_path: Path) -> None:
    supervisor = Supervisor()
    supervisor.begin("edit", Worker("here:1", "node"), [b"a" * 16])
    supervisor.begin("edit", Worker("here:2", "node"), [b"a" * 16])
    (death,) = lines.objects
    assert (death["level"], death["worker"], death["stage"]) == ("warning", "here:1", "edit")
    assert death["group_id"] == (b"a" * 16).hex()
    with hold_lease(Folder.open(str(tmp_path)), expiry_s=60.0, heartbeat_s=20.0) as lease:
        pass
    taken, given = lines.objects[1:]
    assert (taken["stage"], taken["run"]) == ("lease", lease.run_id)
    assert "released" in given["message"]


def test_a_request_that_is_tried_again_says_why(lines: Lines) -> None:
    logger = logging.getLogger(RETRY_LOGGER)
    logger.addFilter(describe_retry)
    try:
        hidden = {"stamina.caused_by": f"OSError({URL})", "stamina.wait_for": 1.25}
        logger.warning("stamina.retry_scheduled", extra=hidden)
        logger.warning("something else")
    finally:
        logger.removeFilter(describe_retry)
    first, second = (line["message"] for line in lines.objects)
    assert first.startswith("trying again in 1.2 s after OSError(https://...@example.com/a.png")
    assert second == "something else"
    assert SECRET not in lines.text


def test_a_worker_writes_each_line_once_however_often_it_is_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    loggers = [logging.getLogger(name) for name in (*PACKAGES, RETRY_LOGGER)]
    before = [(each.handlers[:], each.level, each.propagate, each.filters[:]) for each in loggers]
    try:
        for stage in ("decode", "edit"):
            log_to_stderr(LogSettings("json", "run-1"), stage)
        logging.getLogger("pipeline.somewhere").info("once")
    finally:
        for logger, (handlers, level, propagate, filters) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.setLevel(level)
            logger.propagate = propagate
    (line,) = [json.loads(text) for text in capfd.readouterr().err.splitlines()]
    assert (line["message"], line["stage"], line["run"]) == ("once", "edit", "run-1")
