"""Decoding a block of large images: how many pixels are in memory at the same time."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pipeline.read.decode as decoding
from fpe_core.image.decode import FORMATS
from fpe_core.image.untrusted import declared_pixels
from pipeline.read.decode import FETCH_THREADS, DecodeSettings, decode
from tests.builders.work_rows import work_row, work_table
from tests.faults.peak_memory import is_measurable

ROOT = Path(__file__).parents[3]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


class Counter:
    """Stands before a function that decodes bytes, and counts the pixels of all its calls that go
    on at the same time."""

    def __init__(self) -> None:
        self.most = 0
        self.most_images = 0
        self._now: list[int] = []
        self._guard = threading.Lock()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(data: bytes, **options: Any) -> Any:
            with Image.open(io.BytesIO(data)) as image:
                pixels = image.width * image.height
            with self._guard:
                self._now.append(pixels)
                self.most = max(self.most, sum(self._now))
                self.most_images = max(self.most_images, len(self._now))
            try:
                return function(data, **options)
            finally:
                with self._guard:
                    self._now.remove(pixels)

        return counted


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the pixels of sources and masks together."""
    made = Counter()
    for name in ("decode_with_note", "decode_mask"):
        monkeypatch.setattr(decoding, name, made.around(getattr(decoding, name)))
    return made


def test_no_more_pixels_are_decoded_at_a_time_than_allowed(
    counter: Counter, picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PIXELS_DECODED", 100_000)
    sizes = [(200, 200), (300, 300), (64, 64), (400, 400), (100, 100)] * 6
    data = {size: encoded(picture(1, *size)) for size in sizes}
    rows = [work_row(number, image_bytes=data[size]) for number, size in enumerate(sizes)]
    decoded = decode(work_table(rows), DecodeSettings())
    assert decoded["failure"].to_pylist() == [""] * len(sizes)
    assert counter.most <= 400 * 400, "the largest is alone"
    assert counter.most > 0


def test_masks_count_too(
    counter: Counter, picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 200
    monkeypatch.setattr(decoding, "PIXELS_DECODED", side * side)
    image, mask = encoded(picture(0, side, side)), encoded(Image.new("L", (side, side), 255))
    masks = [{"uri": "", "bytes": mask}] * 3
    table = work_table([work_row(number, image_bytes=image) for number in range(8)])
    kind = [("uri", "string"), ("bytes", "binary")]
    import pyarrow as pa

    column = pa.array(
        [masks] * 8, pa.list_(pa.struct([(n, pa.type_for_alias(t)) for n, t in kind]))
    )
    decoded = decode(table.append_column("masks", column), DecodeSettings())
    assert decoded["failure"].to_pylist() == [""] * 8
    assert [len(of_row) for of_row in decoded["masks"].to_pylist()] == [3] * 8
    assert counter.most_images == 1
    assert counter.most == side * side


def test_small_images_are_decoded_side_by_side(
    picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_there = threading.Barrier(FETCH_THREADS, timeout=60)
    real = decoding.decode_with_note

    def together(data: bytes, **options: Any) -> Any:
        all_there.wait()
        return real(data, **options)

    monkeypatch.setattr(decoding, "decode_with_note", together)
    data = encoded(picture(0, 1000, 1000), "JPEG")
    rows = [work_row(number, image_bytes=data) for number in range(FETCH_THREADS)]
    assert decode(work_table(rows), DecodeSettings())["failure"].to_pylist() == [""] * len(rows)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_the_header_says_how_many_pixels(kind: str) -> None:
    data = encoded(Image.new("RGB", (70, 50)), kind)
    assert declared_pixels(data, formats=FORMATS) == 70 * 50
    assert declared_pixels(data[:8], formats=FORMATS) == 0
    assert declared_pixels(b"", formats=FORMATS) == 0


def test_what_a_task_requests_follows_the_largest_image() -> None:
    least = DecodeSettings(max_pixels=1).memory_bytes
    assert least == DecodeSettings(max_pixels=decoding.PIXELS_DECODED).memory_bytes
    assert least < 1e9
    assert 1e9 < DecodeSettings().memory_bytes < 2e9


def measured(side_px: int, count: int) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.builders.decode_memory", str(side_px), str(count)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not is_measurable, reason="Linux only")
def test_a_block_of_large_jpegs_takes_the_memory_of_one() -> None:
    """Eight of 36 megapixels: at least four bytes a pixel each, if all were decoded at once."""
    side = 6000
    assert measured(side, 8) < 3 * 4 * side * side


@pytest.mark.endurance
@pytest.mark.skipif(not is_measurable, reason="Linux only")
def test_a_block_of_98_megapixel_jpegs_stays_under_what_is_requested() -> None:
    assert measured(9900, 16) < DecodeSettings().memory_bytes < 4e9
