"""What is annotated in a source: its boxes and masks, in the pixels of the fitted picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fpe_core.boxes import FittedBox


@dataclass(frozen=True)
class RegionMask:
    """A fitted mask as PNG, and the share of its object that is left, 0..1."""

    png: bytes
    visible: float


@dataclass(frozen=True)
class Regions:
    """The annotations of one source, in the order of its row. `boxes` is None where it has none:
    an empty list is something else."""

    boxes: tuple[FittedBox, ...] | None = None
    masks: tuple[RegionMask, ...] = ()

    @classmethod
    def of_masks(cls, masks: Iterable[Mapping[str, Any]]) -> Regions:
        """Masks as `decode` leaves them."""
        return cls(masks=tuple(RegionMask(mask["png"], mask["visible"]) for mask in masks))
