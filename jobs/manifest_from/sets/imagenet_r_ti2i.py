"""ImageNet-R-TI2I: thirty renditions of ten classes, with up to five target prompts each.

Format: MichalGeyer/plug-and-play (arXiv 2211.12572). Paths differ from the folders in letter case,
one entry has no picture, and most have no source prompt.
"""

from __future__ import annotations

from pathlib import Path

from jobs.manifest_from.sets.wild_ti2i import read_ti2i
from jobs.manifest_from.source import Entries, Options, Source

_NAMES = (
    "imnetr-ti2i.yaml",
    "imagenetr-ti2i/imnetr-ti2i.yaml",
    "ImageNetR-TI2I/imnetr-ti2i.yaml",
    "imnetr-fake-ti2i.yaml",
)


def read(source: Path, options: Options) -> Entries:
    return read_ti2i(source, options, _NAMES, "ImageNet-R-TI2I")


SOURCE = Source(
    name="imagenet-r-ti2i",
    about="imnetr-ti2i.yaml beside ImageNetR-TI2I/<class>/<style>_<n>.jpg",
    licence="not stated; pictures of ImageNet-R, see MichalGeyer/plug-and-play",
    read=read,
    takes=frozenset({"mapping", "images"}),
)
