"""Log lines of a command: where they go, and from which level on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rich.logging import RichHandler

from jobs.terminal import console
from pipeline.logs import PACKAGES, RETRY_LOGGER, LogSettings, describe_retry, stderr_handler

if TYPE_CHECKING:
    from pipeline.job.job import Job


def log_to_stderr(logs: LogSettings | None = None) -> None:
    """Sends our own log lines to stderr; on a terminal only warnings, as a bar shows the
    progress."""
    logs = logs or LogSettings()
    if logs.format == "json":
        level = logging.INFO
        logging.basicConfig(handlers=[stderr_handler(logs)], force=True)
    elif console.err().is_terminal:
        handler, level = RichHandler(console=console.err(), show_path=False), logging.WARNING
        logging.basicConfig(format="%(message)s", datefmt="%X", handlers=[handler])
    else:
        level = logging.INFO
        logging.basicConfig(handlers=[stderr_handler(logs)])
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)
    logging.getLogger(RETRY_LOGGER).addFilter(describe_retry)


def log_as_the_job_says(job: Job) -> bool:
    """Sets up logging as the job says. Returns whether progress is to be logged as lines as
    well."""
    if job.logs.format == "json":
        log_to_stderr(job.logs.to_settings())
    elif job.logs.shows_ray_bars:
        logging.basicConfig(handlers=[stderr_handler(LogSettings())], force=True)
        logging.getLogger("jobs.terminal.progress").setLevel(logging.INFO)
    if job.logs.level == "debug":
        for package in PACKAGES:
            logging.getLogger(package).setLevel(logging.DEBUG)
    return job.logs.format == "json" or job.logs.shows_ray_bars
