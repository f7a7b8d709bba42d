"""A run that a scheduler started: where another has the run folder, there is nothing to retry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import LeaseError

Made = TypeVar("Made")
_log = logging.getLogger(__name__)


def unless_in_use(run: Callable[[], Made], *, wait_s: float) -> Made | None:
    """What `run` returns; None where another run has the folder and is alive.

    Whether it is alive shows after `wait_s`, in which a dead one loses its lease: a scheduler that
    lost a machine starts the next attempt sooner than that. Raises what `run` raises else.
    """
    try:
        return run()
    except LeaseError as error:
        _log.warning("%s", error)
    _log.warning("looking again in %.0f s, when a run that died has lost the folder", wait_s)
    time.sleep(wait_s)
    try:
        return run()
    except LeaseError as error:
        _log.warning("%s", error)
        return None
