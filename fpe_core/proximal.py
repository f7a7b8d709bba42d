"""Proximal guidance (ProxEdit, Han et al., WACV 2024, arXiv 2306.05414): guidance by what is large.

Where the two prompts see nearly the same, the difference of their predictions moves an edit away
from its source for nothing. Of each edit's differences only the large ones are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fpe_core.errors import ParameterError
from fpe_core.layer_rules import require_number

NORMS = ("l0", "l1")
PULLED_BELOW = 400
"""The pull acts at timesteps below this one, of 1,000."""


@dataclass(frozen=True)
class Proximal:
    """How the difference of conditional and unconditional prediction is shrunk, edit by edit.

    Attributes:
        norm: which proximal operator. "l0" keeps values above the threshold as they are, "l1" takes
            the threshold off them; all others become 0.
        quantile: the threshold is this quantile of the edit's absolute differences, 0..1.
        pull: 0..1, how far the latent is moved to its source's of the same level after each step at
            timesteps below 400, wherever no difference in any channel and within one position was
            kept; 1: all the way.
    """

    norm: str = "l0"
    quantile: float = 0.7
    pull: float = 0.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ParameterError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        require_number("quantile", self.quantile, minimum=0.0, maximum=1.0)
        require_number("pull", self.pull, minimum=0.0, maximum=1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for ids and records."""
        return {
            "norm": self.norm,
            "quantile": float(self.quantile),
            "pull": float(self.pull),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Proximal:
        """Reads back what `to_dict` wrote. Raises ParameterError for unknown keys."""
        allowed = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(allowed)):
            raise ParameterError(
                f"unknown parameter of proximal guidance: {', '.join(unknown)}; allowed: "
                f"{', '.join(allowed)}"
            )
        return cls(**values)
