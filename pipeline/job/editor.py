"""The job file's `editor`: the name of an editing method, or a mapping with its parameters too.

    editor: p2p
    editor: {name: p2p, cross_fraction: 0.6, layers: {level: 4}}

The methods and their parameters are those of `fpe_core.editors`. The parameters of
Free-Prompt-Editing are keys of `edit`.
"""

from __future__ import annotations

from typing import Any

from fpe_core import EditMethod, FreePromptEditing, method_from_dict, method_names
from fpe_core.errors import ParameterError

FPE = FreePromptEditing.name
NO_EDITOR = "none"
"""The value of a job's `editor` that uses no model. It also replaces the checkpoint's fingerprint
in the ids of such a job; no checkpoint has it, since fingerprints are 32 hex digits."""

Editor = str | dict[str, Any]
"""As a job file has it."""


def checked_editor(editor: Editor) -> Editor:
    """The editor as it is kept: its name alone where no parameter is given.

    Raises:
        ValueError: a name or a parameter that does not exist, or a value out of range.
    """
    given = {"name": editor} if isinstance(editor, str) else dict(editor)
    name, others = given.get("name"), set(given) - {"name"}
    if name is None:
        raise ValueError(
            f"name: is required; allowed are {', '.join((*method_names(), NO_EDITOR))}"
        )
    if name == NO_EDITOR:
        if others:
            raise ValueError(f"none has no parameters, got {', '.join(sorted(others))}")
        return NO_EDITOR
    if name not in method_names():
        allowed = ", ".join((*method_names(), NO_EDITOR))
        raise ValueError(f"must be one of {allowed} (got {name!r})")
    if name == FPE and others:
        raise ValueError(
            f"the parameters of {FPE} are keys of edit: write {', '.join(sorted(others))} there"
        )
    try:
        method_from_dict(given)
    except ParameterError as error:
        raise ValueError(str(error)) from error
    return name if not others else given


def method_of(editor: Editor) -> EditMethod | None:
    """The method with its parameters; None for `none`. `editor`: as `checked_editor` returns it."""
    if editor == NO_EDITOR:
        return None
    return method_from_dict({"name": editor} if isinstance(editor, str) else editor)


def editor_of(method: EditMethod) -> Editor:
    """The reverse of `method_of`, with every parameter."""
    return FPE if isinstance(method, FreePromptEditing) else method.to_dict()


def name_of(editor: Editor) -> str:
    return editor if isinstance(editor, str) else str(editor["name"])
