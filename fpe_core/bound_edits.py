"""The edits of a call whose masks bind them: their areas, and their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from fpe_core.edit_rows import AskedEdit
from fpe_core.editors.method import EditInputs
from fpe_core.errors import NotApplicableError, ParameterError
from fpe_core.image.bound import binds_nothing, composite, edited_area
from fpe_core.inside import Inside
from fpe_core.inversion import Inversion, Sources


def bound_inputs(
    inputs: Sequence[EditInputs], asked: Sequence[AskedEdit], sources: Sources, inside: Inside
) -> list[EditInputs]:
    """The inputs, with the area to which an edit is bound in the place of its mask.

    What has no mask stays as it is.

    Raises:
        NotApplicableError: an area that binds nothing.
        ParameterError: a mask that is not bool, or not of the edit's size.
    """
    if not isinstance(sources, Inversion):
        return list(inputs)  # sampling refuses them
    made = []
    for each, edit in zip(inputs, asked, strict=True):
        if each.mask is None:
            made.append(each)
            continue
        mask, fit = np.asarray(each.mask), sources.fits[edit.source]
        width, height = sources.images[edit.source].size
        if mask.dtype != np.bool_ or mask.shape != (height, width):
            raise ParameterError(
                f"a mask must be bool and of the edit's size, ({height}, {width}): got "
                f"{mask.dtype} of shape {mask.shape}"
            )
        area = edited_area(mask, fit, inside)
        if reason := binds_nothing(area, fit):
            raise NotApplicableError(
                f"the edit {edit.target_prompt!r} of source {edit.source + 1}: {reason}"
            )
        made.append(replace(each, mask=area))
    return made


def bound_images(
    images: Sequence[Image.Image],
    inputs: Sequence[EditInputs],
    asked: Sequence[AskedEdit],
    sources: Sequence[Image.Image],
    inside: Inside,
) -> tuple[Image.Image, ...]:
    """The images with the pixels of their sources outside of their areas."""
    made = []
    for image, each, edit in zip(images, inputs, asked, strict=True):
        assert each.mask is not None
        made.append(composite(image, sources[edit.source], each.mask, inside.feather_px))
    return tuple(made)
