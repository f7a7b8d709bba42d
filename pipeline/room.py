"""Waits until a cluster has room for a run, and asks its autoscaler for it meanwhile.

The request ends with the waiting. From then on the actors without a place are the demand that an
autoscaler sees: Ray Data starts all of a pool at once, and those wait for a machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.actor_kinds import Node
from pipeline.errors import NoRoomError, ResourceError
from pipeline.resources import Pool, nodes_alive

_LOOK_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


def pool_with_room(
    size: Callable[[Sequence[Node]], Pool], bundles: Sequence[Mapping[str, float]], *, wait_s: float
) -> Pool:
    """The pool that `size` makes of the machines that are there, as soon as it has room.

    `bundles`: what the autoscaler is asked for meanwhile, by Ray's names of resources.
    Raises ResourceError where that takes longer than `wait_s`, with what is missing.
    """
    try:
        return size(nodes_alive())
    except NoRoomError as error:
        if not wait_s:
            raise
        _log.warning(
            "waiting for the cluster to have room, for at most %g s (resources.wait_s): %s",
            wait_s,
            error,
        )
        missing = error
    until = time.monotonic() + wait_s
    with _requested(bundles):
        while time.monotonic() < until:
            time.sleep(_LOOK_INTERVAL_S)
            try:
                return size(nodes_alive())
            except NoRoomError as error:
                missing = error
    raise ResourceError(f"{missing} Nothing came in {wait_s:g} s (resources.wait_s).")


@contextmanager
def _requested(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Ray's autoscaler makes room for the bundles in this context; without one nothing happens."""
    import ray
    from ray.autoscaler.sdk import request_resources

    # On the cluster, because a driver that is not part of it (ray://) cannot ask.
    request = ray.remote(num_cpus=0)(request_resources)
    ray.get(request.remote(bundles=[dict(bundle) for bundle in bundles]))
    try:
        yield
    finally:
        ray.get(request.remote(bundles=[]))
