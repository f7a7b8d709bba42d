"""Part of the second station: the masks of a source, read like sources and fitted like theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fpe_core.errors import FPEError
from fpe_core.fit import Fit
from fpe_core.masks import decode_mask, encode_mask, fit_mask
from pipeline.errors import RowError
from pipeline.redact import redact_url


def decode_masks(
    masks: Sequence[Mapping[str, Any]],
    fit: Fit,
    width_px: int,
    height_px: int,
    *,
    read: Callable[[str, bytes | None], bytes],
    max_pixels: int,
) -> tuple[dict[str, Any], ...]:
    """Masks of the work list (MASK_SOURCE_TYPE) as values of FITTED_MASK_TYPE, in their order.

    `read` gives the bytes of a URI, or those that are there already, as for sources. Raises
    FPEErrors and RowErrors like reading and decoding a source; the message says of which mask. One
    that cannot be used costs the row: a picture with some of its masks would say that the other
    objects are not there.
    """
    made = []
    for number, mask in enumerate(masks):
        try:
            values = decode_mask(read(mask["uri"], mask["bytes"]), max_pixels=max_pixels)
            fitted = fit_mask(values, fit, width_px, height_px)
        except (FPEError, RowError) as error:
            where = redact_url(mask["uri"]) or "bytes in the manifest"
            raise type(error)(f"mask {number} ({where}): {error}") from error
        made.append({"png": encode_mask(fitted.values), "visible": fitted.visible})
    return tuple(made)
