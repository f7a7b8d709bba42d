"""Parts on disk: lists finished ones, and commits those that are not in the ledger yet."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import LedgerError
from pipeline.in_order import in_order
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOMES_METADATA_KEY, outcomes_from_bytes
from pipeline.storage.folder import Folder

METADATA_FILE = "metadata.parquet"
PART_PREFIX = "part-"
REJECTED_FOLDER = "rejected"
"""Next to the parts: rejected/part-<id>/. `datasets` reads it only as a separate configuration."""
REJECTED_METADATA_KEY = b"fpe.rejected"
"""Key in the schema metadata of a part's metadata.parquet; the value is the file of its rejected
edits, in Base64."""
_THREADS = 16
_log = logging.getLogger(__name__)


def rejected_part(part: str) -> str:
    """The folder of the rejected edits of a part, within the run folder."""
    return f"{REJECTED_FOLDER}/{part}"


def finished_parts(folder: Folder, skip: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """The folders with metadata of accepted or of rejected edits, except those in `skip`."""
    rejected = (rejected_part(name) for name in folder.list_folders(REJECTED_FOLDER))
    parts = (
        name
        for name in itertools.chain(folder.list_folders(), rejected)
        if name.rpartition("/")[2].startswith(PART_PREFIX) and name not in skip
    )
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="parts") as pool:
        for name, is_finished in in_order(
            pool, lambda name: (name, folder.exists(f"{name}/{METADATA_FILE}")), parts, _THREADS
        ):
            if is_finished:
                yield name


def committing_folders(folder: Folder, skip: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """For every finished part, the folder whose metadata commits it, except those in `skip`."""
    seen: set[str] = set()
    for name in finished_parts(folder, skip):  # those of the parts themselves come first
        part = name.rpartition("/")[2]
        if part not in seen:
            yield name
        seen.add(part)


def restore_rejected_metadata(folder: Folder, part: str) -> None:
    """Writes the metadata of a part's rejected edits from the part's own, if it is missing.

    Does nothing if the part has no rejected edits that were kept. Raises StorageError, and
    LedgerError if the metadata is damaged.
    """
    path = f"{part}/{METADATA_FILE}"
    if not folder.exists(path):
        return
    data = folder.read(path)
    try:
        stored = (pq.read_schema(io.BytesIO(data)).metadata or {}).get(REJECTED_METADATA_KEY)
        table = None if stored is None else base64.b64decode(stored, validate=True)
    except (pa.ArrowException, binascii.Error) as error:
        raise LedgerError(f"{folder.url_of(path)} is damaged ({error})") from error
    if table is not None:
        folder.write_if_absent(f"{rejected_part(part)}/{METADATA_FILE}", table)


def uncommitted(folder: Folder, ledger: Ledger, part: str) -> pa.Table:
    """The outcomes of a finished part that the ledger lacks. Raises LedgerError."""
    outcomes = read_part_outcomes(folder, part)
    return outcomes.filter(pa.array(ledger.lacks(outcomes), pa.bool_()))


def orphan_parts(folder: Folder, ledger: Ledger) -> Iterator[tuple[str, pa.Table]]:
    """Finished parts with outcomes that the ledger lacks: (name, those outcomes).

    A run that is killed between writing a part's metadata and committing it leaves one such part.
    """
    for part in committing_folders(folder, skip=ledger.settled_parts()):
        outcomes = uncommitted(folder, ledger, part)
        if outcomes.num_rows:
            yield part, outcomes


def adopt_orphan_parts(
    folder: Folder, ledger: Ledger, committed: Callable[[pa.Table], None] = lambda _: None
) -> int:
    """Commits the outcomes of finished parts that the ledger lacks; returns how many edits.

    Called at the start of a run, before planning, so that no finished edit is made again.
    `committed` is called with the outcomes that were committed.
    """
    adopted = 0
    for part, outcomes in orphan_parts(folder, ledger):
        if not part.startswith(REJECTED_FOLDER):
            restore_rejected_metadata(folder, part)
        added = ledger.commit(outcomes)
        committed(added)
        _log.info("adopted %d finished edits of %s", added.num_rows, part)
        adopted += added.num_rows
    return adopted


def read_part_outcomes(folder: Folder, part: str) -> pa.Table:
    """The outcomes of a finished part, which its metadata carries (`outcomes_to_bytes`).

    Raises LedgerError if the metadata is damaged.
    """
    path = f"{part}/{METADATA_FILE}"
    file = io.BytesIO(folder.read(path))
    try:
        return outcomes_from_bytes(pq.read_schema(file).metadata[OUTCOMES_METADATA_KEY])
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{folder.url_of(path)} is damaged or not the metadata of a run ({error}); move the "
            "folder away: its edits are made again"
        ) from error
