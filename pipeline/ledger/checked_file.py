"""Parquet files in which every damage is noticed: the end of the footer is a hash of all the rest.

    PAR1 | pages | file metadata, BLAKE2b of the rest (32 bytes) | length of both, 4 bytes | PAR1

It is an ordinary Parquet file. The format puts a signature into the same place if a footer is
signed, so readers that know none pass over it. Files of 0.2.0 have no hash, and are read as well.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_HASH_BYTES = 32
_END_BYTES = 4 + len(_MAGIC)
_MARK = b"fpe.hash-at-the-end"
"""A key of the schema metadata: the file has a hash, even if the hash itself is damaged."""
_NO_LIMIT = 2**31 - 1
"""For strings and lists in the footer. Parts of 0.2.0 have their outcomes there, up to hundreds of
megabytes, and pyarrow refuses strings over 100 MB unless told otherwise."""

DAMAGED = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)
"""What reading a damaged or a foreign Parquet file from memory raises: pyarrow raises a plain
OSError for damaged pages and footers, ArrowInvalid or its like for most others."""


def checked_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file with a hash, compressed with zstd."""
    marked = table.replace_schema_metadata({**(table.schema.metadata or {}), _MARK: b"blake2b"})
    sink = io.BytesIO()
    pq.write_table(marked, sink, compression="zstd")
    plain = sink.getbuffer()
    body, length = plain[:-_END_BYTES], int.from_bytes(plain[-_END_BYTES:-4], "little")
    end = (length + _HASH_BYTES).to_bytes(4, "little") + _MAGIC
    return b"".join((body, _hash_of(body, end), end))


def check(data: bytes) -> None:
    """Raises ValueError if the bytes are a file of `checked_parquet` that was changed since."""
    if _MARK not in data:
        return
    view = memoryview(data)
    body, end = view[: -_HASH_BYTES - _END_BYTES], view[-_END_BYTES:]
    if view[len(body) : -_END_BYTES] != _hash_of(body, end):
        raise ValueError("it was changed after it was written: its hash is another")


def open_checked(data: bytes) -> pq.ParquetFile:
    """Opens a Parquet file that is in memory, with or without a hash.

    Raises one of DAMAGED if it was changed since it was written, or is not a Parquet file.
    """
    check(data)
    file = pq.ParquetFile(
        io.BytesIO(data),
        thrift_string_size_limit=_NO_LIMIT,
        thrift_container_size_limit=_NO_LIMIT,
    )
    footer_bytes = int.from_bytes(data[-_END_BYTES:-4], "little")
    if _MARK not in data and file.metadata.serialized_size != footer_bytes:
        raise ValueError("it was changed after it was written: it has a hash and no mark of it")
    return file


def read_checked(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of `open_checked`; `columns`: only these. Raises one of DAMAGED."""
    return open_checked(data).read(None if columns is None else [*columns], use_threads=False)


def schema_metadata(data: bytes) -> dict[bytes, bytes]:
    """The key-values of `open_checked`. Raises one of DAMAGED."""
    return dict(open_checked(data).schema_arrow.metadata or {})


def _hash_of(body: memoryview, end: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(body, digest_size=_HASH_BYTES)
    digest.update(end)
    return digest.digest()
