"""Images encoded in processes of their own: equal bytes, and no process outlives its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil
import pytest
from PIL import Image

from pipeline.errors import StorageError
from pipeline.write.encoders import Encoders
from pipeline.write.image_format import ImageFormat

Picture = Callable[..., Image.Image]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def encoders() -> Iterator[Encoders]:
    yield (made := Encoders(2))
    made.end()


def processes(encoders: Encoders) -> list[psutil.Process]:
    return [psutil.Process(each._process.pid) for each in encoders._idle]


@pytest.mark.parametrize("xmp", [None, b"<x/>" * 500])
@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_the_bytes_are_those_of_this_process(
    encoders: Encoders, picture: Picture, name: Literal["png", "jpeg", "webp"], xmp: bytes | None
) -> None:
    image_format = ImageFormat(name, 90)
    for number, size in enumerate([(64, 64), (1, 7), (500, 300)]):
        image = picture(number, *size)
        assert encoders.encode(image_format, image, xmp) == image_format.encode(image, xmp)
    assert len(processes(encoders)) == 1, "it is used again"


def test_modules_of_a_users_own_are_not_taken_for_ours(
    encoders: Encoders, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts the folder of the driver first on a worker's path."""
    for name in ("pipeline", "PIL", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    monkeypatch.syspath_prepend(tmp_path)
    image_format, image = ImageFormat("webp"), picture(0)
    assert encoders.encode(image_format, image, None) == image_format.encode(image)


def test_many_threads_get_the_bytes_of_their_own_image(
    encoders: Encoders, picture: Picture
) -> None:
    image_format, images = ImageFormat("webp"), [picture(number) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: encoders.encode(image_format, image, None), images))
    assert found == [image_format.encode(image) for image in images]
    assert len(processes(encoders)) <= 2


def test_an_image_that_cannot_be_encoded_costs_only_itself(
    encoders: Encoders, picture: Picture
) -> None:
    with pytest.raises(StorageError, match="cannot be encoded: ValueError: "):
        encoders.encode(ImageFormat("jpeg"), picture(0), b"x" * 70_000)
    (before,) = processes(encoders)
    assert encoders.encode(ImageFormat("jpeg"), picture(0), None)
    assert processes(encoders) == [before]


def test_a_process_that_was_killed_is_replaced(encoders: Encoders, picture: Picture) -> None:
    expected = encoders.encode(ImageFormat("png"), picture(0), None)
    (before,) = processes(encoders)
    before.kill()
    assert encoders.encode(ImageFormat("png"), picture(0), None) == expected
    assert processes(encoders) != [before]


def test_an_image_whose_process_dies_twice_costs_only_itself(
    encoders: Encoders, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.write.encoders._START", "import os; os._exit(9)")
        with pytest.raises(StorageError, match="died 2 times"):
            encoders.encode(ImageFormat("png"), picture(0), None)
    assert encoders.encode(ImageFormat("png"), picture(0), None)


def test_processes_end_with_the_worker_however_it_ends() -> None:
    """A worker that is killed cannot say anything to anybody."""
    program = """
        from PIL import Image
        from pipeline.write.encoders import Encoders
        from pipeline.write.image_format import ImageFormat
        encoders = Encoders(1)
        encoders.encode(ImageFormat("png"), Image.new("RGB", (9, 9)), None)
        print(encoders._idle[0]._process.pid, flush=True)
        input()
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with worker:
        assert worker.stdout is not None
        encoder = psutil.Process(int(worker.stdout.readline()))
        assert encoder.is_running()
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(60)
        until = time.monotonic() + 60
        while encoder.is_running() and encoder.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, "it should end when its input does"
            time.sleep(0.01)


def test_an_encoding_process_knows_no_torch() -> None:
    """There may be sixteen of them beside a worker."""
    program = (
        "import sys, pipeline.write.encoders; print({'torch', 'ray', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"
