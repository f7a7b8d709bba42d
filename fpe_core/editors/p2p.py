"""Prompt-to-Prompt: the source's cross-attention maps, word by word, and some of self-attention."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fpe_core.editors.method import EditInputs, EditMethod, require_choice, share
from fpe_core.editors.words import (
    TokenMix,
    Tokens,
    indicator,
    places_of,
    refined,
    replaced,
    unequal_words,
)
from fpe_core.injection import Blend, EditRule, Injection, WordMask
from fpe_core.layer_rules import LayerRule, LayersByLevel, require_number


@dataclass(frozen=True)
class PromptToPrompt(EditMethod):
    """Cross-attention maps in all layers, self-attention maps in some, onto the conditional row.

    With S = max(floor(cross_fraction T), floor(self_fraction T)), or S = T for edits with blend
    words: their mask needs the source's maps at every step.

    Attributes:
        controller: "refine": tokens that both prompts have take the source's columns, new ones keep
            their own; "replace": word by word, for prompts of equally many words.
        cross_fraction: share of the steps, from the noisy end, with the source's cross-attention
            maps, 0..1.
        self_fraction: likewise of self-attention maps, 0..1.
        layers: the self-attention layers that take them. Published: at most 32 x 32 tokens at 512
            px, which is level 2.
        blend_word_scale: factor for the columns of the target's blend words while cross-attention
            maps are taken ("reweight"; published with 2); others: `EditInputs.word_scales`.
        blend_threshold, blend_start, blend_level: of the mask of edits that have blend words, see
            `WordMask`. Outside of it the latent is the source's.
    """

    name: ClassVar[str] = "p2p"
    paper: ClassVar[str] = (
        "Prompt-to-Prompt Image Editing with Cross Attention Control (ICLR 2023, arXiv 2208.01626, "
        "alg. 1 and sec. 3.2)"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"source_prompt"})
    takes: ClassVar[frozenset[str]] = frozenset({"blend_words"})
    rows_formula: ClassVar[str] = "T + S + 1 + (2*T - 1)*N"

    controller: str = "refine"
    cross_fraction: float = 0.4
    self_fraction: float = 0.6
    layers: LayerRule = field(default_factory=lambda: LayersByLevel(2))
    blend_word_scale: float = 1.0
    blend_threshold: float = 0.3
    blend_start: float = 0.2
    blend_level: int = 4

    def __post_init__(self) -> None:
        require_choice("controller", self.controller, ("refine", "replace"))
        for name in ("cross_fraction", "self_fraction"):
            require_number(name, getattr(self, name), minimum=0.0, maximum=1.0)
        require_number("blend_word_scale", self.blend_word_scale, minimum=-1e6, maximum=1e6)
        self._mask  # noqa: B018 - refuses what is out of range

    @property
    def _mask(self) -> WordMask:
        return WordMask(self.blend_level, float(self.blend_threshold), float(self.blend_start))

    @property
    def rule(self) -> EditRule:
        cross, own = float(self.cross_fraction), float(self.self_fraction)
        return EditRule(
            (
                Injection("cross", LayersByLevel(1), "qk", (0.0, cross), mixes_words=True),
                Injection("self", self.layers, "qk", (0.0, own)),
            )
        )

    def keeping(self, more: float) -> PromptToPrompt:
        """More steps with the source's maps."""
        return replace(
            self,
            cross_fraction=share(self.cross_fraction + more),
            self_fraction=share(self.self_fraction + more),
        )

    def rule_for(self, inputs: EditInputs) -> EditRule:
        """Edits with blend words are blended."""
        rule = self.rule
        return rule if inputs.blend_words is None else replace(rule, blend=Blend(self._mask))

    def not_applicable(self, source_prompt: str, target_prompt: str, inputs: EditInputs) -> str:
        """As every method's; also prompts or words that do not fit each other."""
        if lacks := super().not_applicable(source_prompt, target_prompt, inputs):
            return lacks
        unequal = unequal_words(source_prompt, target_prompt)
        if self.controller == "replace" and unequal:
            return unequal
        wanted = [(word, target_prompt) for word, _ in inputs.word_scales]
        if inputs.blend_words is not None:
            wanted += zip(inputs.blend_words, (source_prompt, target_prompt), strict=True)
        for words, prompt in wanted:
            if not places_of(words, prompt):
                return f"the words {words!r} are not in the prompt {prompt!r}"
        return ""

    def token_mix(
        self,
        tokens: Tokens,
        window: int,
        source_prompt: str,
        target_prompt: str,
        inputs: EditInputs,
    ) -> TokenMix:
        """The controller's matrices, with the factors of the words in them. Raises PromptError."""
        align = refined if self.controller == "refine" else replaced
        mix = align(tokens, window, source_prompt, target_prompt)
        scales = list(inputs.word_scales)
        if inputs.blend_words is not None:
            scales.append((inputs.blend_words[1], self.blend_word_scale))
        given, own = mix.given.copy(), mix.own.copy()
        for word, scale in scales:
            factor = 1.0 + (scale - 1.0) * indicator(tokens, window, word, target_prompt)
            given, own = given * factor, own * factor
        if inputs.blend_words is None:
            return TokenMix(given, own)
        return TokenMix(
            given,
            own,
            indicator(tokens, window, inputs.blend_words[0], source_prompt),
            indicator(tokens, window, inputs.blend_words[1], target_prompt),
        )
