"""Opens untrusted images: every failure is a typed error that says why, and pixels are limited."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fpe_core.errors import ImageDecodeError, ImageTooLargeError
from fpe_core.image import jpeg2000, pnm, tiff
from fpe_core.image.levels import Scale, scale_of_mode

_NOT_READ = (
    (0, b"FUJIFILMCCD-RAW", "a camera raw (RAF)"),
    (0, b"IIU\0", "a camera raw (RW2)"),
    (0, b"IIRO", "a camera raw (ORF)"),
    (0, b"IIRS", "a camera raw (ORF)"),
    (0, b"MMOR", "a camera raw (ORF)"),
    (0, b"\0MRM", "a camera raw (MRW)"),
    (0, b"FOVb", "a camera raw (X3F)"),
    (6, b"HEAPCCDR", "a camera raw (CRW)"),
    (4, b"ftypcrx", "a camera raw (CR3)"),
    (4, b"ftyphei", "an HEIC image"),
    (4, b"ftyphev", "an HEIC image"),
    (4, b"ftypmif1", "an HEIF image"),
    (4, b"ftypmsf1", "an HEIF image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL ", "a JPEG XL image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"P7\n", "a PAM image"),
    (0, b"PF\n", "a PFM image in colour"),
    (0, b"%PDF", "a PDF"),
)
"""Signatures by their place, of formats that are not read but worth naming."""

_guard = threading.RLock()


@dataclass(frozen=True)
class OpenedImage:
    """A decoded image in the mode of its file, not turned upright yet; see `orientation`."""

    image: Image.Image
    scale: Scale
    orientation: int


@contextmanager
def open_untrusted(
    data: bytes, *, what: str, formats: tuple[str, ...], refusal: str, max_pixels: int
) -> Iterator[OpenedImage]:
    """Yields the decoded image, which is freed at the end of the `with` block.

    Args:
        what: its name in messages, such as "image".
        formats: the formats to accept, by Pillow's names.
        refusal: the error message for bytes in any other format.
        max_pixels: more declared pixels than this are refused before anything is decoded.

    Raises:
        ImageDecodeError: empty, another format, a kind of a format that is not read, truncated or
            broken; also for any other error raised inside the `with` block.
        ImageTooLargeError: over `max_pixels`, or too large for the memory.
    """
    if not data:
        raise ImageDecodeError(f"the {what} is empty (0 bytes)")
    try:
        tiff.refuse_raw_or_reduced(data, what)
        opened = _decoded(data, what, formats, refusal, max_pixels)
        try:
            yield opened
        finally:
            opened.image.close()
    except ImageTooLargeError:
        raise
    except ImageDecodeError as error:
        if str(error).startswith(("the ", refusal)):
            raise
        raise ImageDecodeError(f"the {what} cannot be used: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"the {what} declares more pixels than the allowed {max_pixels}; raise "
            "images.max_pixels if it is genuine"
        ) from error
    except MemoryError as error:
        raise ImageTooLargeError(f"the {what} does not fit into memory") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        kind = tiff.kind_of(data)
        raise ImageDecodeError(
            f"the {what} cannot be decoded: {type(error).__name__}: {error}"
            + (f" ({kind})" if kind else "")
        ) from error


def _decoded(
    data: bytes, what: str, formats: tuple[str, ...], refusal: str, max_pixels: int
) -> OpenedImage:
    """Opens and decodes. Pillow's own limit on pixels, which is one number for the whole process,
    is raised only while an image above it is decoded, one at a time, and then set back."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > limit:
        try:
            return _decoded_once(data, what, formats, refusal, limit)
        except (ImageTooLargeError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            with _pillow_allows(max_pixels):
                return _decoded_once(data, what, formats, refusal, max_pixels)
    return _decoded_once(data, what, formats, refusal, max_pixels)


def declared_pixels(data: bytes, *, formats: tuple[str, ...]) -> int:
    """Width times height, as the header of an encoded image says; 0 if it cannot be read. Nothing
    is decoded."""
    try:
        with _opened(data, "image", formats, "") as file:
            return file.width * file.height
    except Exception:  # noqa: BLE001 - whatever is wrong with it, decoding says so
        return 0


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    with _guard:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if before is None else max(before, pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decoded_once(
    data: bytes, what: str, formats: tuple[str, ...], refusal: str, max_pixels: int
) -> OpenedImage:
    file = _opened(data, what, formats, refusal)
    try:
        _check_pixels(file, what, max_pixels)
        # Without its XMP, Pillow does not turn an image for what that says about its orientation.
        file.info.pop("xmp", None)
        image, scale = _prepared(file, data)
        image.load()
        _check_pixels(image, what, max_pixels)  # a frame may be larger than the header says
        return OpenedImage(image, scale, orientation_of(image))
    except BaseException:
        file.close()
        raise


def _opened(data: bytes, what: str, formats: tuple[str, ...], refusal: str) -> ImageFile.ImageFile:
    """The header, read by Pillow. Unlike Image.open it says what is wrong with a file of a format
    that is read, and does not compare its size with Pillow's own limit."""
    Image.init()
    for name in formats:
        factory, accepts = Image.OPEN[name]
        accepted = accepts is None or accepts(data[:16])
        if isinstance(accepted, str):  # this Pillow was built without the format
            raise ImageDecodeError(f"the {what} cannot be decoded: {accepted}")
        if accepted:
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                kind = tiff.kind_of(data) or f"a {name} file"
                raise ImageDecodeError(
                    f"the {what} is {kind}, but damaged or of a kind that is not read ({error})"
                ) from error
    for place, signature, found in _NOT_READ:
        if data[place : place + len(signature)] == signature:
            raise ImageDecodeError(f"{refusal}: it is {found}")
    raise ImageDecodeError(refusal)


def _prepared(file: ImageFile.ImageFile, data: bytes) -> tuple[Image.Image, Scale]:
    """The image to decode, and how its samples are meant."""
    if isinstance(file, TiffImageFile):
        return file, tiff.prepare(file)
    if file.format == "PPM":
        return pnm.prepare(file, data)
    if file.format == "JPEG2000":
        return file, jpeg2000.scale_of(file, data)
    if file.format == "PNG":
        return file, _scale_of_png(file, bits=data[24])
    return file, scale_of_mode(file.mode)


def _scale_of_png(file: ImageFile.ImageFile, bits: int) -> Scale:
    transparency = file.info.get("transparency")
    if bits == 16 and isinstance(transparency, tuple):
        raise ImageDecodeError(
            "it is a PNG of 16-bit colours of which one is transparent (tRNS), which Pillow "
            "cannot tell from its neighbours; save it with an alpha channel"
        )
    if file.mode != "L" or bits >= 8:
        return Scale(65535, 65535) if file.mode == "I;16" else Scale(stored_white=2**bits - 1)
    if isinstance(transparency, int):
        file.info["transparency"] = transparency * (255 // (2**bits - 1))
    return Scale(stored_white=2**bits - 1)


def orientation_of(image: Image.Image) -> int:
    """1 to 8, as EXIF says; 1 if there is none, or it cannot be read.

    Only EXIF counts, in a JPEG, WebP or PNG (and an AVIF's own rotation, which Pillow hands on as
    EXIF). Browsers and OpenCV do the same, so a box that was drawn in one of them is in the same
    pixels. XMP's tiff:Orientation is ignored. A TIFF's tag Orientation has been applied by Pillow.
    """
    bearer = Image.new("1", (1, 1))
    kept = ("exif", "Raw profile type exif")
    bearer.info = {key: image.info[key] for key in kept if key in image.info}
    with contextlib.suppress(Exception):  # a corrupt EXIF block costs the rotation, not the image
        orientation = bearer.getexif().get(0x0112, 1)
        if orientation in range(1, 9):
            return int(orientation)
    return 1


def _check_pixels(image: Image.Image, what: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"the {what} declares {image.width} x {image.height} pixels, more than the allowed "
            f"{max_pixels}; raise images.max_pixels if it is genuine"
        )
