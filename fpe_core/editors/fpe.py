"""Free-Prompt-Editing: the source's self-attention maps in the middle layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fpe_core.editors.method import EditMethod
from fpe_core.injection import EditRule, Injection
from fpe_core.layer_rules import LayerRule, LayersByTokens, require_number


@dataclass(frozen=True)
class FreePromptEditing(EditMethod):
    """The map softmax(Q K^T / sqrt d) of an edit's conditional row is its source's.

    In a job and in `EditParameters` its parameters stand for themselves, without an `editor`. R =
    floor(replaced_fraction T).

    Attributes:
        layers: which self-attention layers take the source's map.
        replaced_fraction: share of the steps, from the noisy end, in which they do, 0..1.
        replace_cross_attention: also take the source's cross-attention maps in those layers: the
            paper's counter-example (sec. 3), kept to measure its findings.
    """

    name: ClassVar[str] = "fpe"
    paper: ClassVar[str] = (
        "Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image "
        "Editing (CVPR 2024, arXiv 2403.03431, alg. 1)"
    )
    rows_formula: ClassVar[str] = "T + R + 1 + (2*T - 1)*N"

    layers: LayerRule = field(default_factory=LayersByTokens)
    replaced_fraction: float = 0.8
    replace_cross_attention: bool = False

    def __post_init__(self) -> None:
        require_number("replaced_fraction", self.replaced_fraction, minimum=0.0, maximum=1.0)

    @property
    def rule(self) -> EditRule:
        kinds = ("self", "cross") if self.replace_cross_attention else ("self",)
        steps = (0.0, float(self.replaced_fraction))
        return EditRule(tuple(Injection(kind, self.layers, "qk", steps) for kind in kinds))
