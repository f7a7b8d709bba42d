"""The parameters of a mask that binds: outside of it an edit is its source, pixel for pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fpe_core.errors import ParameterError
from fpe_core.layer_rules import require_integer

MOST_PX = 1024
"""The most of `feather_px` and of `padding_px`."""


@dataclass(frozen=True)
class Inside:
    """How the mask of an edit binds it, whatever the method (`EditParameters.inside`).

    While an edit is sampled, the latent outside is the one of the source's inversion at the same
    level; a position of the latent is inside if any of its 8 x 8 pixels is. In the picture every
    pixel outside is the fitted source's own (`fpe_core.image.bound`).

    Attributes:
        feather_px: width of the rim, inside of the mask, in which the edit fades into the source,
            0..1024; 0 for a hard edge.
        padding_px: how far the mask is grown first, in pixels of the edited image, to all sides,
            0..1024.
        invert: the edit is made where the (grown) mask is not, such as around an object.
    """

    feather_px: int = 0
    padding_px: int = 0
    invert: bool = False

    def __post_init__(self) -> None:
        for name in ("feather_px", "padding_px"):
            require_integer(name, getattr(self, name), minimum=0, maximum=MOST_PX)
        if not isinstance(self.invert, bool):
            raise ParameterError(f"invert must be true or false, got {self.invert!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `Inside.from_dict` reads it back."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Inside:
        """Raises ParameterError for an unknown key, or a value out of range."""
        allowed = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(allowed)):
            raise ParameterError(
                f"inside: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}"
            )
        return cls(**values)
