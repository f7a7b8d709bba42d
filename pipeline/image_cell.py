"""A cell of the manifest that is an image, or a mask: a URI, bytes, or Hugging Face's struct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageCell:
    """`uri` as the manifest has it, "" where the bytes are there; `path` names it for people.

    Without an image all are empty.
    """

    uri: str = ""
    data: bytes | None = None
    path: str = ""

    @classmethod
    def of(cls, value: Any) -> ImageCell:
        """Bytes win over a path beside them."""
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path") or ""
        elif isinstance(value, bytes):
            data, path = value, ""
        else:
            data, path = None, value or ""
        return cls(path if data is None else "", data, path)

    @property
    def is_empty(self) -> bool:
        return not self.uri and self.data is None
