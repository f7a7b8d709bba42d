"""What all sections of a job file are: strict, frozen, without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the job file. Nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def tuple_from_list(value: object) -> object:
    """YAML has lists only; frozen models hold tuples."""
    return tuple(value) if isinstance(value, list) else value
