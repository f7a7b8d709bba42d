"""`fpe` commands in processes of their own, without the seconds that loading torch and Ray takes.

    python tests/faults/fpe_commands.py    # the server: loads once, forks a process per command

The server reads a command per line, as JSON {"arguments": [...], "output": file}, and answers with
its process id and, when that has ended, with its exit code; a negative one is a signal. The forked
process does what `fpe` does. `FpeCommands` is the client. For {"ray_cpus": n} the server forks a
process that starts a local Ray and keeps it until the server ends; the answer is its address.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent
_KEPT_OPEN: list[socket.socket] = []


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed on both streams."""

    code: int
    output: str


class FpeCommands:
    """Runs one command at a time. `before` is a command that runs the server, such as unshare."""

    def __init__(self, scratch: Path, before: Sequence[str] = ()) -> None:
        self._output = scratch / "fpe-output.txt"
        self._server = subprocess.Popen(
            [*before, sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # A Ray that ray.init starts asks for a token, unless it is told not to.
            env={"RAY_AUTH_MODE": "token"} | os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.pid = 0
        """Of the command that runs, or ran last."""

    def __enter__(self) -> Self:
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    @property
    def server_pid(self) -> int:
        return self._server.pid

    def run(self, *arguments: str) -> Ended:
        """Runs `fpe` with these arguments to its end."""
        self._output.write_text("")
        self._order({"arguments": arguments, "output": str(self._output)})
        self.pid = int(self._answer())
        code = int(self._answer())
        return Ended(code, self._output.read_text())

    def start_ray(self, cpus: int) -> str:
        """Starts a Ray where the commands run, and returns its address."""
        self._order({"ray_cpus": cpus})
        return self._answer()

    def _order(self, order: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


def serve(orders: Iterable[str]) -> None:
    """The server's loop; in the process of a command it does not return."""
    for name in (
        "jobs.cli",
        "pipeline.cluster.graph",
        "pipeline.run.driver",
        "fpe_core.editor",
        "s3fs",
    ):
        importlib.import_module(name)
    _say("ready")
    for line in orders:
        order = json.loads(line)
        if "ray_cpus" in order:
            _say(_fork_ray(order["ray_cpus"]))
            continue
        pid = os.fork()
        if not pid:
            _become_fpe(order["arguments"], order["output"])
        _say(str(pid))
        _, status = os.waitpid(pid, 0)
        _say(str(os.waitstatus_to_exitcode(status)))


def _become_fpe(arguments: list[str], output: str) -> None:
    """Raises SystemExit, as `fpe` does at its end."""
    from jobs.cli import main

    with open(output, "ab", buffering=0) as file:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["fpe", *arguments]
    main()


def _fork_ray(cpus: int) -> str:
    """The address of a Ray in a process of its own, which ends when this one does."""
    import ray

    our_end, rays_end = socket.socketpair()
    if os.fork():
        rays_end.close()
        _KEPT_OPEN.append(our_end)
        return our_end.recv(100).decode()
    our_end.close()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nowhere.fileno(), 1)
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=0,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    rays_end.send(str(ray.get_runtime_context().gcs_address).encode())
    rays_end.recv(1)
    ray.shutdown()
    sys.exit()


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.stdin)
