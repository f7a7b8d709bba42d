"""How much memory a row of a UNet takes at its peak, from its config alone. Needs no torch."""

from __future__ import annotations

# Peak memory of one UNet row in multiples of its widest feature map (320 x 64 x 64 in SD 1.5). A
# cautious estimate; if it is still too low, the limit is halved.
_PEAK_FEATURE_MAPS = 48


def row_bytes(widest_map_elements: int, element_bytes: int) -> int:
    """Bytes of one row.

    Args:
        widest_map_elements: elements of the largest feature map of one row.
        element_bytes: bytes of one of them.
    """
    return widest_map_elements * element_bytes * _PEAK_FEATURE_MAPS
