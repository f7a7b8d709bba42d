"""Logging of the driver and of workers: text for people, or a JSON object per line for collectors.

    {"time": "2026-11-25T18:00:00.000Z", "level": "warning", "message": "edit failed: ...",
     "logger": "pipeline.run.driver", "run": "recoloured-1f2e3d4c-3", "stage": "commit",
     "worker": "host:4711", "edit_id": "...", "group_id": "...", "code": "source_missing"}

The first four fields are always there; `run`, `stage` and `worker` (host:pid) are there as soon as
they are known. `edit_id` and `group_id` are hex as in the metadata, `figures` is what a block cost.
Code logs with the standard library alone, and passes such fields as `extra=about(...)`.

Every text goes through `redact.safe_text`, tracebacks too, so no line holds a secret of a URL.
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

from pipeline.redact import safe_text

PACKAGES = ("fpe_core", "pipeline", "jobs")
RETRY_LOGGER = "stamina"
"""The logger of `stamina`, which reports the requests that are tried again."""
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
"""The fields that a line may have in addition to its message."""
Format = Literal["text", "json"]


@dataclass(frozen=True)
class LogSettings:
    """How a process writes its log. Small and picklable: it is sent to workers."""

    format: Format = "text"
    run: str = ""


def about(**fields: Any) -> dict[str, Any]:
    """`extra` for a log call. Ids are bytes or hex. Raises ValueError for an unknown field."""
    unknown = fields.keys() - set(FIELDS)
    if unknown:
        raise ValueError(f"not a field of a log line: {', '.join(sorted(unknown))}")
    return {
        name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()
    }


class Formatter(logging.Formatter):
    """Formats lines as text or JSON. Every line has `fields`, unless it brings its own values."""

    def __init__(self, settings: LogSettings, stage: str) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%X")
        self.is_json = settings.format == "json"
        worker = f"{socket.gethostname()}:{os.getpid()}"
        self.fields = {"run": settings.run, "stage": stage, "worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        if not self.is_json:
            return safe_text(super().format(record))
        own = {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        line = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "message": safe_text(record.getMessage()),
            "logger": record.name,
            **{name: value for name, value in self.fields.items() if value},
            **{name: safe_text(v) if isinstance(v, str) else v for name, v in own.items()},
        }
        if record.exc_info:
            line["error"] = safe_text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(settings: LogSettings, stage: str) -> None:
    """Makes a worker's process write its log to stderr, in the format of the run.

    Ray keeps what workers write in logs/worker-*.err of its session folder. A process may have
    served another run of the same driver before: a second call changes the format and the fields.
    """
    for name in (*PACKAGES, RETRY_LOGGER):
        logger = logging.getLogger(name)
        if not any(isinstance(each.formatter, Formatter) for each in logger.handlers):
            logger.addHandler(stderr_handler(settings, stage))
            logger.setLevel(logging.INFO)
            logger.propagate = False  # a handler of Ray's would write it a second time
    logging.getLogger(RETRY_LOGGER).addFilter(describe_retry)
    for formatter in _formatters():
        formatter.is_json = settings.format == "json"
    label_lines(run=settings.run, stage=stage)


class _LatestStderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at that moment: live progress bars replace it by a stream that
    prints above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def stderr_handler(settings: LogSettings, stage: str = "run") -> logging.Handler:
    """A handler that writes lines of this format to stderr."""
    handler = _LatestStderr(sys.stderr)
    handler.setFormatter(Formatter(settings, stage))
    return handler


def label_lines(**fields: str) -> None:
    """Sets the fields `run` and `stage` of all later lines of this process."""
    for formatter in _formatters():
        formatter.fields |= fields


def describe_retry(record: logging.LogRecord) -> bool:
    """A filter for stamina's logger: puts the wait and the cause into its message, which is only
    "stamina.retry_scheduled"."""
    cause = getattr(record, "stamina.caused_by", None)
    if cause is not None:
        wait_s = getattr(record, "stamina.wait_for", 0.0)
        record.msg, record.args = "trying again in %.1f s after %s", (wait_s, safe_text(str(cause)))
    return True


def _formatters() -> Iterator[Formatter]:
    for name in (None, *PACKAGES, RETRY_LOGGER):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler.formatter, Formatter):
                yield handler.formatter


def _iso(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
