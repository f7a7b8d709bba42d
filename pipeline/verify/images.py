"""Checks that the images of a run exist and can be decoded, on all cores.

Decoding small images keeps Python's interpreter busy, so threads do not help. From some images on
they are checked by processes:

    python -P -c "... pipeline.verify.images.main()"

Such a process reads lines of JSON: first {"url", "options"}, then lists of images; for each list it
answers with the list of its problems.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from fpe_core import FPEError, decode_image
from pipeline.errors import ResourceError, StorageError
from pipeline.in_order import in_order
from pipeline.ledger.parts import image_hash
from pipeline.storage.folder import Folder

_MOST_PIXELS = 2**31  # no limit is needed: the pipeline itself wrote these images
_FORMATS = ("PNG", "JPEG", "WEBP")
"""What the pipeline writes."""
_IMAGES_AT_ONCE = 128
_FEW_IMAGES = 2_000
"""So many are checked sooner than processes start."""
_MOST_PROCESSES = 16
_THREADS = 16
"""Of every process, to wait for a store in. There are none for a local disk."""


def read_image(folder: Folder, name: str) -> Image.Image:
    """An image of the run. Raises StorageError, and FPEError if it cannot be decoded."""
    return decode_image(folder.read(name), max_pixels=_MOST_PIXELS)


NamedImage: TypeAlias = Sequence[str]
"""The name of an image in the run folder, and its hash (`ledger.parts.image_hash`) as hexadecimal
text, "" if it is not known."""
_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pipeline.verify.images import main
del sys.path[0]
main()
"""
"""Imports this program's own packages, whatever else has their names."""


class ImageChecks:
    """Checks images in several processes. A context manager, which ends them."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        is_in_memory = isinstance(folder.fs, MemoryFileSystem)
        self._lanes = 1 if is_in_memory else min(_usable_cores(), _MOST_PROCESSES)
        self._few_left = sys.maxsize if is_in_memory else _FEW_IMAGES
        self._own = threading.local()
        self._processes: list[subprocess.Popen[str]] = []
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="images")
        self._threads = _threads_for(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            with contextlib.suppress(OSError):  # it has ended already
                process.communicate()
        if self._threads is not None:
            self._threads.shutdown()

    def check(self, images: Iterable[Sequence[NamedImage]]) -> Iterator[tuple[int, list[str]]]:
        """For lists of images: (their number, problems), a bounded number of images ahead."""
        return in_order(self._pool, self._check, _cut(images), 4 * self._lanes)

    def _check(self, names: Sequence[NamedImage]) -> tuple[int, list[str]]:
        if self._few_left > 0:
            self._few_left -= len(names)
            return len(names), image_problems(self._folder, names, self._threads)
        if not hasattr(self._own, "process"):
            self._own.process = self._start()
        return len(names), _ask(self._own.process, names)

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
        }
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).resolve().parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C ends them through their stdin
        )
        self._processes.append(process)
        _send(process, {"url": self._folder.url, "options": dict(self._folder.options)})
        return process


def _cut(images: Iterable[Sequence[NamedImage]]) -> Iterator[list[NamedImage]]:
    """The same images in lists of at most _IMAGES_AT_ONCE."""
    waiting: list[NamedImage] = []
    for some in images:
        waiting += some
        while len(waiting) >= _IMAGES_AT_ONCE:
            yield waiting[:_IMAGES_AT_ONCE]
            waiting = waiting[_IMAGES_AT_ONCE:]
    if waiting:
        yield waiting


def _send(process: subprocess.Popen[str], value: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


def _ask(process: subprocess.Popen[str], names: Sequence[NamedImage]) -> list[str]:
    assert process.stdout is not None
    answer = ""
    with contextlib.suppress(OSError):  # a broken pipe
        _send(process, names)
        answer = process.stdout.readline()
    if not answer:
        raise ResourceError(
            f"a process that checks images ended with code {process.wait()}; is there enough "
            "memory?"
        )
    problems: list[str] = json.loads(answer)
    return problems


def image_problems(
    folder: Folder, names: Sequence[NamedImage], threads: ThreadPoolExecutor | None
) -> list[str]:
    """A line for each of these images that is missing, is another, or cannot be decoded."""
    found = (map if threads is None else threads.map)(partial(_image_problem, folder), names)
    return [problem for problem in found if problem]


def _image_problem(folder: Folder, image: NamedImage) -> str:
    """A problem if the image is missing, is another, or cannot be decoded, else ""."""
    name, expected = image
    try:
        data = folder.read(name)
        if not _is_readable(data):
            decode_image(data, max_pixels=_MOST_PIXELS)
    except StorageError as error:
        return f"an image is missing: {error}"
    except FPEError as error:
        return f"{name} does not decode: {error}"
    digest = image_hash(data).hex()
    has_hash_in_name = name.rpartition("/")[0].endswith("/mask")
    if (has_hash_in_name and digest not in name) or digest != (expected or digest):
        return f"{name} is not the image that was written there: it has another hash"
    return ""


def _is_readable(data: bytes) -> bool:
    """Whether an image decodes: the same as `decode_image`, but for the conversion of colours."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
    except Exception:  # noqa: BLE001 - decoders raise nearly anything; `decode_image` says what
        return False
    return True


def _threads_for(folder: Folder) -> ThreadPoolExecutor | None:
    return None if isinstance(folder.fs, LocalFileSystem) else ThreadPoolExecutor(_THREADS)


def _usable_cores() -> int:
    from fpe_core.device import usable_cores  # loads torch, which the processes need not

    return usable_cores()


def main() -> None:
    """Checks the images that stdin names."""
    folder = Folder(**json.loads(sys.stdin.readline()))
    threads = _threads_for(folder)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(image_problems(folder, json.loads(line), threads)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
