"""MasaCtrl: the target asks, the source's keys and values answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fpe_core.editors.method import EditMethod, require_choice, require_shares, share
from fpe_core.injection import CONDITIONAL, UNCONDITIONAL, EditRule, Injection
from fpe_core.layer_rules import LayerRule, LayersByPart


@dataclass(frozen=True)
class MasaCtrl(EditMethod):
    """Mutual self-attention: the query is the edit's own, keys and values are the source's.

    The source's conditional row gives to the conditional row, its unconditional row to the
    unconditional row. They are one row where the source prompt is the negative prompt: a source
    prompt of "" is advised, and M = T - floor(0.08 T) is the number of its rows then; otherwise M
    is twice that. From step 4 of 50 on; of the layers going up all but the first three, 11-16 of
    Stable Diffusion 1.x.

    Attributes:
        keys: "replaced" by the source's; "appended": the union of both (the authors' variant).
        layers: the self-attention layers.
        steps: (start, end), shares of the steps from the noisy end.
    """

    name: ClassVar[str] = "masactrl"
    paper: ClassVar[str] = (
        "MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and "
        "Editing (ICCV 2023, arXiv 2304.08465, eq. 2)"
    )
    rows_formula: ClassVar[str] = "T + M + 1 + (2*T - 1)*N"

    keys: str = "replaced"
    layers: LayerRule = field(default_factory=lambda: LayersByPart("up", first=4))
    steps: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        require_choice("keys", self.keys, ("replaced", "appended"))
        require_shares(steps=self.steps)

    def keeping(self, more: float) -> MasaCtrl:
        """The source's keys and values from an earlier step on."""
        start, end = self.steps
        return replace(self, steps=(min(share(start - more), end), end))

    @property
    def rule(self) -> EditRule:
        return EditRule(
            (
                Injection(
                    "self",
                    self.layers,
                    "kv",
                    self.steps,
                    CONDITIONAL,
                    UNCONDITIONAL,
                    appends=self.keys == "appended",
                ),
            )
        )
