"""Ray workers forked from a process that has loaded torch and diffusers already.

    with worker_server(folder), forked_workers():
        ray.init(address="local", ...)  # its workers start in less than a second instead of six

Ray starts a worker as `python setup_worker.py ... default_worker.py ...`, which loads Ray, replaces
itself with a second Python that loads Ray again, and loads torch and diffusers for an edit actor.
With `forked_workers` Ray starts this file in place of its setup_worker.py. It hands its arguments,
environment and streams to the server, which forks, and the fork runs Ray's own default_worker.py.

Only other people's libraries are loaded before the fork. Ray is not one of them, because its C++
reads the environment of the worker when it is loaded; and no module of this project is, so workers
import those themselves, from where and when they always do.

Where the server cannot help (it has ended, or the worker has a runtime environment), this file does
what Ray's setup_worker.py does. `FPE` is the command with forked workers; `python -m jobs` has
Ray's usual ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ADDRESS = "FPE_TESTS_FORKED_WORKERS"
"""The environment variable that tells processes below this one where the server listens."""
_LOADED = (
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pandas",
    "s3fs",
    "torch",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
_LONGEST_WAIT_S = 50.0
"""For the server, which may be loading; Ray gives a worker a minute to start."""


FPE = (
    sys.executable,
    "-c",
    "from tests.servers.forked_workers import forked_workers\n"
    "with forked_workers():\n"
    "    from jobs.cli import main\n"
    "    main()\n",
)
"""`fpe` in a process of its own, below `worker_server`: a Ray that it starts forks its workers."""


@contextlib.contextmanager
def worker_server(scratch: Path) -> Iterator[None]:
    """The server, for this process and those that it starts. `scratch`: where its socket lies."""
    address = str(scratch / "workers")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(64)  # whoever asks before the server has loaded waits
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # its end is the server's
        )
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        del os.environ[_ADDRESS]
        assert server.stdin is not None
        server.stdin.close()
        server.wait()


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """A Ray that this process starts in this context forks its workers, as long as it lives."""
    from ray._private import ray_constants

    assert _ADDRESS in os.environ, "there is no server"
    usual = ray_constants.SETUP_WORKER_FILENAME
    # Ray joins this name to its own folder, so an absolute one stands alone.
    ray_constants.SETUP_WORKER_FILENAME = __file__
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = usual


def _serve(listener: socket.socket) -> None:
    """Forks a worker for every connection, until stdin ends."""
    import gc
    import importlib
    import select

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it is for pytest
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()  # or a collection in a worker copies the pages that all of them share
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            _become_worker(connection)
        connection.close()


def _become_worker(connection: socket.socket) -> None:
    """Runs default_worker.py with the arguments, environment and streams of the client.

    It does not return: in the end it raises SystemExit, as the main loop of a worker does.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        size, streams, _, _ = socket.recv_fds(connection, 8, 2)
        order = json.loads(connection.recv(int.from_bytes(size), socket.MSG_WAITALL))
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted
            os.dup2(nothing.fileno(), 0)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.path[:] = order["path"]
        sys.argv = order["arguments"]
        connection.sendall(b"x")
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _ask_for_worker(arguments: list[str]) -> bool:
    """Whether the server has forked a worker with these arguments."""
    order = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 - text is wanted
        "path": [str(Path(arguments[0]).parent), *sys.path[1:]],
    }
    message = json.dumps(order).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_LONGEST_WAIT_S)
            connection.connect(os.environ[_ADDRESS])
            socket.send_fds(connection, [len(message).to_bytes(8)], [1, 2])
            connection.sendall(message)
            return connection.recv(1) == b"x"
    except (KeyError, OSError):
        return False


def _start_worker() -> None:
    """What Ray's setup_worker.py does, by a fork where that is possible."""
    own, passed_on = {}, []
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name in {"--serialized-runtime-env-context", "--language"}:
            own[name] = value
        else:
            passed_on.append(argument)
    context = json.loads(own.get("--serialized-runtime-env-context") or "{}")
    is_plain = own.get("--language") == "PYTHON" and not context
    if is_plain and _ask_for_worker(passed_on):
        return
    from ray._private.workers import setup_worker

    runpy.run_path(setup_worker.__file__, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        with socket.socket(fileno=int(sys.argv[2])) as inherited:
            _serve(inherited)
    else:
        _start_worker()
