"""Decoding: pixels of one size for every good row, the right code for every bad one."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fpe_core import Fit
from pipeline.ledger.outcome import FailureCode
from pipeline.read.decode import PIXEL_FIELDS, DecodeSettings, decode
from pipeline.supervision.supervisor import Orders
from tests.builders.tiny_checkpoint import SIZE_PX
from tests.builders.watched import Watched
from tests.builders.work_rows import work_row, work_table

Encode = Callable[..., bytes]
SETTINGS = DecodeSettings(max_pixels=1_000_000)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decode_one(data: bytes, settings: DecodeSettings = SETTINGS) -> dict[str, object]:
    (row,) = decode(work_table([work_row(0, image_bytes=data)]), settings).to_pylist()
    return row


def pixels_of(row: dict[str, object]) -> np.ndarray:
    pixels = row["pixels"]
    assert isinstance(pixels, bytes), row["message"]
    return np.frombuffer(pixels, np.uint8).reshape(SIZE_PX, SIZE_PX, 3).astype(int)


@pytest.fixture
def photo(picture: Callable[..., Image.Image]) -> Image.Image:
    return picture(3, 96, 64)


def test_pixels_have_the_models_size_and_the_fit_maps_back(photo: Image.Image) -> None:
    row = decode_one(encoded(photo, "PNG"))
    assert row["failure"] == ""
    middle = np.asarray(photo)[:, 16:80].astype(int)
    assert np.abs(pixels_of(row) - middle).max() == 0
    fit = Fit(**json.loads(str(row["fit"])))
    assert fit.to_source(0, 0) == (16, 0)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
        ("YCbCr", "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(photo: Image.Image, mode: str, kind: str) -> None:
    image = photo.convert(mode)
    expected = np.asarray(image.convert("RGB"))[:, 16:80].astype(int)
    difference = np.abs(pixels_of(decode_one(encoded(image, kind))) - expected).mean()
    assert difference <= (0 if kind in ("PNG", "GIF") else 6)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, SIZE_PX).astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (SIZE_PX, 1)))
    pixels = pixels_of(decode_one(encoded(image, "PNG")))
    assert np.abs(pixels[0, :, 0] - np.linspace(0, 255, SIZE_PX)).max() <= 1


def test_transparent_palette_lies_on_white(photo: Image.Image) -> None:
    palette = photo.convert("P")
    data = encoded(palette, "PNG", transparency=palette.getpixel((48, 32)))
    assert pixels_of(decode_one(data))[32, 32].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    row = decode_one(encoded(photo, "PNG", exif=exif))
    upright = np.asarray(photo.rotate(-90, expand=True))[16:80].astype(int)
    assert np.abs(pixels_of(row) - upright).max() == 0
    assert json.loads(str(row["fit"]))["source_width_px"] == 64


def test_an_animation_gives_its_first_frame(picture: Callable[..., Image.Image]) -> None:
    frames = [picture(number) for number in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(pixels_of(decode_one(data)) - np.asarray(frames[0]).astype(int)).max() == 0


def bomb() -> bytes:
    """Few bytes that declare ten thousand times ten thousand pixels."""
    return encoded(Image.new("1", (10_000, 10_000)), "PNG")


def empty_gif() -> bytes:
    return b"GIF89a\x00\x00\x00\x00\x00\x00\x00;"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty", FailureCode.DECODE_FAILED),
        ("text", FailureCode.DECODE_FAILED),
        ("truncated", FailureCode.DECODE_FAILED),
        ("half a header", FailureCode.DECODE_FAILED),
        ("no pixels", FailureCode.DECODE_FAILED),
        ("bomb", FailureCode.IMAGE_TOO_LARGE),
    ],
)
def test_bad_bytes_have_their_code(photo: Image.Image, name: str, code: FailureCode) -> None:
    whole = encoded(photo, "PNG")
    data = {
        "empty": b"",
        "text": b"<html>404</html>" * 50,
        "truncated": whole[: len(whole) // 2],
        "half a header": whole[:20],
        "no pixels": empty_gif(),
        "bomb": bomb(),
    }[name]
    row = decode_one(data)
    assert (row["failure"], row["pixels"]) == (code, None)
    assert str(row["message"]).startswith("the image bytes in the manifest: ")


def test_the_pixel_limit_can_be_raised(photo: Image.Image) -> None:
    data = encoded(photo, "PNG")
    limit = photo.width * photo.height
    assert decode_one(data, DecodeSettings(max_pixels=limit - 1))["failure"] == "image_too_large"
    assert decode_one(data, DecodeSettings(max_pixels=limit))["failure"] == ""


def test_bad_files_have_their_code(tmp_path: Path, photo: Image.Image) -> None:
    good = tmp_path / "good.png"
    photo.save(good)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    uris = [tmp_path / "absent.png", folder, pipe, good]
    rows = [work_row(number, uri=str(uri)) for number, uri in enumerate(uris)]
    rows.append(work_row(9, uri="nowhere://bucket/picture.png"))
    result = decode(work_table(rows), SETTINGS).to_pylist()
    missing = FailureCode.SOURCE_MISSING
    assert [row["failure"] for row in result] == [missing, missing, missing, "", missing]
    assert all(row["uri"] in row["message"] for row in result if row["failure"])


def test_one_bad_row_costs_one_row(photo: Image.Image) -> None:
    good = encoded(photo, "PNG")
    rows = [work_row(n, image_bytes=b"junk" if n == 5 else good) for n in range(12)]
    result = decode(work_table(rows), SETTINGS)
    assert [row["row"] for row in result.to_pylist() if row["failure"]] == [5]
    assert [row["row"] for row in result.to_pylist()] == list(range(12))


def test_synthetic_rows_pass_without_pixels() -> None:
    (row,) = decode(work_table([work_row(0, source_prompt="a cat", seed=7)]), SETTINGS).to_pylist()
    assert (row["pixels"], row["fit"], row["failure"]) == (None, "", "")


def test_the_schema_is_the_same_whatever_the_rows(photo: Image.Image) -> None:
    good, bad = work_row(0, image_bytes=encoded(photo, "PNG")), work_row(1, image_bytes=b"")
    carried = pa.schema([pa.field("weather", pa.string())])
    work_fields = [item for item in work_table([], carried).schema if item.name != "image_bytes"]
    expected = pa.schema([*work_fields, *PIXEL_FIELDS])
    for rows in ([good], [bad], [work_row(2)], [good, bad, work_row(2)], []):
        with_weather = [row | {"carried": {"weather": None}} for row in rows]
        table = decode(work_table(with_weather, carried), SETTINGS)
        assert table.schema.equals(expected)
    assert expected.names[-len(PIXEL_FIELDS) :] == ["pixels", "fit", "failure", "message"]


def test_after_a_death_sources_are_decoded_one_at_a_time_and_the_guilty_one_is_not(
    photo: Image.Image,
) -> None:
    block = work_table([work_row(n, image_bytes=encoded(photo, "PNG")) for n in range(3)])
    groups = block["group_id"].to_pylist()
    watched = Watched(Orders(is_careful=True, quarantined={groups[1]: "it died of it"}))
    decoded = decode(block, SETTINGS, watched).to_pylist()
    assert watched.in_focus == [[group] for group in groups]
    assert watched.signs_of_life == 2
    assert [row["failure"] for row in decoded] == ["", FailureCode.WORKER_DIED, ""]
    assert decoded[1]["message"] == "the image bytes in the manifest: it died of it"
    assert decoded[1]["pixels"] is None


def test_in_a_run_that_is_stopped_nothing_is_decoded(photo: Image.Image) -> None:
    block = work_table([work_row(0, image_bytes=encoded(photo, "PNG"))])
    decoded = decode(block, SETTINGS, Watched(Orders(is_stopping=True)))
    assert decoded.num_rows == 0
    assert decoded.schema.equals(decode(block, SETTINGS).schema)
