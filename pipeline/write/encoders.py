"""Encodes images in processes of their own, on as many cores as a worker may use.

Pillow 13 does not release the interpreter while it encodes a WebP, some 50 ms for 512 px, so
threads encode one image after the other. In the worker's own process the thread that feeds the
model would wait for each of them, too. (PNG and JPEG are encoded in short pieces.)

A process is started when an image finds all others busy. It ends with the worker, however that
ends: its input is closed then. It knows neither torch nor the storage, and takes 35 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from PIL import Image

import pipeline
from pipeline.errors import StorageError
from pipeline.write.image_format import ImageFormat

_START = (
    "import sys; own, *others = sys.argv[1:]; sys.path[:] = [own, *sys.path, *others]; "
    "from pipeline.write.encoders import serve; serve()"
)
_OWN_FOLDER = str(Path(pipeline.__file__).resolve().parents[1])
_ATTEMPTS = 2


class Encoders:
    """Up to `processes` processes that encode images. Any number of threads may use them."""

    def __init__(self, processes: int) -> None:
        self._free = threading.BoundedSemaphore(processes)
        self._idle: list[_Encoder] = []
        self.end = weakref.finalize(self, _end_all, self._idle)
        """Ends the processes. Called at the end of the program at the latest."""

    def encode(self, image_format: ImageFormat, image: Image.Image, xmp: bytes | None) -> bytes:
        """The bytes of `image_format.encode`; waits for a process that is free.

        Raises StorageError if the image cannot be encoded, or its process died of it twice.
        """
        request = {
            "format": [image_format.name, image_format.quality],
            "size": image.size,
            "xmp": None if xmp is None else len(xmp),
        }
        with self._free:
            for _ in range(_ATTEMPTS):
                encoder = self._take()
                try:
                    answer, data = encoder.ask(request, xmp or b"", image)
                except (OSError, EOFError, ValueError):
                    encoder.end()
                    continue
                self._idle.append(encoder)
                if "error" in answer:
                    raise StorageError(f"the image cannot be encoded: {answer['error']}")
                return data
        raise StorageError(
            f"the process that encodes images as {image_format.name} died {_ATTEMPTS} times: is "
            "there enough memory?"
        )

    def _take(self) -> _Encoder:
        try:
            return self._idle.pop()
        except IndexError:
            return _Encoder()


class _Encoder:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        """Raises OSError if it cannot be started."""
        # It must find the modules of this process, wherever that was started. Ray puts the folder
        # of the driver first on our path; a pipeline.py or a PIL.py there is not ours (`own_code`).
        self._process = subprocess.Popen(  # noqa: S603 - nothing comes from outside
            [sys.executable, "-P", "-c", _START, _OWN_FOLDER, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def ask(
        self, request: dict[str, Any], xmp: bytes, image: Image.Image
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a request. Raises EOFError or OSError if the process has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        _send(stdin, request, xmp, image.tobytes())
        answer = _receive_header(stdout)
        return answer, bytes(_receive(stdout, answer.get("bytes", 0)))

    def end(self) -> None:
        """Kills the process and waits for its end."""
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


def _end_all(encoders: list[_Encoder]) -> None:
    while encoders:
        encoders.pop().end()


def serve() -> None:
    """The program of an encoding process: answers requests until its input ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the driver, which stops in order
    requests: Any = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - stdin
    answers: Any = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115 - stdout
    while True:
        try:
            request = _receive_header(requests)
            width, height = request["size"]
            xmp = None if request["xmp"] is None else bytes(_receive(requests, request["xmp"]))
            pixels = _receive(requests, width * height * 3)
        except EOFError:
            return
        try:
            image = Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
            data = ImageFormat(*request["format"]).encode(image, xmp)
            answer: dict[str, Any] = {"bytes": len(data)}
        except Exception as error:  # noqa: BLE001 - the process goes on with the next image
            data, answer = b"", {"error": f"{type(error).__name__}: {error}"}
        try:
            _send(answers, answer, data)
        except BrokenPipeError:
            return


def _send(pipe: IO[bytes], header: dict[str, Any], *parts: bytes) -> None:
    """Writes a header as JSON, after its length, and what it announces."""
    said = json.dumps(header).encode()
    for part in (len(said).to_bytes(4), said, *parts):
        left = memoryview(part)
        while left:
            left = left[pipe.write(left) :]


def _receive_header(pipe: IO[bytes]) -> dict[str, Any]:
    """Raises EOFError at the end of the pipe."""
    header: dict[str, Any] = json.loads(_receive(pipe, int.from_bytes(_receive(pipe, 4))))
    return header


def _receive(pipe: IO[bytes], count: int) -> bytearray:
    """The next `count` bytes. Raises EOFError if the pipe ends before them."""
    data = bytearray(count)
    left = memoryview(data)
    while left:
        found = pipe.readinto(left)  # type: ignore[attr-defined]
        if not found:
            raise EOFError
        left = left[found:]
    return data
