"""What is refused says what it is; orientation has one rule; Pillow's guard stays as it was."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from fpe_core import ImageDecodeError, ImageTooLargeError, decode_image, fit_image
from fpe_core.image.masks import decode_mask
from tests.builders.odd_pictures import JPEG_OF_12_BITS, camera_raw, page, png, tiff
from tests.faults.peak_memory import is_measurable

SMALL = Image.new("RGB", (48, 32), (200, 30, 30))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def written(samples: np.ndarray, **options: Any) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, samples, **options)
    return sink.getvalue()


def refusal_of(data: bytes, decode: Any = decode_image) -> str:
    with pytest.raises(ImageDecodeError) as refused:
        decode(data, max_pixels=10**6)
    return str(refused.value)


CR2 = b"II*\0\x10\0\0\0CR\x02\0" + bytes(4) + camera_raw()[8:]
"""A CR2 has its mark between the header and its first directory, which is a JPEG of a quarter."""


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (camera_raw((50706, 1, 4, bytes([1, 4, 0, 0]))), "camera raw (DNG)"),
        (camera_raw((50706, 1, 4, bytes([1, 4, 0, 0])), photometric=34892), "camera raw (DNG)"),
        (camera_raw(), "camera raw (Maker)"),  # NEF, ARW, SRW, 3FR: a thumbnail and a sub-directory
        (tiff([[*page((64, 48), 16, 32803)]], [bytes(6144)]), "camera raw (of an unnamed camera)"),
        (
            tiff([page((16, 12)), page((64, 48), 16, 32803)], [bytes(192), bytes(6144)], chained=2),
            "camera raw (of an unnamed camera)",
        ),
        (CR2, "camera raw (CR2)"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(99), "camera raw (RAF)"),
        (b"IIU\0\x18\0\0\0" + bytes(99), "camera raw (RW2)"),
        (b"IIRO\x08\0\0\0" + bytes(99), "camera raw (ORF)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01" + bytes(99), "camera raw (CR3)"),
    ],
)
def test_a_camera_raw_is_refused_by_name(data: bytes, name: str, decode: Any) -> None:
    assert name in refusal_of(data, decode)


@pytest.mark.parametrize("tag", [(254, 4, 1, 1), (254, 4, 1, 3), (255, 3, 1, 2)])
def test_a_reduced_first_page_is_refused(tag: tuple[int, int, int, int]) -> None:
    pages = [[*page((12, 8)), tag], page((48, 32))]
    for chained in (2, 1):
        data = tiff(pages, [bytes(96), bytes(1536)], chained)
        assert "a reduced copy of another image (tag NewSubfileType)" in refusal_of(data)


def test_a_transparency_mask_is_a_mask_only() -> None:
    data = tiff([[*page((48, 32)), (254, 4, 1, 4)]], [bytes([7]) * 1536])
    assert "a transparency mask" in refusal_of(data)
    assert (decode_mask(data, max_pixels=10**6) == 7).all()


@pytest.mark.parametrize("chained", [2, 1])
def test_reduced_copies_after_the_first_page_do_no_harm(chained: int) -> None:
    """Pyramids, as GDAL (pages) and OME-TIFF (sub-directories) write them; a scanned page (2)."""
    pages = [[*page((48, 32)), (254, 4, 1, 2)], [*page((12, 8)), (254, 4, 1, 1)]]
    data = tiff(pages, [bytes([90]) * 1536, bytes(96)], chained)
    assert decode_image(data, max_pixels=10**6).getpixel((3, 3)) == (90, 90, 90)


@pytest.mark.parametrize(
    ("samples", "options", "kind"),
    [
        (np.zeros((8, 8, 3), np.float32), {"photometric": "rgb"}, "3 x 32 bits, float, RGB"),
        (np.zeros((8, 8), np.float16), {"photometric": "minisblack"}, "1 x 16 bits, float"),
        (
            np.zeros((8, 8), np.complex64),
            {"photometric": "minisblack"},
            "1 x 64 bits, complex float",
        ),
        (np.zeros((8, 8, 3), np.uint32), {"photometric": "rgb"}, "3 x 32 bits, unsigned, RGB"),
        (
            np.zeros((8, 8, 2), np.uint16),
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]},
            "2 x 16 bits, unsigned",
        ),
    ],
)
def test_a_tiff_that_cannot_be_decoded_says_its_kind(
    samples: np.ndarray, options: dict[str, Any], kind: str
) -> None:
    said = refusal_of(written(samples, **options))
    assert f"the image is a TIFF of {kind}" in said
    assert "of a kind that is not read" in said


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *((34887, "LERC"), (50002, "JPEG XL"), (33003, "JPEG 2000"), (34712, "JPEG 2000")),
        *((34934, "JPEG XR"), (34933, "PNG"), (12345, "number 12345")),
    ],
)
def test_a_tiff_of_an_unread_compression_names_it(number: int, name: str) -> None:
    tags = [tag for tag in page((8, 8)) if tag[0] != 259]
    said = refusal_of(tiff([[*tags, (259, 3, 1, number)]], [bytes(64)]))
    assert f"compression {name}" in said


def test_a_damaged_tiff_says_its_kind_too() -> None:
    tags = [tag for tag in page((8, 8)) if tag[0] != 259]
    said = refusal_of(tiff([[*tags, (259, 3, 1, 8)]], [b"no deflate" * 9]))
    assert "cannot be decoded" in said
    assert "compression Deflate" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (JPEG_OF_12_BITS, "a JPEG file, but damaged or of a kind that is not read"),
        (JPEG_OF_12_BITS, "12-bit"),
        (b"P7\nWIDTH 1\n", "a PAM image"),
        (b"PF\n1 1\n-1\n" + bytes(12), "a PFM image in colour"),
        (encoded(SMALL, "ICO"), "an icon (ICO)"),
        (b"\0\0\0\x1cftypheic" + bytes(99), "an HEIC image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"v/1\x01" + bytes(99), "an OpenEXR image"),
        (encoded(SMALL, "TGA"), "not in a supported image format"),
    ],
)
def test_other_kinds_are_named(data: bytes, said: str) -> None:
    assert said in refusal_of(data)


def xmp_of(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"'
        "/></rdf:RDF></x:xmpmeta>"
    ).encode()


def with_xmp(image: Image.Image, kind: str, packet: bytes, exif: Image.Exif | None) -> bytes:
    options: dict[str, Any] = {"exif": exif} if exif is not None else {}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    elif kind == "TIFF":
        tags: dict[int, Any] = {700: packet}
        if exif is not None:
            tags[274] = exif[274]
        options = {"tiffinfo": tags}
    else:
        options["xmp"] = packet
    return encoded(image, kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_what_exif_says_and_not_xmp(kind: str) -> None:
    """As Chromium 156 and OpenCV 5.0 show a JPEG, PNG and WebP. Pillow turns it for XMP too."""
    only_xmp = with_xmp(SMALL, kind, xmp_of(6), None)
    assert decode_image(only_xmp, max_pixels=10**6).size == (48, 32)
    exif = Image.Exif()
    exif[274] = 6
    both = with_xmp(SMALL, kind, xmp_of(3), exif)
    assert decode_image(both, max_pixels=10**6).size == (32, 48)
    exif[274] = 1
    contrary = with_xmp(SMALL, kind, xmp_of(6), exif)
    assert decode_image(contrary, max_pixels=10**6).size == (48, 32)


def test_masks_and_opened_pictures_follow_the_same_rule() -> None:
    data = with_xmp(SMALL.convert("L"), "PNG", xmp_of(6), None)
    assert decode_mask(data, max_pixels=10**6).shape == (32, 48)
    with Image.open(io.BytesIO(data)) as image:
        assert fit_image(image, 48, 32).fit.source_width_px == 48
    exif = Image.Exif()
    exif[274] = 6
    turned = encoded(SMALL.convert("L"), "PNG", exif=exif)
    assert decode_mask(turned, max_pixels=10**6).shape == (48, 32)
    assert decode_image(turned, max_pixels=10**6).size == (32, 48)


LARGE = encoded(Image.new("1", (640, 640)), "PNG")
LARGE_TIFF = encoded(Image.new("L", (640, 640)), "TIFF")
LARGE_WEBP = encoded(Image.new("RGB", (640, 640)), "WEBP")


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> int:
    """A guard of Pillow that warns above 100,000 pixels and refuses above 200,000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    return 100_000


@pytest.mark.parametrize("data", [LARGE, LARGE_TIFF, LARGE_WEBP], ids=["png", "tiff", "webp"])
@pytest.mark.parametrize("limit", [200_000, 450_000], ids=["too large", "allowed"])
def test_pillows_guard_is_as_before_after_every_call(guard: int, data: bytes, limit: int) -> None:
    for size_limit in (limit, limit):
        if limit == 450_000:
            assert decode_image(data, max_pixels=size_limit).size == (640, 640)
        else:
            with pytest.raises(ImageTooLargeError, match=r"640 x 640|200000"):
                decode_image(data, max_pixels=size_limit)
        assert guard == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError), Image.open(io.BytesIO(data)):
        pass


def test_pillows_guard_is_not_raised_for_what_is_below_it(guard: int) -> None:
    small, broken = encoded(SMALL, "PNG"), LARGE[:60]
    seen = set()

    def look(_: int) -> None:
        decode_image(small, max_pixels=10**9)
        seen.add(Image.MAX_IMAGE_PIXELS)
        with pytest.raises(ImageDecodeError):
            decode_image(b"II*\0" + small, max_pixels=10**9)
        seen.add(Image.MAX_IMAGE_PIXELS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(64)))
    assert seen == {guard}
    with pytest.raises(ImageDecodeError):
        decode_image(broken, max_pixels=10**9)
    assert guard == Image.MAX_IMAGE_PIXELS


def test_pillows_guard_is_as_before_after_calls_of_many_threads(guard: int) -> None:
    """Large, small and broken ones together, with different limits."""
    work = [(LARGE, 450_000), (LARGE_TIFF, 900_000), (LARGE, 9), (LARGE[:60], 10**9)] * 24

    def decode(item: tuple[bytes, int]) -> str:
        try:
            return str(decode_image(item[0], max_pixels=item[1]).size)
        except (ImageDecodeError, ImageTooLargeError) as error:
            return type(error).__name__

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(decode, work))
    expected = ["(640, 640)", "(640, 640)", "ImageTooLargeError", "ImageDecodeError"] * 24
    assert found == expected
    assert guard == Image.MAX_IMAGE_PIXELS


MEASURE = """
import sys
from pathlib import Path
from fpe_core import decode_image
from tests.faults.peak_memory import peak_memory
small, large = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes()
decode_image(small, max_pixels=10**9)  # what is loaded once is loaded now
with peak_memory() as growth:
    image = decode_image(large, max_pixels=10**9)
print(growth[0] / (image.width * image.height))
"""


def as_text(samples: np.ndarray) -> bytes:
    return " ".join(map(str, samples.ravel())).encode()


def deep_pictures(width: int, height: int) -> dict[str, bytes]:
    ramp = np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width)
    deep = np.rint(ramp * 65535).astype(np.uint16)
    four = np.stack([deep, deep, deep, np.full_like(deep, 65535)], -1)
    grey = {"photometric": "minisblack"}
    exif = Image.Exif()
    exif[274] = 6
    head = f"{width} {height}\n".encode()
    return {
        "png 16": encoded(Image.fromarray(deep), "PNG", compress_level=1),
        "png 16 turned": encoded(Image.fromarray(deep), "PNG", compress_level=1, exif=exif),
        "png rgba 16": png(6, 16, four),
        "tiff 16": written(deep, **grey),
        "tiff 32": written(deep.astype(np.uint32) << 16, **grey),
        "tiff float": written(ramp, **grey),
        "tiff float deflate": written(ramp, **grey, compression="zlib", rowsperstrip=64),
        "tiff rgb 16": written(np.stack([deep] * 3, -1), photometric="rgb"),
        "pgm 16": b"P5 " + head + b"65535\n" + deep.astype(">u2").tobytes(),
        "pgm 12": b"P5 " + head + b"4095\n" + (deep >> 4).astype(">u2").tobytes(),
        "ppm 12": b"P6 " + head + b"4095\n" + np.repeat(deep >> 4, 3).astype(">u2").tobytes(),
        "pgm 16 as text": b"P2 " + head + b"65535\n" + as_text(deep),
        "ppm 12 as text": b"P3 " + head + b"4095\n" + as_text(np.repeat(deep >> 4, 3)),
        "jp2 16": encoded(Image.fromarray(deep), "JPEG2000"),
        "pfm": b"Pf\n" + head + b"-1\n" + ramp.tobytes(),
    }


@pytest.mark.skipif(not is_measurable, reason="the kernel tells no peak of memory")
def test_deep_pictures_take_at_most_eight_bytes_a_pixel(tmp_path: Path) -> None:
    """In a process of its own, by the kernel: Pillow's memory counts, which Python does not see."""
    small, large = deep_pictures(64, 48), deep_pictures(2000, 2400)
    taken = {}
    for name in large:
        (tmp_path / "small").write_bytes(small[name])
        (tmp_path / "large").write_bytes(large[name])
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        taken[name] = float(done.stdout)
    # OpenJPEG has all of a picture that is one tile in memory, in 32 bits, and some megabytes more.
    taken["jp2 16"] -= 4e6 / (2000 * 2400)
    assert max(taken.values()) <= 8, taken
    assert min(taken.values()) > 4, f"an RGB image of Pillow alone takes as much: {taken}"
