"""What an edit takes from its source, where it starts and what it keeps: values, and no torch.

Editing methods without training differ in little. While an edit is sampled, some attention layers
take queries, keys or values of a row of the source; a residual block may take the source's; the
latent starts at the inverted one, or at noise; and outside a mask it is put back. An `EditRule`
says which, so that one sampling loop (`fpe_core.sampling`) runs them all, and the number of UNet
rows follows from it (`fpe_core.row_formulas`).

Steps are shares of all steps, counted from the noisy end: step i of T, from 0, is in (start, end)
if floor(start T) <= i < floor(end T).
"""

from __future__ import annotations

from dataclasses import dataclass

from fpe_core.errors import ParameterError
from fpe_core.layer_rules import LayerRule, require_integer, require_number

CONDITIONAL, UNCONDITIONAL, EMPTY = "conditional", "unconditional", "empty"
SOURCE_ROWS = (CONDITIONAL, UNCONDITIONAL, EMPTY)
"""Rows of a source: with its own prompt, with the prompt of the edits' unconditional rows, and
without a prompt. Rows with equal prompts are one row."""

SAMPLERS = ("ddim", "euler_ancestral")
"""How a latent is moved from one level to the next one."""

_KINDS = ("self", "cross")
_TAKES = ("q", "k", "v", "qk", "kv", "qv", "qkv")


@dataclass(frozen=True)
class Injection:
    """Attention layers of an edit that take projections of its source.

    Attributes:
        attention: "self" or "cross": the self-attentions that `layers` names, or the
            cross-attention behind each of them.
        layers: which layers.
        takes: what of the source they attend with, of "q", "k" and "v": "qk" is its map.
        steps: (start, end), shares of the steps from the noisy end.
        conditional: the row of the source that gives to the edit's conditional row.
        unconditional: the one that gives to its unconditional row; None: it keeps its own.
        appends: keys and values come after the row's own instead of in their place.
        mixes_words: of cross-attention that takes "qk": the map's columns are brought to the
            words of the edit's prompt, see `TokenMix`.
    """

    attention: str
    layers: LayerRule
    takes: str
    steps: tuple[float, float]
    conditional: str = CONDITIONAL
    unconditional: str | None = None
    appends: bool = False
    mixes_words: bool = False

    def __post_init__(self) -> None:
        if self.attention not in _KINDS:
            raise ParameterError(f"attention must be self or cross, got {self.attention!r}")
        if self.takes not in _TAKES:
            raise ParameterError(f"takes must be one of {', '.join(_TAKES)}, got {self.takes!r}")
        if self.appends and self.takes != "kv":
            raise ParameterError(f"only kv can be appended, got takes {self.takes!r}")
        if self.mixes_words and (self.attention, self.takes) != ("cross", "qk"):
            raise ParameterError("only qk of cross-attention can be brought to other words")
        _require_rows(self.conditional, self.unconditional)
        require_steps("steps", self.steps)

    def steps_of(self, steps: int) -> range:
        """The numbers of its steps of `steps`, from 0 at the noisy end."""
        return steps_between(self.steps, steps)


@dataclass(frozen=True)
class ResidualInjection:
    """Residual blocks of an edit that add what its source's add, before the shortcut is added.

    Attributes:
        layers: the blocks right before these self-attentions.
        steps, conditional, unconditional: as of an `Injection`.
    """

    layers: LayerRule
    steps: tuple[float, float]
    conditional: str = CONDITIONAL
    unconditional: str | None = None

    def __post_init__(self) -> None:
        _require_rows(self.conditional, self.unconditional)
        require_steps("steps", self.steps)

    def steps_of(self, steps: int) -> range:
        """The numbers of its steps of `steps`, from 0 at the noisy end."""
        return steps_between(self.steps, steps)


@dataclass(frozen=True)
class Start:
    """Where the latent of an edit starts.

    Attributes:
        latent: "inverted": the source's inverted latent; "noised": its z_0 with noise of the edit's
            seed, in closed form; "noise": that noise alone.
        strength: share of the steps that are sampled: z starts at level floor(strength T).
    """

    latent: str = "inverted"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.latent not in ("inverted", "noised", "noise"):
            raise ParameterError(f"start must be inverted, noised or noise, got {self.latent!r}")
        require_number("strength", self.strength, minimum=0.0, maximum=1.0)

    def sampled_steps(self, steps: int) -> int:
        """How many of `steps` are sampled; they are the last ones, at the clean end."""
        return floor_of(self.strength, steps)


@dataclass(frozen=True)
class DifferenceMask:
    """A mask of what two prompts see differently in the noised source.

    Its values are the mean over `samples` noises and over channels of |eps(target) - eps(source)|
    at level floor(strength T), limited to `most` times its own mean and divided by that limit;
    what is above `threshold` is edited.
    """

    samples: int = 10
    strength: float = 0.5
    most: float = 3.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require_integer("mask_samples", self.samples, minimum=1)
        require_number("mask_strength", self.strength, minimum=0.0, maximum=1.0)
        require_number("mask_most", self.most, minimum=1.0)
        require_number("mask_threshold", self.threshold, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class WordMask:
    """A mask of where two words look: cross-attention maps of the source's word and the edit's.

    Maps of one level of the latent grid, summed over the steps so far and over heads and layers,
    enlarged by a maximum over 3 x 3, resized to the latent (nearest), divided by their maximum;
    what is above `threshold` in either of the two is edited.

    Attributes:
        level: the reduction of the latent grid: 4 is 16 x 16 at 512 px.
        threshold: 0..1.
        start: share of the steps from the noisy end from which on the mask is applied.
    """

    level: int = 4
    threshold: float = 0.3
    start: float = 0.2

    def __post_init__(self) -> None:
        require_integer("blend_level", self.level, minimum=1)
        require_number("blend_threshold", self.threshold, minimum=0.0, maximum=1.0)
        require_number("blend_start", self.start, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class Blend:
    """After each step the latent outside a mask is put back to the source's of the same level.

    Attributes:
        mask: "given" with the edit, or how it is found. An edit that has a mask keeps it in place
            of a `DifferenceMask`; one without words of a `WordMask` is not blended.
        outside: "inverted": the latent of the source's inversion; "noised": its z_0 with noise of
            the edit's seed, another one at every level.
    """

    mask: str | DifferenceMask | WordMask = "given"
    outside: str = "inverted"

    def __post_init__(self) -> None:
        if isinstance(self.mask, str) and self.mask != "given":
            raise ParameterError(f"a blend's mask must be given or computed, got {self.mask!r}")
        if self.outside not in ("inverted", "noised"):
            raise ParameterError(f"outside must be inverted or noised, got {self.outside!r}")


@dataclass(frozen=True)
class AttentionRegions:
    """Attention that the edit's mask splits, of all layers at all steps and of all rows, and in the
    inversion that the edit starts from, which is its own.

    A position inside the mask attends to positions inside and to the tokens of the prompt of the
    inside, one outside likewise. Weights are taken off after the softmax, and the others keep
    theirs. The mask at an attention of h x w positions is the nearest pixel's: position (i, j) is
    inside if pixel (floor((i + 0.5) H / h), floor((j + 0.5) W / w)) is.

    Attributes:
        cross_scale: factor for the weights of tokens; in the edit it is 1 for those that the
            inversion's prompt of the region has too.
    """

    cross_scale: float = 2.5


@dataclass(frozen=True)
class CrossGuidance:
    """Gradients keep an edit's cross-attention maps near its source's (pix2pix-zero, arXiv
    2302.03027, sec. 3.3), and the noise of the inversion is regularised (sec. 3.1).

    Attributes:
        size: of the move, a factor of the gradient.
        source_sentences, target_sentences: the direction of the edit, mean embedding of the second
            minus that of the first; without them from the caption to the target prompt.
    """

    size: float
    source_sentences: tuple[str, ...] = ()
    target_sentences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_number("cross_guidance", self.size, minimum=0.0)
        for name in ("source_sentences", "target_sentences"):
            texts = getattr(self, name)
            is_list = isinstance(texts, tuple)
            if not is_list or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ParameterError(f"{name} must be a list of texts, got {texts!r}")
        if bool(self.source_sentences) != bool(self.target_sentences):
            raise ParameterError(
                "source_sentences and target_sentences make a direction together: give both or "
                "neither"
            )


@dataclass(frozen=True)
class EditRule:
    """How edits of a method are made; guidance and the number of steps are the call's.

    The default is guided DDIM sampling from the inverted latent.

    Attributes:
        inside: beyond whatever `blend` does, the latent outside of the edit's mask is the source's
            of the same level, from the start to the end: the inversion's, or, if the UNet sees the
            source, z_0 with the edit's start noise.
        image_guidance: scale of the guidance by the source that the UNet sees, in channels of its
            own (InstructPix2Pix, arXiv 2211.09800, eq. 3); None: it sees no source.
        sampler: of `SAMPLERS`: "euler_ancestral" draws noise of the edit's seed at every step.
        regions: the mask splits attention, in the edit and in an inversion of its own, and nothing
            is taken of the source; None: it does not.
        cross_guidance: None: no gradients. Else nothing but `start`, which is the inverted latent,
            and `inside` has a meaning.
    """

    injections: tuple[Injection, ...] = ()
    residuals: tuple[ResidualInjection, ...] = ()
    start: Start = Start()
    blend: Blend | None = None
    inside: bool = False
    image_guidance: float | None = None
    sampler: str = "ddim"
    regions: AttentionRegions | None = None
    cross_guidance: CrossGuidance | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ParameterError(
                f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}"
            )
        if self.regions is not None and (
            self.exchanges
            or self.start != Start()
            or self.image_guidance is not None
            or self.blend != Blend("given")
        ):
            raise ParameterError(
                "attention that a mask splits starts at the inverted latent, is blended by that "
                "mask, and takes nothing of the source"
            )

    @property
    def is_noisy(self) -> bool:
        """Whether an edit needs noise, and so a seed, unless it has a mask for the difference."""
        return (
            self.start.latent != "inverted"
            or self.sampler == "euler_ancestral"
            or (self.blend is not None and self.blend.outside == "noised")
            or (self.blend is not None and isinstance(self.blend.mask, DifferenceMask))
        )

    @property
    def exchanges(self) -> tuple[Injection | ResidualInjection, ...]:
        """All that sources hand over."""
        return *self.injections, *self.residuals

    @property
    def source_rows(self) -> frozenset[str]:
        """Which rows of a source (`SOURCE_ROWS`) give something at any step."""
        rows = (row for each in self.exchanges for row in (each.conditional, each.unconditional))
        return frozenset(row for row in rows if row is not None)

    @property
    def edits_synthetic(self) -> bool:
        """Whether a source that is synthesised beside its edits has all that the rule takes."""
        return (
            self.source_rows <= {CONDITIONAL}
            and self.start == Start()
            and (self.blend is None or isinstance(self.blend.mask, WordMask))
            and not self.inside
            and self.regions is None
            and self.cross_guidance is None
        )

    @property
    def own_prompts(self) -> tuple[str, ...]:
        """Prompts that it needs besides those of sources and edits."""
        empty = ("",) if EMPTY in self.source_rows else ()
        if self.cross_guidance is None:
            return empty
        given = self.cross_guidance
        return *empty, *given.source_sentences, *given.target_sentences

    def inverted_steps(self, steps: int) -> int:
        """The highest level K of the source's trajectory z_0 .. z_K that is needed."""
        if self.regions is not None:
            return 0  # the edit makes its own
        if self.start.latent == "inverted":
            return self.start.sampled_steps(steps)
        if self.exchanges:
            return steps
        if self.image_guidance is not None:
            return 0  # such a UNet inverts nothing
        keeps = self.blend is not None and self.blend.outside == "inverted"
        return self.start.sampled_steps(steps) if keeps or self.inside else 0


def floor_of(share: float, steps: int) -> int:
    """floor(share T), safe from rounding: 0.3 of 10 steps are 3."""
    return int(steps * share + 1e-9)


def steps_between(shares: tuple[float, float], steps: int) -> range:
    """The numbers of the steps between two shares, from 0 at the noisy end."""
    return range(floor_of(shares[0], steps), floor_of(shares[1], steps))


def require_steps(name: str, value: object) -> None:
    """Raises ParameterError unless the value is (start, end), both 0..1."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ParameterError(f"{name} must be two shares, start and end, got {value!r}")
    for share in value:
        require_number(name, share, minimum=0.0, maximum=1.0)
    if value[0] > value[1]:
        raise ParameterError(f"{name} must not end before they start, got {list(value)}")


def _require_rows(conditional: str, unconditional: str | None) -> None:
    for row in (conditional, *(() if unconditional is None else (unconditional,))):
        if row not in SOURCE_ROWS:
            raise ParameterError(
                f"a source's row must be one of {', '.join(SOURCE_ROWS)}, got {row!r}"
            )
