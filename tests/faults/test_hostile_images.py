"""Pictures of every kind of damage through the decode stage: pixels or a code, and no memory."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from fpe_core.image.decode import FORMATS
from fpe_core.image.fit import Fit
from pipeline.ledger.outcome import MAX_MESSAGE_CHARS, FailureCode
from pipeline.read.decode import DecodeSettings, decode
from tests.builders.hostile_pictures import bombs, encoded, seeds
from tests.builders.mutations import mutated, with_right_checksums
from tests.builders.tiny_checkpoint import SIZE_PX
from tests.builders.work_rows import work_row, work_table
from tests.faults.fuzz import cases
from tests.faults.peak_memory import is_measurable, peak_memory

SETTINGS = DecodeSettings(max_pixels=1_000_000)
BATCH = 200
MOST_BYTES = 100 << 20
"""Of memory, for sixteen pixels more than a megapixel in double precision and its copies."""

# As in a worker: decoders warn about damaged files, and only here that would be an error.
pytestmark = pytest.mark.filterwarnings("ignore")


def check(row: dict[str, object], name: str) -> str:
    """Asserts that a decoded row has pixels or a code; returns the code."""
    if not row["failure"]:
        assert len(row["pixels"]) == SIZE_PX * SIZE_PX * 3, name  # type: ignore[arg-type]
        assert Fit(**json.loads(str(row["fit"]))).source_width_px > 0, name
        assert re.match("$|colour", str(row["message"])), name
        return ""
    assert row["failure"] in (FailureCode.DECODE_FAILED, FailureCode.IMAGE_TOO_LARGE), (name, row)
    assert (row["pixels"], row["fit"]) == (None, ""), name
    assert 0 < len(str(row["message"])) <= MAX_MESSAGE_CHARS, name
    return str(row["failure"])


def codes_of(pictures: list[tuple[str, bytes]]) -> list[str]:
    table = work_table([work_row(n, image_bytes=data) for n, (_, data) in enumerate(pictures)])
    rows = decode(table, SETTINGS).to_pylist()
    return [check(row, name) for row, (name, _) in zip(rows, pictures, strict=True)]


def test_every_seed_is_sound_and_every_format_has_one() -> None:
    sound = seeds()
    known = {kind.lower().replace("2000", " 2000") for kind in FORMATS}
    assert known == {name for name in sound if name in known}
    codes = dict(zip(sound, codes_of(list(sound.items())), strict=True))
    assert {name: code for name, code in codes.items() if code} == {}


def test_damaged_pictures_have_pixels_or_a_code() -> None:
    sound = list(seeds().items())
    seen = set()
    batch: list[tuple[str, bytes]] = []
    for number, chance in cases("image"):
        name, data = sound[number % len(sound)]
        damaged = mutated(data, chance, [other for _, other in sound])
        if name.startswith("png") and chance.random() < 0.7:
            damaged = with_right_checksums(damaged)
        batch.append((f"image {number} ({name})", damaged))
        if len(batch) == BATCH:
            seen |= set(codes_of(batch))
            batch.clear()
    seen |= set(codes_of(batch))
    assert seen == {"", FailureCode.DECODE_FAILED, FailureCode.IMAGE_TOO_LARGE}


@pytest.mark.skipif(not is_measurable, reason="the kernel tells no peak of memory")
def test_bombs_take_no_memory() -> None:
    settings = DecodeSettings(max_pixels=1_000_000)
    too_large = {}
    for name, data in bombs().items():
        table = work_table([work_row(0, image_bytes=data)])
        with peak_memory() as growth:
            (row,) = decode(table, settings).to_pylist()
        too_large[name] = check(row, name) == FailureCode.IMAGE_TOO_LARGE
        assert growth[0] < MOST_BYTES, (name, growth[0], row["message"])
    assert sum(too_large.values()) > len(too_large) / 2, too_large


@pytest.mark.skipif(not is_measurable, reason="the kernel tells no peak of memory")
def test_the_measurement_sees_memory() -> None:
    """Far more than is asked for: allocators give back meanwhile what earlier tests had."""
    with peak_memory() as growth:
        held = bytearray(b"x") * (4 * MOST_BYTES)
    assert growth[0] > MOST_BYTES, len(held)


def test_what_is_no_picture_to_read(tmp_path: Path) -> None:
    """Files of other kinds, with the names of pictures; none of them starts a program."""
    files = {
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "empty.jpg": b"",
        "zeros.bmp": bytes(5000),
        "tga.png": bytes([0, 0, 2, *[0] * 9, 9, 0, 9, 0, 24, 0]) + bytes(243),
        "page.webp": b"<html>404 not found</html>",
        "pickle.png": b"\x80\x04cposix\nsystem\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "right.png").write_bytes(encoded("PNG"))
    for kind in ("JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        (tmp_path / f"wrong-{kind}.png").write_bytes(encoded(kind))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("right.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    rows = [work_row(number, uri=f"{tmp_path}/{name}") for number, name in enumerate(names)]
    failures = {
        name: row["failure"]
        for name, row in zip(names, decode(work_table(rows), SETTINGS).to_pylist(), strict=True)
    }
    assert {name for name in names if not failures[name]} == {
        *("right.png", "link.png"),
        *(f"wrong-{kind}.png" for kind in ("JPEG", "WEBP", "GIF", "TIFF", "BMP")),
    }
    assert {failures[name] for name in files} == {FailureCode.DECODE_FAILED}
    missing = ("folder.png", "loop.png", "pipe.png")
    assert {failures[name] for name in missing} == {FailureCode.SOURCE_MISSING}
