"""Plug-and-Play: self-attention maps going up, and the residual of one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

from fpe_core.editors.method import EditMethod, share
from fpe_core.injection import EMPTY, EditRule, Injection, ResidualInjection
from fpe_core.layer_rules import LayerRule, LayersByPart, require_number


@dataclass(frozen=True)
class PlugAndPlay(EditMethod):
    """One row of the source, without a prompt, gives to both rows of an edit.

    Of the layers going up all but the first, 9-16 of Stable Diffusion 1.x, take its map, and the
    residual block in front of the first of them (the fifth going up) takes its output before the
    shortcut is added. F = floor(residual_fraction T), if that is the larger of the two fractions.

    Attributes:
        layers: the self-attention layers that take the source's map.
        attention_fraction: share of the steps, from the noisy end, in which they do, 0..1.
        residual_layers: the residual blocks in front of these self-attentions are the source's.
        residual_fraction: share of the steps in which they are, 0..1.
    """

    name: ClassVar[str] = "pnp"
    paper: ClassVar[str] = (
        "Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation (CVPR 2023, "
        "arXiv 2211.12572, sec. 4), as its diffusers version runs it"
    )
    published: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "steps": 50,
            "guidance_scale": 7.5,
            "negative_prompt": "ugly, blurry, black, low res, unrealistic",
        }
    )
    rows_formula: ClassVar[str] = "T + F + 1 + (2*T - 1)*N"

    layers: LayerRule = field(default_factory=lambda: LayersByPart("up", first=2))
    attention_fraction: float = 0.5
    residual_layers: LayerRule = field(default_factory=lambda: LayersByPart("up", first=2, last=2))
    residual_fraction: float = 0.8

    def __post_init__(self) -> None:
        for name in ("attention_fraction", "residual_fraction"):
            require_number(name, getattr(self, name), minimum=0.0, maximum=1.0)

    def keeping(self, more: float) -> PlugAndPlay:
        """More steps with the source's maps and residuals."""
        return replace(
            self,
            attention_fraction=share(self.attention_fraction + more),
            residual_fraction=share(self.residual_fraction + more),
        )

    @property
    def rule(self) -> EditRule:
        attention, residual = float(self.attention_fraction), float(self.residual_fraction)
        return EditRule(
            (Injection("self", self.layers, "qk", (0.0, attention), EMPTY, EMPTY),),
            (ResidualInjection(self.residual_layers, (0.0, residual), EMPTY, EMPTY),),
        )
