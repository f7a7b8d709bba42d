"""Waits until a cluster has room for a run, and asks its autoscaler for it meanwhile.

The request ends with the waiting. From then on the actors without a place are the demand that an
autoscaler sees: Ray Data starts all of a pool at once, and those wait for a machine.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster.actor_kinds import Node
from pipeline.cluster.pool import Pool
from pipeline.errors import InsufficientCapacityError, ResourceError

_POLL_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


def wait_for_capacity(
    size: Callable[[Sequence[Node]], Pool], bundles: Sequence[Mapping[str, float]], *, wait_s: float
) -> Pool:
    """The pool that `size` makes of the machines that are there, as soon as it has room.

    `bundles`: what the autoscaler is asked for meanwhile, by Ray's names of resources.
    Raises ResourceError where that takes longer than `wait_s`, with what is missing.
    """
    try:
        return size(nodes_alive())
    except InsufficientCapacityError as error:
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
            time.sleep(_POLL_INTERVAL_S)
            try:
                return size(nodes_alive())
            except InsufficientCapacityError as error:
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


_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A Ray to work with; what was started here ends here, quietly.

    A Ray that is connected already is used as it is. Otherwise null starts a local one, and any
    address ("auto", "ray://...") connects to that cluster.

    Raises ResourceError where there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # a second to load, and it reads the environment: only when needed

    if ray.is_initialized():
        yield
        return
    # Ray's C++ writes to the terminal past every logger; what matters comes as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address:
        check_reachable(address)
    few_cores = address is None and (os.cpu_count() or 1) < 2  # logical: reader and actor share it
    try:
        with _silent_stderr():
            ray.init(
                address=address or "local",
                num_cpus=2 if few_cores else None,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ResourceError(
            f"no Ray at resources.ray_address={address or 'null (a local one)'}: {error}{cause}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raises ResourceError where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", "local", or a name that only Ray can resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at resources.ray_address={address}: {error}. Is the cluster up, and "
            "may this machine reach it?"
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends what is written to file descriptor 2 meanwhile, by whatever language, nowhere."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def nodes_alive() -> tuple[Node, ...]:
    """The machines of the Ray that is connected."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(map(Node.of, alive))
