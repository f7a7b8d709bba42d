"""One run at a time writes to a run folder: a lease with an expiry and a fencing token.

    .lease/holder-00000003.json   who took token 3; exclusive create, never changed
           beat-00000003.json     written by that holder only: heartbeats, then that it released
           clock                  written by a process that needs the current time of the store

Taking the lease: the next token may be taken if there is no lease yet, if the latest holder
released it, if its process is known to be gone (see `holder`), or if it was silent for longer than
the `expiry_s` in its holder file. Otherwise the attempt is refused at once. If several processes
take the same token, the exclusive create lets one succeed.

Time: clocks of different machines are never compared. How long a holder was silent is the
difference of two modification times that the store itself set: that of the last heartbeat, and that
of `clock`, written at that moment. A wrong decision costs a run, but never an edit, because safety
does not depend on time:

Fencing: a holder calls `Lease.check` before each commit (ledger file, part's metadata). A process
that takes over from a holder that did not release the lease also takes the ledger's next number
(`ledger.fence`), the only number under which the old holder could commit. However long the old
holder slept between check and write, its write is refused.

What holds on which store:

- local disk with hard links, memory:// (one process), S3 that obeys `If-None-Match` (AWS, MinIO):
  one holder per token, and no ledger commit of an old holder after a new one.
- S3 that ignores or refuses it, local disk without hard links, GCS and Azure as far as tested here:
  two processes that take the token at the same instant can both go on until the next check, when
  the one whose file was overwritten stops. An old holder that sleeps between the look and the put
  of one request can overwrite the fence; `fpe verify` reports an edit that then exists twice.
- any store: a part's metadata is checked, but not fenced. An actor of an old holder that sleeps
  between check and write can finish a part after the takeover; `fpe verify` reports its edits as
  duplicates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.errors import LeaseError, StorageError
from pipeline.ledger.holder import Holder
from pipeline.ledger.ledger import fence
from pipeline.logs import about
from pipeline.storage.folder import Folder

LEASE_FOLDER = ".lease"
_CLOCK = f"{LEASE_FOLDER}/clock"
_HOLDER_NAME = re.compile(r"holder-(\d{8,})\.json")
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseState:
    """The latest holder according to the lease folder.

    `taken_at` is when it took the lease, `heard_at` when it last gave a sign of life, both in
    seconds since 1970 by the store's clock.
    """

    token: int
    holder: Holder
    is_released: bool
    heard_at: float
    taken_at: float

    @property
    def is_over(self) -> bool:
        """Whether the holder released it or is known to be gone. A silent holder may be neither."""
        return self.is_released or self.holder.is_gone()

    def __str__(self) -> str:
        heard = datetime.fromtimestamp(self.heard_at, UTC)
        return f"{self.holder}, last heartbeat {heard:%Y-%m-%d %H:%M:%S} UTC by the store's clock"


@dataclass(frozen=True)
class Lease:
    """The right to write to a run folder. Small and picklable: workers check it too."""

    folder: Folder
    token: int
    holder: Holder
    is_takeover: bool = False
    """Whether the previous holder did not release it, and has to be fenced off."""

    @property
    def run_id(self) -> str:
        """The run's name in logs and metrics: the folder's name, a hash of its URL, the token."""
        name = _NO_NAME.sub("-", self.folder.url.rstrip("/").rpartition("/")[2])[:40]
        digest = hashlib.blake2b(self.folder.url.encode(), digest_size=4).hexdigest()
        return f"{name}-{digest}-{self.token}"

    def check(self) -> None:
        """Raises LeaseError if another run uses the folder by now, and StorageError."""
        if not self.folder.exists(_holder_file(self.token + 1)):
            there = _read(self.folder, _holder_file(self.token))
            if there == self.holder.to_bytes():
                return
        state = lease_state(self.folder)
        taker = "somebody removed its lease" if state is None else f"{state.holder} has it now"
        raise LeaseError(
            f"{self.folder.url}: this run has lost the run folder ({taker}). Either it was silent "
            f"for more than lease.expiry_s ({self.holder.expiry_s:g} s), or both started at the "
            "same instant. It writes nothing more, what it committed is kept. When the other run "
            "has ended, start the same command again if anything is left."
        )


def lease_state(folder: Folder) -> LeaseState | None:
    """Who took the latest token of a run folder; None if it was never taken. Writes nothing.

    Raises StorageError, also for a damaged file.
    """
    names = (path.rpartition("/")[2] for path in folder.list(LEASE_FOLDER))
    token = max((int(m[1]) for name in names if (m := _HOLDER_NAME.fullmatch(name))), default=0)
    if not token:
        return None
    path, heard_in = _holder_file(token), [_holder_file(token)]
    beat: dict[str, object] = {}
    try:
        holder = Holder.from_bytes(folder.read(path))
        path = _beat_file(token)
        data = _read(folder, path)
        if data is not None:
            heard_in.append(path)
            beat = dict(json.loads(data))
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{folder.url_of(path)} is damaged ({error}): make sure that no run works on the "
            f"folder, then remove {LEASE_FOLDER}"
        ) from error
    times = [folder.modified(name) for name in heard_in]
    return LeaseState(token, holder, bool(beat.get("released")), max(times), times[0])


def silence_s(folder: Folder, state: LeaseState) -> float:
    """Seconds since the holder's last sign of life, by the store's clock. Writes `clock`."""
    folder.replace(_CLOCK, b"now\n")
    return folder.modified(_CLOCK) - state.heard_at


def take_lease(
    folder: Folder,
    *,
    expiry_s: float,
    silence_s: Callable[[Folder, LeaseState], float] = silence_s,
) -> Lease:
    """Takes the next token, and fences off an earlier holder that did not release the lease.

    `expiry_s`: seconds of silence after which the new holder counts as gone. Raises LeaseError
    while another run uses the folder, and StorageError. Starts no heartbeat; `hold_lease` does.
    """
    while True:
        state = lease_state(folder)
        if state is not None and not state.is_over:
            silent_s = silence_s(folder, state)
            if silent_s <= state.holder.expiry_s:
                raise LeaseError(_in_use(folder, state, silent_s))
        token = 1 if state is None else state.token + 1
        is_takeover = state is not None and not state.is_released
        lease = Lease(folder, token, Holder.me(expiry_s), is_takeover)
        if folder.write_if_absent(_holder_file(token), lease.holder.to_bytes()):
            break  # else another process was quicker: read its state
    lease.check()  # if creates are not exclusive, the last writer is the holder
    if is_takeover and state is not None:
        _log.warning("taking %s over from %s, which never released it", folder.url, state.holder)
        fence(folder, token)
    _log.info("took the lease of %s", folder.url, extra=about(stage="lease", run=lease.run_id))
    return lease


@contextmanager
def hold_lease(folder: Folder, *, expiry_s: float, heartbeat_s: float) -> Iterator[Lease]:
    """Holds the run folder for the length of the context, with a heartbeat on a thread.

    Both times are in seconds; `heartbeat_s` must be well below `expiry_s`. Releases the lease
    however the context ends. Raises LeaseError while another run uses the folder, and StorageError.
    """
    lease = take_lease(folder, expiry_s=expiry_s)
    with _Heart(lease, heartbeat_s):
        yield lease


class _Heart:
    """Writes a heartbeat every few seconds, and at the end that the holder released the lease."""

    def __init__(self, lease: Lease, heartbeat_s: float) -> None:
        self._lease = lease
        self._heartbeat_s = heartbeat_s
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()  # else its last beat could overwrite the release
        try:
            self._lease.check()
            self._write(released=True)
            _log.info("released %s", self._lease.folder.url, extra=about(stage="lease"))
        except LeaseError:
            return  # another run took it over
        except StorageError as error:
            wait_s = self._lease.holder.expiry_s
            _log.warning("the lease was not released (%s); it expires in %g s", error, wait_s)

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                self._lease.check()
                self._write(released=False)
            except LeaseError as error:
                _log.error("%s", error, extra=about(stage="lease"))  # the next commit raises it
                return
            except StorageError as error:
                what = "the heartbeat of the lease failed, the next one is tried: %s"
                _log.warning(what, error, extra=about(stage="lease"))

    def _write(self, *, released: bool) -> None:
        self._beats += 1
        beat = {"beats": self._beats, "released": released}
        path = _beat_file(self._lease.token)
        self._lease.folder.replace(path, (json.dumps(beat) + "\n").encode())


def _in_use(folder: Folder, state: LeaseState, silent_s: float) -> str:
    return (
        f"{folder.url} is in use by another run: {state.holder}. Its last heartbeat was "
        f"{max(0.0, silent_s):.0f} s ago, and after {state.holder.expiry_s:g} s without one it "
        "counts as gone. Wait for that run, or stop it, then start the same command again: it "
        "goes on from where that one stopped. Or give the job another output."
    )


def _holder_file(token: int) -> str:
    return f"{LEASE_FOLDER}/holder-{token:08d}.json"


def _beat_file(token: int) -> str:
    return f"{LEASE_FOLDER}/beat-{token:08d}.json"


def _read(folder: Folder, path: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    try:
        return folder.read(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
