"""Edits that are bound to their masks: where they may change the picture, and the picture itself.

Masks are bool, (height_px, width_px) of the fitted image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.image.fit import Fit
from fpe_core.image.masks import source_area
from fpe_core.inside import Inside


def edited_area(mask: NDArray[np.bool_], fit: Fit, inside: Inside) -> NDArray[np.bool_]:
    """Where an edit may change the fitted image: the mask grown and inverted as `inside` says.

    What fitting has added around the source is never edited.
    """
    height, width = mask.shape
    edited = mask
    if inside.padding_px and mask.any() and not mask.all():
        from scipy import ndimage

        away = ndimage.distance_transform_cdt(~mask, "chessboard")
        edited = np.asarray(away <= inside.padding_px)
    if inside.invert:
        edited = ~edited
    return edited & source_area(fit, width, height)


def binds_nothing(edited: NDArray[np.bool_], fit: Fit) -> str:
    """Why an area, as `edited_area` returns it, is no use for binding, in words; "" if it is."""
    if not edited.any():
        return "its mask leaves nothing of the fitted image to edit"
    height, width = edited.shape
    if edited[source_area(fit, width, height)].all():
        return "its mask covers all of the fitted image, so nothing would be kept"
    return ""


def composite(
    edit: Image.Image, source: Image.Image, edited: NDArray[np.bool_], feather_px: int = 0
) -> Image.Image:
    """The edit in its area, the source elsewhere.

    Args:
        edit, source: RGB, 8 bits, of the same size.
        edited: where the edit is, not True everywhere.
        feather_px: width of the rim inside of it. There a pixel at the distance d from the nearest
            one outside has d / (feather_px + 1) of the edit; the other pixels have all of it.
    """
    old, new = np.asarray(source), np.asarray(edit)
    if not feather_px:
        return Image.fromarray(np.where(edited[..., None], new, old))
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(edited)
    share = np.minimum(distance / (feather_px + 1), 1.0)[..., None]
    mixed = old + share * (new.astype(np.float64) - old)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
