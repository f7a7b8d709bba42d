"""Log lines for people, or one JSON object each for a log collector; of the driver and of workers.

    {"time": "2026-11-25T18:00:00.000Z", "level": "warning", "message": "edit failed: ...",
     "logger": "pipeline.run.driver", "run": "recoloured-1f2e3d4c-3", "stage": "commit",
     "worker": "host:4711", "edit_id": "...", "group_id": "...", "code": "source_missing"}

The first four are always there, `run`, `stage` and `worker` (host:pid) from when they are known;
`edit_id` and `group_id` are hex as in the metadata, and `figures` what a block has cost. Code logs
with the standard library alone, and hands such fields over as `extra=about(...)`.

Every text goes through `redact.tellable`, tracebacks too: no line has a secret of a URL.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pipeline.redact import tellable

FLOORS = ("fpe_core", "pipeline", "jobs")
TRIED_AGAIN = "stamina"
"""The logger that says which requests are tried again."""
FIELDS = (
    "run",
    "stage",
    "worker",
    "edit_id",
    "group_id",
    "code",
    "part",
    "edits",
    "groups",
    "figures",
)
"""What a line may say beside its message."""
Format = Literal["text", "json"]


@dataclass(frozen=True)
class LogSettings:
    """How a process writes its log. Small and picklable: workers are told."""

    format: Format = "text"
    run: str = ""


def about(**fields: Any) -> dict[str, Any]:
    """`extra` for a log call. Ids are bytes or hex. Raises ValueError for an unknown field."""
    unknown = fields.keys() - set(FIELDS)
    if unknown:
        raise ValueError(f"no field of a log line: {', '.join(sorted(unknown))}")
    return {
        name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()
    }


class Formatter(logging.Formatter):
    """Either format. `fields` is what every line of this process says, unless it says otherwise."""

    def __init__(self, settings: LogSettings, stage: str) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%X")
        self.is_json = settings.format == "json"
        worker = f"{socket.gethostname()}:{os.getpid()}"
        self.fields = {"run": settings.run, "stage": stage, "worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        if not self.is_json:
            return tellable(super().format(record))
        said = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        line = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "message": tellable(record.getMessage()),
            "logger": record.name,
            **{name: value for name, value in self.fields.items() if value},
            **{name: tellable(v) if isinstance(v, str) else v for name, v in said.items()},
        }
        if record.exc_info:
            line["error"] = tellable(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(settings: LogSettings, stage: str) -> None:
    """This process, a worker's, writes its log from now on, all stages in one format.

    Ray keeps what workers write in logs/worker-*.err of its session folder. Called again, as in a
    process that another run of the same driver used before, it changes the format and what lines
    say of themselves.
    """
    for name in (*FLOORS, TRIED_AGAIN):
        logger = logging.getLogger(name)
        if not any(isinstance(each.formatter, Formatter) for each in logger.handlers):
            logger.addHandler(stderr_handler(settings, stage))
            logger.setLevel(logging.INFO)
            logger.propagate = False  # a handler of Ray's would say it once more
    logging.getLogger(TRIED_AGAIN).addFilter(say_what_is_tried_again)
    for formatter in _formatters():
        formatter.is_json = settings.format == "json"
    label_lines(run=settings.run, stage=stage)


class _LatestStderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time: live bars put a stream there that prints above
    them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def stderr_handler(settings: LogSettings, stage: str = "run") -> logging.Handler:
    """Writes lines of this format to stderr."""
    handler = _LatestStderr(sys.stderr)
    handler.setFormatter(Formatter(settings, stage))
    return handler


def label_lines(**fields: str) -> None:
    """What lines of this process say of themselves from now on: `run`, `stage`."""
    for formatter in _formatters():
        formatter.fields |= fields


def say_what_is_tried_again(record: logging.LogRecord) -> bool:
    """For a logger of stamina's, which says "stamina.retry_scheduled" and hides the rest."""
    cause = getattr(record, "stamina.caused_by", None)
    if cause is not None:
        wait_s = getattr(record, "stamina.wait_for", 0.0)
        record.msg, record.args = "trying again in %.1f s after %s", (wait_s, tellable(str(cause)))
    return True


def _formatters() -> Iterator[Formatter]:
    for name in (None, *FLOORS, TRIED_AGAIN):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler.formatter, Formatter):
                yield handler.formatter


def _iso(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
