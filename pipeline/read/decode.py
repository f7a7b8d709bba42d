"""Turns work rows into pixels: fetches, orients and fits each source and its masks.

A bad row becomes a row with a failure code. Runs as Ray tasks on the CPUs that the editing actors
leave free, so a device never waits for the network; one free CPU is enough. Only 8-bit pixels of
the model's size pass through Ray, not the encoded bytes: all rows of a run then have the same size
(0.8 MB at 512 px) whatever the photo was, and Ray has no reason to split a block for its size.

Masks are fetched like sources, and fitted like the source that they belong to.

Several threads fetch, so that the network is never waited for. How many pixels they decode at the
same time is limited, by the sizes in the headers: small images are decoded side by side, an image
of more pixels than the limit alone. So the memory of a task does not depend on how many of its
images are large.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fpe_core import EditParameters, fit_image
from fpe_core.errors import FPEError
from fpe_core.image.boxes import Box, fit_box
from fpe_core.image.decode import FORMATS, decode_with_note
from fpe_core.image.fit import Fit
from fpe_core.image.masks import MASK_FORMATS, decode_mask, encode_mask, fit_mask
from fpe_core.image.untrusted import declared_pixels
from pipeline.errors import RowError
from pipeline.ledger.outcome import FailureCode, short_message
from pipeline.manifest.annotations import FITTED_MASK_TYPE
from pipeline.manifest.edit_inputs import EDIT_BOXES, EDIT_MASK
from pipeline.pixel_budget import PixelBudget
from pipeline.read.carried_images import with_carried_images
from pipeline.redact import redact_url
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import MAX_BYTES, check_size, read_uri
from pipeline.supervision.supervisor import Oversight, Unwatched

FETCH_THREADS = 8
PIXELS_DECODED = 32 * 2**20
"""The pixels of sources and masks that a task decodes at the same time. One task has one CPU, so
more would not be faster."""
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_BYTES_PER_PIXEL = 12
"""What decoding and fitting takes at its peak: 8 to 10 were measured, 17 for WebP, which is seldom
large."""
_BYTES_OF_PROCESS = 300_000_000
"""What a task takes besides: 190 MB were measured, and there are the fitted sources of a block."""
PIXEL_FIELDS = (
    pa.field("pixels", pa.binary()),
    pa.field("fit", pa.string(), nullable=False),
    pa.field("failure", pa.string(), nullable=False),
    pa.field("message", pa.string(), nullable=False),
)
"""The columns that `decode` adds: height * width * 3 bytes of RGB (null without an image), the fit
as JSON, a FailureCode ("": no failure), and a message: the cause of a failure, else what was done
to the colours."""

MASKS_FIELD = pa.field("masks", pa.list_(FITTED_MASK_TYPE), nullable=False)
"""The column of fitted masks, which replaces the work list's column `masks` if there is one."""

PROBLEM = "problem"
"""The column that says why the images of a row cannot be had from its manifest, or ""; if any."""


@dataclass(frozen=True)
class DecodeSettings:
    """How sources are fetched, which are allowed, and how they are fitted. Small and picklable."""

    fit: str = "crop"
    max_pixels: int = 100_000_000
    max_bytes: int = MAX_BYTES
    rules: SourceRules = field(default_factory=SourceRules)
    storage_options: dict[str, Any] = field(default_factory=dict)

    @property
    def memory_bytes(self) -> int:
        """The most that a task takes, if its largest image has `max_pixels`: no row of the work
        list says how many pixels its image has."""
        return _BYTES_OF_PROCESS + _BYTES_PER_PIXEL * max(self.max_pixels, PIXELS_DECODED)


@dataclass(frozen=True)
class DecodedSource:
    """The values of PIXEL_FIELDS and MASKS_FIELD for one row."""

    pixels: bytes | None = None
    fit: str = ""
    failure: str = ""
    message: str = ""
    masks: tuple[dict[str, Any], ...] = ()


def decode(
    table: pa.Table, settings: DecodeSettings, oversight: Oversight | None = None
) -> pa.Table:
    """Replaces the encoded bytes of work rows by pixels; never raises for a bad row.

    In synthetic rows the pixels are null. A row that failed has a FailureCode in `failure`. If the
    run is being stopped, an empty table is returned.
    """
    _return_freed_images()
    oversight = oversight or Unwatched()
    orders, budget = oversight.orders, PixelBudget(PIXELS_DECODED)
    if orders.is_stopping:
        table = table.slice(0, 0)

    def decode_row(row: dict[str, Any]) -> DecodedSource:
        group = row["group_id"]
        if group in orders.quarantined:
            return DecodedSource(
                failure=FailureCode.WORKER_DIED,
                message=short_message(f"{_name_of(row)}: {orders.quarantined[group]}"),
            )
        decoded = _decode_row(row, settings, budget)
        oversight.alive()
        return decoded

    columns = ["group_id", "synthetic", "uri", "image_bytes", "parameters"]
    columns += sorted({MASKS_FIELD.name, EDIT_MASK, EDIT_BOXES, PROBLEM} & set(table.column_names))
    rows = table.select(columns).to_pylist()
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch") as pool:
        table = with_carried_images(table, lambda uri: _read(uri, None, settings), pool)
    if orders.is_careful:
        decoded = []
        for row in rows:
            with oversight.focus([row["group_id"]]):
                decoded.append(decode_row(row))
    else:
        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch") as pool:
            decoded = list(pool.map(decode_row, rows))
    return _with_pixels(table, decoded)


@functools.cache
def _return_freed_images() -> None:
    """From now on images go back to the system when they are freed. glibc would keep up to 64 MB of
    them for each thread that has decoded."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def _with_pixels(table: pa.Table, decoded: Iterable[DecodedSource]) -> pa.Table:
    table = table.drop_columns(["image_bytes", *({PROBLEM} & set(table.column_names))])
    results = list(decoded)
    if MASKS_FIELD.name in table.column_names:
        masks = pa.array([result.masks for result in results], MASKS_FIELD.type)
        place = table.column_names.index(MASKS_FIELD.name)
        table = table.set_column(place, MASKS_FIELD, masks)
    for pixel_field in PIXEL_FIELDS:
        values = [getattr(result, pixel_field.name) for result in results]
        table = table.append_column(pixel_field, pa.array(values, pixel_field.type))
    return table


def _decode_row(
    row: dict[str, Any], settings: DecodeSettings, budget: PixelBudget
) -> DecodedSource:
    if row.get(PROBLEM):
        return DecodedSource(
            failure=FailureCode.SOURCE_MISSING, message=short_message(row[PROBLEM])
        )
    if row["synthetic"]:
        return DecodedSource()
    try:
        data = _read(row["uri"], row["image_bytes"], settings)
        parameters = EditParameters.from_dict(json.loads(row["parameters"]))
        size = (parameters.width_px, parameters.height_px)
        with budget.hold(declared_pixels(data, formats=FORMATS)):
            decoded = decode_with_note(data, max_pixels=settings.max_pixels)
            fitted = fit_image(decoded.image, *size, settings.fit)
            note = short_message(decoded.colour_note)
            del decoded, data
        masks = decode_masks(
            row.get("masks") or (),
            fitted.fit,
            *size,
            read=functools.partial(_read, settings=settings),
            max_pixels=settings.max_pixels,
            budget=budget,
            last_is_edit_mask=bool(row.get(EDIT_MASK)) and not row.get(EDIT_BOXES),
        )
        if row.get(EDIT_BOXES):
            masks = (*masks, mask_of_boxes(row[EDIT_BOXES], fitted.fit, *size))
        return DecodedSource(
            masks=masks,
            pixels=fitted.image.tobytes(),
            fit=json.dumps(fitted.fit.to_dict(), sort_keys=True),
            message=note,
        )
    except (FPEError, RowError) as error:
        code, reason = error.code, str(error)
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything; only this row fails
        code, reason = "", f"{type(error).__name__}: {error}"
    return DecodedSource(
        failure=FailureCode(code or FailureCode.DECODE_FAILED),
        message=short_message(f"{_name_of(row)}: {reason}"),
    )


def _read(uri: str, data: bytes | None, settings: DecodeSettings) -> bytes:
    """The bytes of an image or mask: `data` if the manifest has them, else those at `uri`.

    Raises RowError.
    """
    if data is None:
        options, rules = settings.storage_options, settings.rules
        data = read_uri(uri, options=options, rules=rules, max_bytes=settings.max_bytes)
    check_size(len(data), settings.max_bytes)
    return data


def _name_of(row: dict[str, Any]) -> str:
    return redact_url(row["uri"]) or "the image bytes in the manifest"


def mask_of_boxes(
    boxes: Sequence[Sequence[float]], fit: Fit, width_px: int, height_px: int
) -> dict[str, Any]:
    """A mask of everything in one of the boxes, as a value of FITTED_MASK_TYPE.

    Args:
        boxes: (left, top, right, bottom), pixels of the upright original. A pixel of the fitted
            image is in a box if its centre is, and so is the one under the centre of a box that is
            smaller than a pixel.
    """
    values = np.zeros((height_px, width_px), np.uint8)
    visible = []
    for each in boxes:
        fitted = fit_box(Box(*each), fit, width_px, height_px)
        visible.append(fitted.visible)
        if fitted.box.area:
            (x, right), (y, bottom) = (
                _covered(fitted.box.left, fitted.box.right, width_px),
                _covered(fitted.box.top, fitted.box.bottom, height_px),
            )
            values[y:bottom, x:right] = 255
    return {"png": encode_mask(values), "visible": max(visible)}


def _covered(start: float, end: float, count: int) -> tuple[int, int]:
    """The pixels whose centres lie between, at least one of them."""
    first, last = math.ceil(start - 0.5), math.ceil(end - 0.5)
    if first >= last:
        first = min(int((start + end) / 2), count - 1)
        last = first + 1
    return first, last


def decode_masks(
    masks: Sequence[Mapping[str, Any]],
    fit: Fit,
    width_px: int,
    height_px: int,
    *,
    read: Callable[[str, bytes | None], bytes],
    max_pixels: int,
    budget: PixelBudget | None = None,
    last_is_edit_mask: bool = False,
) -> tuple[dict[str, Any], ...]:
    """Masks of the work list (MASK_SOURCE_TYPE) as values of FITTED_MASK_TYPE, in their order.

    `read` returns the bytes for a mask's URI and bytes, as for sources. Masks are decoded one after
    the other, as `budget` has room for them. Raises the FPEErrors and
    RowErrors that reading and decoding a source raises; the message names the mask. One mask that
    cannot be used fails the whole row: with only some of its masks, an image would look as if the
    other objects were not in it.
    """
    budget = budget or PixelBudget(PIXELS_DECODED)
    made = []
    for number, mask in enumerate(masks):
        try:
            data = read(mask["uri"], mask["bytes"])
            with budget.hold(declared_pixels(data, formats=MASK_FORMATS)):
                values = decode_mask(data, max_pixels=max_pixels)
                fitted = fit_mask(values, fit, width_px, height_px)
                del values
        except (FPEError, RowError) as error:
            where = redact_url(mask["uri"]) or "bytes in the manifest"
            is_last = number == len(masks) - 1
            name = EDIT_MASK if last_is_edit_mask and is_last else f"mask {number}"
            raise type(error)(f"{name} ({where}): {error}") from error
        made.append({"png": encode_mask(fitted.values), "visible": fitted.visible})
    return tuple(made)
