"""Writes the files of a part: images first, then the metadata that commits them.

    part-<id>/edited/<stem>__<edit_id>.<ext>
              source/<stem>__<source_id>.<ext>
              mask/<stem>__<hash of the file>.png
              carried/<stem>__<hash of the file>.<its own ext>
              metadata.parquet
    rejected/part-<id>/<stem>__<edit_id>.<ext>
                       source/*, mask/*, carried/*, metadata.parquet   the same, of its rejected
                                                                       edits
    .outcomes/part-<id>-*.parquet        written before the metadata, see `ledger.parts`

`datasets.load_dataset(run_dir)` reads exactly the rows of the metadata files, so once one part is
finished, images of unfinished parts are not seen. Every name is derived from the content, so a
second attempt at the same work finds the file there. If it has another image for the same name (the
retry ladder, the quality or the source's bytes changed since an attempt that was killed), the file
stays, and the new one is <stem>__<edit_id>-<hash>.<ext>. So nothing is overwritten, and an image is
never under the metadata of another attempt. All metadata files of
a run folder have one schema (`MetadataLayout`). Metadata only names files in its own folder, so a
source with accepted and rejected edits is written to both folders.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from functools import partial

import pyarrow as pa
from PIL import Image

from pipeline.errors import AlreadyExistsError, StorageError
from pipeline.ledger.checked_file import checked_parquet
from pipeline.ledger.ledger import Right
from pipeline.ledger.parts import (
    METADATA_FILE,
    OUTCOMES_FILE_KEY,
    PART_PREFIX,
    REJECTED_FILE_KEY,
    image_hash,
    read_part_outcomes,
    rejected_part,
    restore_rejected_metadata,
    write_beside,
    write_outcomes,
)
from pipeline.pixel_budget import PixelBudget
from pipeline.read.carried_images import image_kind
from pipeline.storage.folder import Folder
from pipeline.write.encoders import Encoders
from pipeline.write.image_format import ImageFormat

_HASH_IN_NAME = 8
PIXELS_BEING_WRITTEN = 64 * 2**20
"""The pixels of images that wait to be written, or are: 256 MB in memory."""


def part_name(edit_ids: Iterable[bytes]) -> str:
    """The folder of the part that holds these edits: it depends on their ids, not on outcomes."""
    digest = hashlib.blake2b(digest_size=16)
    for edit_id in edit_ids:
        digest.update(edit_id)
    return f"{PART_PREFIX}{digest.hexdigest()}"


class PartWriter:
    """Writes one part. Images are written on the pool's threads while the device computes.

    A `put_...` of an image waits until `budget` has room for its pixels, which it has until its
    file is written: whoever makes images faster than they are written has to wait.

    The futures return file names relative to the folder of the part, or with `is_rejected` to the
    folder of its rejected edits, see `folder_of`.
    """

    def __init__(
        self,
        folder: Folder,
        part: str,
        image_format: ImageFormat,
        pool: Executor,
        right: Right | None = None,
        *,
        keeps_rejected: bool = False,
        budget: PixelBudget | None = None,
        encoders: Encoders | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            keeps_rejected: whether parts of this run may have rejected edits with files.
            budget: of the pixels that wait to be written, of all parts together; None: its own.
            encoders: processes that encode the images; None: the pool's threads do.
            progress: called on a thread of the pool when a file is written, or could not be.
        """
        self.part = part
        self._right = right
        self._folder = folder
        self._extension = image_format.extension
        self._pool = pool
        self._keeps_rejected = keeps_rejected
        self._budget = budget or PixelBudget(PIXELS_BEING_WRITTEN)
        self._encode = (
            image_format.encode if encoders is None else partial(encoders.encode, image_format)
        )
        self._progress = progress
        self._hashes: dict[str, bytes] = {}
        self._images_written = 0
        self._seconds = 0.0
        self._counting = threading.Lock()

    def folder_of(self, *, is_rejected: bool) -> str:
        """The folder for files of accepted or of rejected edits, relative to the run folder."""
        return rejected_part(self.part) if is_rejected else self.part

    def finished_outcomes(self) -> pa.Table | None:
        """The outcomes of the part if it is already committed by its metadata, else None.

        That is the case if an earlier worker crashed after it wrote the metadata and before it
        reported the outcomes.
        """
        for is_rejected in (False, True) if self._keeps_rejected else (False,):
            folder = self.folder_of(is_rejected=is_rejected)
            if self._folder.exists(f"{folder}/{METADATA_FILE}"):
                return self._outcomes_there(folder)
        return None

    def put_edited(
        self,
        stem: str,
        edit_id: bytes,
        image: Image.Image,
        xmp: bytes | None = None,
        *,
        is_rejected: bool = False,
    ) -> Future[str]:
        """Starts writing an edited image. The future returns its name, or raises StorageError.

        `xmp`: the XMP packet to write into the file, see `provenance`.
        """
        name = f"{stem}__{edit_id.hex()}.{self._extension}"
        return self._put(name if is_rejected else f"edited/{name}", image, xmp, is_rejected)

    def put_source(
        self,
        stem: str,
        source_id: bytes,
        image: Image.Image,
        xmp: bytes | None = None,
        *,
        is_rejected: bool = False,
    ) -> Future[str]:
        """Same for the source: a fitted one, or a synthetic one."""
        name = f"source/{stem}__{source_id.hex()}.{self._extension}"
        return self._put(name, image, xmp, is_rejected)

    def put_mask(self, stem: str, png: bytes, *, is_rejected: bool = False) -> Future[str]:
        """Same for a fitted mask, given as PNG. Equal masks of a source share one file."""
        digest = hashlib.blake2b(png, digest_size=16).hexdigest()
        return self._write(f"mask/{stem}__{digest}.png", lambda: png, is_rejected)

    def put_carried(self, stem: str, data: bytes, *, is_rejected: bool = False) -> Future[str]:
        """Same for an image of the manifest that is carried: its bytes are written unchanged."""
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        extension = image_kind(data) or "bin"
        name = f"carried/{stem}__{digest}.{'jpg' if extension == 'jpeg' else extension}"
        return self._write(name, lambda: data, is_rejected)

    def figures(self) -> dict[str, float]:
        """rows: images written; seconds: time for encoding and writing, summed over all threads."""
        return {"rows": self._images_written, "seconds": self._seconds}

    def finish(
        self, accepted: pa.Table, outcomes: pa.Table, rejected: pa.Table | None = None
    ) -> pa.Table:
        """Writes the metadata that commits the part, and returns the part's outcomes.

        `accepted` and `rejected` are the metadata rows of the edits with files; at least one of
        them has rows. The outcomes are written to a file of their own first. The metadata of the
        accepted edits commits the part; if there are none, that of the rejected edits does.

        If another attempt at the same work finished first, its file stays and its outcomes are
        returned, so the outcomes always match the folder. Raises LeaseError, and does not commit
        the part, if another run has taken the folder over.
        """
        if self._right is not None:
            self._right.check()
        self._folder.sync(self._hashes)  # before anything names these files
        if self._keeps_rejected and (found := self.finished_outcomes()) is not None:
            return found  # its verdicts may differ, and then its metadata file has the other name
        record = write_outcomes(self._folder, self.part, outcomes, self._hashes)
        folder, data = self.part, encode_metadata(accepted, record)
        if rejected is not None and rejected.num_rows:
            of_rejected = encode_metadata(rejected, record)
            if accepted.num_rows:
                later = write_beside(self._folder, self.part, of_rejected, "-rejected")
                data = encode_metadata(accepted, record, later)
            else:
                folder, data = rejected_part(self.part), of_rejected
        try:
            self._folder.write_new(f"{folder}/{METADATA_FILE}", data)
        except AlreadyExistsError:
            return self._outcomes_there(folder)
        return outcomes

    def finish_rejected(self) -> None:
        """Writes the metadata of the rejected edits of a part that is committed.

        Raises StorageError; then the run that adopts the part writes it.
        """
        if self._keeps_rejected:
            restore_rejected_metadata(self._folder, self.part)

    def _outcomes_there(self, folder: str) -> pa.Table:
        return read_part_outcomes(self._folder, folder)

    def _put(
        self, name: str, image: Image.Image, xmp: bytes | None, is_rejected: bool
    ) -> Future[str]:
        pixels = image.width * image.height
        self._budget.take(pixels)
        try:
            written = self._write(name, lambda: self._encode(image, xmp), is_rejected)
        except BaseException:
            self._budget.give_back(pixels)
            raise
        written.add_done_callback(lambda _: self._budget.give_back(pixels))
        return written

    def _write(self, name: str, encode: Callable[[], bytes], is_rejected: bool) -> Future[str]:
        """Encodes and writes a file on the pool. The future returns the name that it has."""
        folder = self.folder_of(is_rejected=is_rejected)
        return self._pool.submit(self._encode_and_write, folder, name, encode)

    def _encode_and_write(self, folder: str, name: str, encode: Callable[[], bytes]) -> str:
        began = time.monotonic()
        try:
            data = encode()
            digest = image_hash(data)
            written = self._write_image(folder, name, data, digest)
        finally:
            self._progress()
        with self._counting:
            self._hashes[f"{folder}/{written}"] = digest
            self._images_written += 1
            self._seconds += time.monotonic() - began
        return written

    def _write_image(self, folder: str, name: str, data: bytes, digest: bytes) -> str:
        """Writes the image, unless it is there; returns its name. Raises StorageError."""
        if self._is_written(f"{folder}/{name}", data, digest):
            return name
        begin, _, extension = name.rpartition(".")
        name = f"{begin}-{digest[:_HASH_IN_NAME].hex()}.{extension}"
        if self._is_written(f"{folder}/{name}", data, digest):
            return name
        raise StorageError(
            f"{self._folder.url_of(f'{folder}/{name}')} exists with another content than the hash "
            "in its name says: it is damaged; move it away"
        )

    def _is_written(self, path: str, data: bytes, digest: bytes) -> bool:
        """Writes a file if its name is free; whether the file has these bytes now."""
        if self._folder.write_if_absent(path, data, is_synced=False):
            return True
        with self._counting:
            if path in self._hashes:  # this attempt wrote it
                return self._hashes[path] == digest
        return image_hash(self._folder.read(path)) == digest


def encode_metadata(metadata: pa.Table, record: str, rejected: str | None = None) -> bytes:
    """The bytes of a metadata.parquet.

    `record`: the path of the part's outcomes (`write_outcomes`); `rejected`: that of the metadata
    of its rejected edits, which is written after this one.
    """
    names = {**(metadata.schema.metadata or {}), OUTCOMES_FILE_KEY: record.encode()}
    if rejected is not None:
        names[REJECTED_FILE_KEY] = rejected.encode()
    return checked_parquet(metadata.replace_schema_metadata(names))
