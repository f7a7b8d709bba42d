"""Peak memory of a process and of the Ray workers that it started."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_POLL_S = 0.02
_POLLS_A_LOOK = 25
_EDITS = re.compile(r"^ray::.*RayEditActor")
_READS = re.compile(r"^ray::.*(_decode_block|_read_block|Read|edit_row)")
"""Ray's titles of its worker processes, while they work. The last one is the peer's."""


@dataclass
class Memory:
    """Peak memory of this process, and of Ray's workers below it, by polling.

    Attributes:
        own_bytes: this process, without mapped pages of Ray's object store.
        shared_bytes: its mapped pages of the object store.
        reader_bytes: the largest worker that reads and decodes, without such pages; 0: none was
            seen.
        editor_bytes: the largest one that edits and writes.
    """

    own_bytes: int = 0
    shared_bytes: int = 0
    reader_bytes: int = 0
    editor_bytes: int = 0
    _readers: set[int] = field(default_factory=set)
    _editors: set[int] = field(default_factory=set)

    def peak_bytes(self) -> int:
        """The kernel's own peak, which is exact, unless it includes shared memory."""
        return self.own_bytes if self.shared_bytes else memory_bytes("VmHWM")[0]

    def look(self, ended: threading.Event) -> None:
        """Polls until `ended` is set."""
        polls = 0
        while not ended.wait(_POLL_S):
            held, shared = memory_bytes("VmRSS", "RssShmem")
            self.own_bytes = max(self.own_bytes, held - shared)
            self.shared_bytes = max(self.shared_bytes, shared)
            if polls % _POLLS_A_LOOK == 0:
                self._find_workers()
            self.reader_bytes = max(self.reader_bytes, *map(_own_bytes, self._readers), 0)
            self.editor_bytes = max(self.editor_bytes, *map(_own_bytes, self._editors), 0)
            polls += 1

    def _find_workers(self) -> None:
        """A worker counts from the first time on that it was seen at work."""
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:  # it has ended
                continue
            if _EDITS.search(title):
                self._editors.add(process.pid)
            elif _READS.search(title):
                self._readers.add(process.pid)


@contextmanager
def polled_memory() -> Iterator[Memory]:
    """Polls while the `with` block runs."""
    memory, ended = Memory(), threading.Event()
    looking = threading.Thread(target=memory.look, args=(ended,), daemon=True)
    looking.start()
    try:
        yield memory
    finally:
        ended.set()
        looking.join()


def memory_bytes(*keys: str, process: int | str = "self") -> tuple[int, ...]:
    """Values of /proc/PROCESS/status in bytes; 0 for what the system does not report."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = (re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE) for key in keys)
    return tuple(int(match[1]) * 1024 if match else 0 for match in found)


def _own_bytes(process: int) -> int:
    held, shared = memory_bytes("VmRSS", "RssShmem", process=process)
    return held - shared
