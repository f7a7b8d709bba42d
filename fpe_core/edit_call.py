"""What a call of the editor is checked for before anything is evaluated, and its parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Sized

from torch import Tensor

from fpe_core.edit_rows import AskedEdit
from fpe_core.editors.method import NOTHING, EditInputs
from fpe_core.errors import ParameterError
from fpe_core.inversion import Inversion, Sources
from fpe_core.null_text import NullText
from fpe_core.parameters import EditParameters
from fpe_core.sampling import Sampled
from fpe_core.size_ids import SizeIds


def inputs_of(
    inputs: Sequence[Sequence[EditInputs]] | None, target_prompts: Sequence[Sequence[str]]
) -> list[EditInputs]:
    """One for each edit, source by source. Raises ParameterError for another number."""
    if inputs is None:
        return [NOTHING for prompts in target_prompts for _ in prompts]
    require_one_each("lists of inputs", inputs, "sources", target_prompts)
    for each, prompts in zip(inputs, target_prompts, strict=True):
        require_one_each("inputs of a source", each, "its target prompts", prompts)
    return [each for of_source in inputs for each in of_source]


def require_one_each(what: str, given: Sized, of_what: str, wanted: Sized) -> None:
    """Raises ParameterError unless there are as many of the one as of the other."""
    if len(given) != len(wanted):
        raise ParameterError(
            f"there must be as many {what} as {of_what}, got {len(given)} and {len(wanted)}"
        )


def require_agreement(inverted: EditParameters, asked: EditParameters) -> None:
    """Raises ParameterError if edits with these parameters cannot use such an inversion."""
    names = ["steps", "width_px", "height_px"]
    if "edit_friendly" in (inverted.inversion, asked.inversion):
        names += ["inversion", "source_guidance_scale"]
    for name in names:
        if getattr(inverted, name) != getattr(asked, name):
            raise ParameterError(
                f"{name} must be the sources' own ({getattr(inverted, name)}), got "
                f"{getattr(asked, name)}: an edit has to agree with the inversion"
            )
    if (inverted.rule.cross_guidance is None) != (asked.rule.cross_guidance is None):
        raise ParameterError(
            f"{asked.method.name} cannot edit sources of {inverted.method.name}, since one of the "
            "two regularises the inversion: invert with the parameters of the edits"
        )


def prompts_of(
    sources: Sources, asked: Sequence[AskedEdit], others: Sequence[str]
) -> list[tuple[str, SizeIds | None]]:
    """The prompts of sources and edits, and others for all sources, with the size each is for."""
    sizes = sources.sizes
    return [
        *itertools.product(others, sizes or (None,)),
        *zip(sources.source_prompts, sizes, strict=True),
        *((edit.target_prompt, sizes[edit.source]) for edit in asked),
    ]


def finite_sources(
    trajectory: Tensor, null_text: NullText | None, noise_maps: Tensor | None
) -> list[bool]:
    """Per source, whether everything of it is finite."""
    embeddings = None if null_text is None else null_text.embeddings
    all_of_it = [each for each in (trajectory, embeddings, noise_maps) if each is not None]
    finite = [each.flatten(1).isfinite().all(dim=1).tolist() for each in all_of_it]
    return [all(each) for each in zip(*finite, strict=True)] if len(trajectory) else []


def null_text_of(sources: Sources, parameters: EditParameters) -> NullText | None:
    """The embeddings of the unconditional rows, if the edits use such.

    Raises ParameterError if the sources have none.
    """
    if parameters.inversion != "null_text" or not isinstance(sources, Inversion):
        return None
    if sources.null_text is None and len(sources):
        raise ParameterError("the sources have no null-text: invert with inversion null_text")
    return sources.null_text


def masks_of(sampled: Sampled) -> list[Tensor | None]:
    """Per edit (h, w), bool, on the CPU; None without masks."""
    if sampled.masks is None:
        return [None] * len(sampled.latents)
    return list(sampled.masks[:, 0].cpu().unbind())
