"""pix2pix-zero: moved along a direction of the text, held by the source's cross-attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from fpe_core.editors.method import EditMethod
from fpe_core.injection import CrossGuidance, EditRule


@dataclass(frozen=True)
class Pix2PixZero(EditMethod):
    """The source's prompt plus a direction, and latents that gradients keep near the source's maps.

    1. The source is inverted without guidance, with its own prompt, the caption. The noise that is
       predicted is kept close to white noise (`fpe_core.regularised`).
    2. It is sampled again with the caption; all cross-attention maps of a step are its reference.
    3. Beside it an edit is sampled with the caption's embedding plus the direction. At every step
       each of its rows is moved against the gradient of the distance between its maps and the
       reference, and evaluated again there (`fpe_core.cross_guidance`).

    The direction is the edit's target prompt minus the caption, so that the embedding is simply the
    target prompt's; or, with sentences, the mean embedding of the target sentences minus that of
    the source sentences, for every edit of the job. The target prompt then only names the edit.

    The unconditional rows have the caption too, so there is no other negative prompt. Rows: T of
    the inversion, T of step 2, and two evaluations of two rows of an edit a step; of those, one
    evaluation is followed by a backward pass, which is not counted as a row. Slow: in float32 or
    wider, through diffusers' own forward pass.

    Attributes:
        cross_guidance: size of the move, a factor of the gradient, at least 0: more keeps more of
            the source.
        source_sentences, target_sentences: texts about what is in the source, and about what is
            wanted in its place, such as ("a cat on a sofa", "my cat", ...) and ("a dog on a sofa",
            ...); both or neither. Lists from JSON.
    """

    name: ClassVar[str] = "pix2pix_zero"
    paper: ClassVar[str] = (
        "Zero-shot Image-to-Image Translation (SIGGRAPH 2023, arXiv 2302.03027, sec. 3); guidance "
        "5 as in the authors' repository"
    )
    published: ClassVar[Mapping[str, Any]] = MappingProxyType({"steps": 50, "guidance_scale": 5.0})
    needs: ClassVar[frozenset[str]] = frozenset({"source_prompt"})
    rows_formula: ClassVar[str] = "2*T + 4*T*N"

    cross_guidance: float = 0.1
    source_sentences: tuple[str, ...] = ()
    target_sentences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.rule  # noqa: B018 - refuses what is out of range

    def keeping(self, more: float) -> Pix2PixZero:
        """Larger moves towards the source's maps."""
        size = round(self.cross_guidance * (1.0 + more), 6)
        return replace(self, cross_guidance=max(0.0, size))

    @property
    def rule(self) -> EditRule:
        return EditRule(
            cross_guidance=CrossGuidance(
                self.cross_guidance, self.source_sentences, self.target_sentences
            )
        )
