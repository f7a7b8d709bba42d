"""How pictures are encoded: format, quality, and what every PNG says of its colours."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, PngImagePlugin

from fpe_core.image.colour import srgb_profile

_PNG_COMPRESS_LEVEL = 3  # twice as fast as Pillow's 6 for some 3 % larger files


@dataclass(frozen=True)
class ImageFormat:
    """How images are encoded."""

    name: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 95

    @property
    def extension(self) -> str:
        return "jpg" if self.name == "jpeg" else self.name

    def encode(self, image: Image.Image, xmp: bytes | None = None) -> bytes:
        """An RGB image, taken as sRGB, as the bytes of a file; equal input gives equal bytes.

        The file says that it is sRGB (PNG: an sRGB chunk; JPEG and WebP: a profile of some 500
        bytes) and carries the XMP packet, if there is one; nothing else that `image.info` holds.
        Raises ValueError for a packet of more than 65,502 bytes in a JPEG.
        """
        image = image.copy()
        image.info = {}  # Pillow writes some of it unasked: profiles and comments
        sink = io.BytesIO()
        if self.name == "png":
            image.save(sink, "PNG", compress_level=_PNG_COMPRESS_LEVEL, pnginfo=_png_chunks(xmp))
            return sink.getvalue()
        marks = {"icc_profile": srgb_profile(), **({"xmp": xmp} if xmp else {})}
        if self.name == "jpeg":
            image.save(sink, "JPEG", quality=self.quality, subsampling=0, **marks)
        else:
            lossless = self.quality == 100
            image.save(sink, "WEBP", quality=self.quality, lossless=lossless, **marks)
        return sink.getvalue()


def _png_chunks(xmp: bytes | None) -> PngImagePlugin.PngInfo:
    """An sRGB chunk, and the packet where Adobe's XMP specification (part 3, 1.1.5) wants it."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # 0: perceptual, as for photographs
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=False)
    return chunks
