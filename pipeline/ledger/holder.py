"""The process that holds a run folder: who it is, and whether it is known to be gone.

A holder is known to be gone if this process runs on the same boot of the same machine, in the same
pid namespace (containers have their own), and the holder's pid is free or belongs to another
process now. All of this is read from Linux's /proc. On other systems no holder is known to be gone,
and its lease has to expire.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

_STATE, _START = 0, 19  # fields 3 and 22 of /proc/<pid>/stat, counted from 3 (proc(5))
# Not psutil's Process.create_time(): it adds the boot time according to the system clock, so after
# that clock is changed a living holder would look like another process, and count as gone.


@dataclass(frozen=True)
class Holder:
    """One process that took a lease, once.

    Attributes:
        machine: boot id and pid namespace; "" if not known.
        started: clock ticks from boot to the start of the process; "" if not known.
        since: when it took the lease, by its own clock; only shown, never compared.
        expiry_s: seconds of silence after which it counts as gone.
        nonce: random, so that two holders are never equal.
    """

    host: str
    pid: int
    machine: str
    started: str
    since: str
    expiry_s: float
    nonce: str

    @classmethod
    def me(cls, expiry_s: float) -> Self:
        """This process, now. `expiry_s`: seconds of silence after which it counts as gone."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            started=_start_of(os.getpid()),
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            expiry_s=expiry_s,
            nonce=secrets.token_hex(16),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The reverse of `to_bytes`. Raises ValueError for anything else."""
        try:
            return cls(**json.loads(data))
        except TypeError as error:
            raise ValueError(str(error)) from error

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False if that cannot be known."""
        if not self.machine or (self.host, self.machine) != (socket.gethostname(), _machine()):
            return False
        try:
            os.kill(self.pid, 0)  # signal 0 only checks; /proc may hide other users' processes
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return bool(self.started) and _start_of(self.pid) not in ("", self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def _machine() -> str:
    """Boot id and pid namespace; "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in ticks since boot; "ended" for a zombie, "" if not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return "ended" if fields[_STATE] in ("Z", "X") else fields[_START]
