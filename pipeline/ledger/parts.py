"""Parts on disk: lists finished ones, and commits those that are not in the ledger yet.

    .outcomes/<part>-<hash>.parquet             all outcomes of a part, with hashes of its images
    .outcomes/<part>-<hash>-rejected.parquet    the metadata of its rejected edits, if it has any

A part's metadata names both in its schema metadata. They are written before it, and their names
have the hash of their content, so attempts at one part with different outcomes do not mix. (0.2.0
had both within the schema metadata, which pyarrow refuses to read from 100 MB on.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.errors import LedgerError, StorageError
from pipeline.in_order import in_order
from pipeline.ledger.checked_file import DAMAGED, checked_parquet, read_checked, schema_metadata
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import (
    OUTCOME_SCHEMA,
    OUTCOMES_METADATA_KEY,
    as_outcomes,
    outcomes_from_bytes,
)
from pipeline.storage.folder import Folder

METADATA_FILE = "metadata.parquet"
PART_PREFIX = "part-"
REJECTED_FOLDER = "rejected"
"""Next to the parts: rejected/part-<id>/. `datasets` reads it only as a separate configuration."""
REJECTED_METADATA_KEY = b"fpe.rejected"
"""Key in the schema metadata of a part's metadata.parquet; the value is the file of its rejected
edits, in Base64. Only 0.2.0 wrote it."""
OUTCOMES_FOLDER = ".outcomes"
OUTCOMES_FILE_KEY = b"fpe.outcomes_file"
"""Key in the schema metadata of a part's metadata.parquet; the value is the path of its outcomes
in the run folder."""
REJECTED_FILE_KEY = b"fpe.rejected_file"
"""Likewise, of the metadata of its rejected edits."""
_HASH_TYPE = pa.binary(16)
_HASH_FIELDS = (
    pa.field("edited_file_hash", _HASH_TYPE),
    pa.field("source_file_hash", _HASH_TYPE),
)
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


def image_hash(data: bytes) -> bytes:
    """The hash of an image file of a part: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).digest()


def write_outcomes(
    folder: Folder, part: str, outcomes: pa.Table, hashes: Mapping[str, bytes]
) -> str:
    """Writes the outcomes of a part to a file of their own; returns its path.

    `hashes`: those of the images that the outcomes name (`image_hash`), by path in the run folder.
    Raises StorageError.
    """
    files = (outcomes[name].to_pylist() for name in ("edited_file_name", "source_file_name"))
    found = (pa.array([hashes.get(name) for name in of_kind], _HASH_TYPE) for of_kind in files)
    columns = [*outcomes.cast(OUTCOME_SCHEMA).columns, *found]
    schema = pa.schema([*OUTCOME_SCHEMA, *_HASH_FIELDS])
    return write_beside(folder, part, checked_parquet(pa.table(columns, schema=schema)))


def write_beside(folder: Folder, part: str, data: bytes, ending: str = "") -> str:
    """Writes a file about a part to OUTCOMES_FOLDER, under its hash; returns its path."""
    path = f"{OUTCOMES_FOLDER}/{part}-{image_hash(data).hex()}{ending}.parquet"
    folder.write_if_absent(path, data)
    return path


def _read_beside(folder: Folder, path: str) -> bytes:
    """A file of `write_beside`. Raises LedgerError if it is missing or damaged, StorageError."""
    try:
        data = folder.read(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise LedgerError(
                f"{folder.url_of(path)} is missing; restore it, or move its part away: its edits "
                "are made again"
            ) from error
        raise
    if f"-{image_hash(data).hex()}" not in path:
        raise LedgerError(
            f"{folder.url_of(path)} is damaged; restore it, or move its part away: its edits are "
            "made again"
        )
    return data


def restore_rejected_metadata(folder: Folder, part: str) -> None:
    """Writes the metadata of a part's rejected edits from the part's own, if it is missing.

    Does nothing if the part has no rejected edits that were kept. Raises StorageError, and
    LedgerError if the metadata is damaged.
    """
    if not folder.exists(f"{part}/{METADATA_FILE}"):
        return
    stored = part_metadata(folder, part)
    if path := stored.get(REJECTED_FILE_KEY):
        table = _read_beside(folder, path.decode())
    elif REJECTED_METADATA_KEY in stored:
        try:
            table = base64.b64decode(stored[REJECTED_METADATA_KEY], validate=True)
        except binascii.Error as error:
            raise _damaged(folder, part, error) from error
    else:
        return
    folder.write_if_absent(f"{rejected_part(part)}/{METADATA_FILE}", table)


def part_metadata(folder: Folder, part: str) -> dict[bytes, bytes]:
    """The key-values of a part's metadata. Raises StorageError, LedgerError if it is damaged."""
    try:
        return schema_metadata(folder.read(f"{part}/{METADATA_FILE}"))
    except DAMAGED as error:
        raise _damaged(folder, part, error) from error


def _damaged(folder: Folder, part: str, error: object) -> LedgerError:
    return LedgerError(
        f"{folder.url_of(f'{part}/{METADATA_FILE}')} is damaged or not the metadata of a run "
        f"({error}); move the folder away: its edits are made again"
    )


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
    """The outcomes of a finished part. Raises StorageError, LedgerError if they are damaged."""
    stored = part_metadata(folder, part)
    if path := stored.get(OUTCOMES_FILE_KEY):
        return as_outcomes(read_checked(_read_beside(folder, path.decode())))
    try:
        return outcomes_from_bytes(stored[OUTCOMES_METADATA_KEY])
    except DAMAGED as error:
        raise _damaged(folder, part, error) from error


def image_hashes(folder: Folder, part: str) -> dict[str, bytes]:
    """The hashes of a finished part's images (`image_hash`), by path in the run folder.

    Empty for a part that 0.2.0 wrote. Raises StorageError, LedgerError if they are damaged.
    """
    path = part_metadata(folder, part).get(OUTCOMES_FILE_KEY)
    if path is None:
        return {}
    table = read_checked(_read_beside(folder, path.decode()))
    found: dict[str, bytes] = {}
    for kind in ("edited", "source"):
        names, hashes = (table[f"{kind}_file_{what}"].to_pylist() for what in ("name", "hash"))
        found |= {name: digest for name, digest in zip(names, hashes, strict=True) if digest}
    return found
