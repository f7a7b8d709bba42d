"""What a call of the editor is checked for before anything is evaluated."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from fpe_core.editors.method import NOTHING, EditInputs
from fpe_core.errors import ParameterError
from fpe_core.parameters import EditParameters


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
