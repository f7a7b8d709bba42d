"""Connects to Ray or starts it, and waits until the cluster has room for a run.

While it waits, the cluster's autoscaler is asked for the missing resources. The request ends with
the waiting. After that the autoscaler sees the actors without a machine as demand, because Ray Data
starts all actors of a pool at once.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pipeline.cluster.actor_kinds import Node
from pipeline.cluster.local_ray import local_files
from pipeline.cluster.own_code import in_the_way, runtime_env
from pipeline.cluster.pool import Pool
from pipeline.errors import InsufficientCapacityError, ResourceError

_POLL_INTERVAL_S = 1.0
_MOST_WAIT_FOR_PLACES_S = 30.0
_log = logging.getLogger(__name__)


def wait_for_capacity(
    size: Callable[[Sequence[Node]], Pool], bundles: Sequence[Mapping[str, float]], *, wait_s: float
) -> Pool:
    """Waits until `size` finds room on the machines of the cluster; returns the pool it makes.

    `bundles`: the resources that the autoscaler is asked for meanwhile, by Ray's names.
    Raises ResourceError, with what is missing, if that takes longer than `wait_s`.
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
    raise ResourceError(f"{missing} No room was found in {wait_s:g} s (resources.wait_s).")


@contextmanager
def _requested(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """A context in which Ray's autoscaler, if there is one, is to make room for the bundles."""
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
_TOO_SLOW = ("timed out during startup", "Failed to start GCS", "may not have started successfully")
"""Words of errors of ray 2.60 (_private/node.py) when one of its processes is not there in time."""


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A context with a Ray connection.

    If this process is connected already, that Ray is used and left connected. Otherwise `address`
    None starts a local Ray, any other ("auto", "ray://...") connects to that cluster; the
    connection, or the local Ray, ends with the context.

    Raises ResourceError if there is no Ray at the address, a local one cannot start, or workers of
    a Ray that is connected already would import other code in place of this program's.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # takes a second to load, and reads the environment variable above

    if ray.is_initialized():
        has_folder = ray.get_runtime_context().runtime_env.get("working_dir")
        if not has_folder and (found := in_the_way()):
            raise ResourceError(
                f"{found} is in the way: the workers of the Ray that is connected would import it "
                "in place of this program's package. Let the run start Ray, or start Python in "
                "another folder"
            )
        yield
        return
    # Ray's C++ code writes to the terminal directly; errors that matter are raised as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address:
        check_reachable(address)
    few_cores = (
        address is None and (os.cpu_count() or 1) < 2
    )  # logical CPUs: reader and actor share one core
    with nullcontext() if address else local_files():
        try:
            with _silent_stderr():
                ray.init(
                    address=address or "local",
                    num_cpus=2 if few_cores else None,
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=runtime_env(),
                )
        except Exception as error:  # Ray has several trees of errors, and raises plain ones too
            ray.shutdown()  # ends what has started
            raise ResourceError(_why_no_ray(error, address)) from error
        try:
            yield
        finally:
            ray.shutdown()


def _why_no_ray(error: Exception, address: str | None) -> str:
    """What to tell of an error of `ray.init`, and what to do."""
    from ray.exceptions import AuthenticationError

    cause = f" ({error.__cause__})" if error.__cause__ else ""
    said = f"{' '.join(str(error).split()) or type(error).__name__}{cause}"
    if isinstance(error, AuthenticationError):
        return (
            f"the Ray at resources.ray_address={address or 'null (a local one)'} asks for a token; "
            "this machine has none, or a wrong one: set RAY_AUTH_MODE=token, and "
            f"RAY_AUTH_TOKEN_PATH to the file with the cluster's token ({said})"
        )
    if address:
        return f"no Ray at resources.ray_address={address}: {said}"
    if any(words in said for words in _TOO_SLOW) or isinstance(error, TimeoutError):
        return (
            "Ray did not start in the time that it allows itself: this machine is overloaded, or "
            "has too little memory. Nothing was edited; start the same command again when less is "
            f"running. Ray says: {said}"
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return (
            f"Ray cannot start, because a file cannot be written: {said}. Its own files go to "
            "RAY_TMPDIR (else TMPDIR, else /tmp), which needs room and a user who may write there"
        )
    return f"no Ray at resources.ray_address=null (a local one): {said}"


def check_reachable(address: str) -> None:
    """Raises ResourceError if nothing listens at host:port; Ray itself would try for minutes."""
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
    """A context that discards everything written to file descriptor 2, by C++ code as well."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def wait_until_free(pool: Pool) -> None:
    """Waits until the actors of an earlier pass have left their places, for half a minute at most.

    Ray queues an actor at one machine and does not move it to another that becomes free: behind a
    worker that is left out, and keeps its place, it would wait for the whole pass.
    """
    import ray

    here = [(kind.actors - kind.later, kind) for kind in pool.kinds]
    cpus = sum(actors * kind.cpus_per_actor for actors, kind in here)
    gpus = sum(actors * kind.gpus_per_actor for actors, kind in here)
    until = time.monotonic() + _MOST_WAIT_FOR_PLACES_S
    while time.monotonic() < until:
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        if free.get("CPU", 0.0) >= cpus - 1e-3 and free.get("GPU", 0.0) >= gpus - 1e-3:
            return
        time.sleep(_POLL_INTERVAL_S / 4)


def node_of(node_id: str) -> Node:
    """The machine with Ray's id `node_id`; also one that Ray has just lost."""
    import ray

    (found,) = (node for node in ray.nodes() if node["NodeID"] == node_id)  # type: ignore[no-untyped-call]
    return Node.of(found["Resources"])


def nodes_alive() -> tuple[Node, ...]:
    """The machines of the Ray cluster that this process is connected to."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(map(Node.of, alive))
