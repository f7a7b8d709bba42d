"""How images are encoded: format, quality and the colour space that each file declares."""

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
        """Encodes an RGB image, taken as sRGB; equal input gives equal bytes.

        The file declares sRGB (PNG: an sRGB chunk; JPEG and WebP: a profile of about 500 bytes) and
        contains the XMP packet, if one is given. Nothing of `image.info` is written. Raises
        ValueError for a packet of more than 65,502 bytes in a JPEG.
        """
        image = image.copy()
        image.info = {}  # else Pillow writes its profile and comments too
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
    """An sRGB chunk, and the packet in the chunk that Adobe's XMP specification (part 3, 1.1.5)
    requires."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # 0: perceptual, as for photographs
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=False)
    return chunks
