"""Small pictures for reports. One that is missing or damaged says why, and costs nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from pipeline.errors import StorageError
from pipeline.storage import Folder

_QUALITY = 72
_THREADS = 16


@dataclass(frozen=True)
class Thumbnail:
    """A WebP of at most a given side, or why there is none: exactly one of `data` and `missing`."""

    data: bytes = b""
    width_px: int = 0
    height_px: int = 0
    missing: str = ""


_LEFT_OUT = Thumbnail(missing="left out: the report would be too large")


def read_thumbnails(folder: Folder, paths: Iterable[str], side_px: int) -> dict[str, Thumbnail]:
    """By path, for files of a run folder, each read once; "" is not read."""
    wanted = [path for path in dict.fromkeys(paths) if path]
    with ThreadPoolExecutor(_THREADS) as pool:
        made = pool.map(lambda path: read_thumbnail(folder, path, side_px), wanted)
        return dict(zip(wanted, made, strict=True))


def within_bytes(
    pictures: Sequence[Sequence[Thumbnail]], at_most_bytes: int
) -> list[tuple[Thumbnail, ...]]:
    """The pictures of each tile, in order; those of tiles that do not fit any more are left out."""
    result, used = [], 0
    for tile in pictures:
        size = sum(len(picture.data) for picture in tile)
        if used + size > at_most_bytes:
            result.append(tuple(p if p.missing else _LEFT_OUT for p in tile))
            continue
        used += size
        result.append(tuple(tile))
    return result


def read_thumbnail(folder: Folder, path: str, side_px: int) -> Thumbnail:
    """An sRGB picture of at most `side_px` x `side_px`; never enlarged."""
    try:
        with Image.open(io.BytesIO(folder.read(path))) as opened:
            picture = opened.convert("RGB")
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Thumbnail(missing="the file is gone")
        return Thumbnail(missing=f"cannot be read: {error}")
    except UnidentifiedImageError:  # its message holds an address in memory
        return Thumbnail(missing="damaged: no picture that Pillow knows")
    # Pillow's answers to a damaged file, and to one that claims to be huge.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Thumbnail(missing=f"damaged: {error}")
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=_QUALITY, method=4)
    return Thumbnail(sink.getvalue(), picture.width, picture.height)
