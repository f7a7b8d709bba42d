"""The parameters of an edit: one frozen value, checked when it is created."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fpe_core.editors.fpe import FreePromptEditing
from fpe_core.editors.method import (
    NOTHING,
    EditInputs,
    EditMethod,
    method_from_dict,
    require_choice,
    share,
)
from fpe_core.errors import ParameterError
from fpe_core.injection import DifferenceMask, EditRule, Start, floor_of
from fpe_core.inside import Inside
from fpe_core.layer_rules import (
    LayerRule,
    LayersByTokens,
    layer_rule_from_dict,
    require_integer,
    require_number,
)
from fpe_core.proximal import Proximal

_MOST_STEPS = 999  # the first of 1,000 training timesteps is never sampled (steps_offset 1)
EVERY_STEP = (0.0, 1.0)
"""The guidance interval of ordinary edits."""


_FPE: dict[str, Any] = vars(FreePromptEditing())
INVERSIONS = ("direct", "negative_prompt", "null_text", "edit_friendly")
"""What `EditParameters.inversion` may be."""
SKIPPED_FRACTION, SOURCE_GUIDANCE_SCALE = 0.36, 3.5
"""The published ones of edit-friendly inversion (arXiv 2304.06140, sec. 4)."""


@dataclass(frozen=True)
class EditParameters:
    """Parameters of an edit; the defaults are Free-Prompt-Editing's (arXiv 2403.03431).

    Attributes:
        steps: DDIM steps of the inversion and of the edit alike, 1..999.
        guidance_scale: classifier-free guidance of the edit, >= 0; 1 means no guidance. The
            inversion is never guided.
        negative_prompt: text of the unconditional row.
        layers: which self-attention layers take the source's map.
        replaced_fraction: share of the steps, counted from the noisy end, in which they do, 0..1.
        guidance_interval: (start, end), shares of the steps counted from the noisy end, 0..1: step
            i of T is guided if start <= i / T < end. Any other step has scale 1, and so no
            unconditional row. (0, 1) guides every step. An approximation that saves rows
            (Kynkäänniemi et al. 2024, arXiv 2404.07724, who give the interval in noise levels).
        width_px, height_px: size of the edited image, multiples of 8.
        replace_cross_attention: also take the source's cross-attention maps in those layers. Not
            meant for editing: it is the paper's counter-example (sec. 3), kept to measure its
            findings.
        editor: another method than Free-Prompt-Editing, with its own parameters; `layers`,
            `replaced_fraction` and `replace_cross_attention` then have no meaning, and must have
            their defaults. See `edited_by`.
        inversion: "direct", or "negative_prompt": the prompt of an edit's unconditional rows is its
            source's (Miyake et al. 2023, arXiv 2305.16807); or "null_text": their embeddings are
            optimised for each source and step (`fpe_core.null_text`). The source then needs a
            prompt, and there is no other negative one. "edit_friendly": the source's latents have
            independent noise, and the edits its noise maps (`fpe_core.edit_friendly`).
        skipped_fraction: of an edit-friendly inversion, share of the steps, from the noisy end,
            that are left out, 0..1; more keeps more of the source.
        source_guidance_scale: of an edit-friendly inversion, the scale of its guidance by the
            source's prompt, >= 0; 1: none.
        proximal: only large differences of the predictions guide (`fpe_core.proximal`); None: all.
        inside: an edit changes nothing outside of its mask, which every edit then needs; None: it
            may change everything that its method changes.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    layers: LayerRule = field(default_factory=LayersByTokens)
    replaced_fraction: float = 0.8
    width_px: int = 512
    height_px: int = 512
    guidance_interval: tuple[float, float] = EVERY_STEP
    replace_cross_attention: bool = False
    editor: EditMethod | None = None
    inversion: str = "direct"
    inside: Inside | None = None
    skipped_fraction: float = SKIPPED_FRACTION
    source_guidance_scale: float = SOURCE_GUIDANCE_SCALE
    proximal: Proximal | None = None

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, minimum=1, maximum=_MOST_STEPS)
        require_number("guidance_scale", self.guidance_scale, minimum=0.0)
        require_number("replaced_fraction", self.replaced_fraction, minimum=0.0, maximum=1.0)
        _require_interval("guidance_interval", self.guidance_interval)
        if not isinstance(self.negative_prompt, str):
            raise ParameterError(f"negative_prompt must be text, got {self.negative_prompt!r}")
        if not isinstance(self.replace_cross_attention, bool):
            raise ParameterError(
                "replace_cross_attention must be true or false, got "
                f"{self.replace_cross_attention!r}"
            )
        if not isinstance(self.layers, LayerRule):
            raise ParameterError(
                f"layers must be a rule such as LayersByLevel, got {self.layers!r}"
            )
        for name in ("width_px", "height_px"):
            size_px = getattr(self, name)
            require_integer(name, size_px, minimum=8)
            if size_px % 8:
                raise ParameterError(f"{name} must be a multiple of 8, got {size_px}")
        require_choice("inversion", self.inversion, INVERSIONS)
        if self.inversion in ("negative_prompt", "null_text") and self.negative_prompt:
            theirs = "the source's prompt"
            if self.inversion == "null_text":
                theirs = "embeddings that are optimised"
            raise ParameterError(
                f"with inversion {self.inversion} the unconditional rows have {theirs}; "
                f"negative_prompt must be empty, got {self.negative_prompt!r}"
            )
        if self.inside is not None and not isinstance(self.inside, Inside):
            raise ParameterError(f"inside must be an Inside, or None, got {self.inside!r}")
        if self.proximal is not None and not isinstance(self.proximal, Proximal):
            raise ParameterError(f"proximal must be a Proximal, or None, got {self.proximal!r}")
        self._check_editor()
        self._check_edit_friendly()

    def _check_editor(self) -> None:
        if self.editor is None:
            return
        is_method = isinstance(self.editor, EditMethod)
        if not is_method or isinstance(self.editor, FreePromptEditing):
            raise ParameterError(
                f"editor must be a method other than fpe, or None, got {self.editor!r}; "
                "EditParameters.edited_by takes any"
            )
        if foreign := [name for name, default in _FPE.items() if getattr(self, name) != default]:
            raise ParameterError(
                f"{', '.join(foreign)}: parameters of fpe, not of {self.editor.name}; "
                "EditParameters.edited_by leaves them out"
            )
        if (why := _own_start(self.editor.rule)) and self.inversion != "direct":
            raise ParameterError(
                f"{self.editor.name} {why}; inversion must be direct, got {self.inversion!r}"
            )
        if self.editor.rule.image_guidance is not None and self.proximal is not None:
            raise ParameterError(
                f"{self.editor.name} is guided by an image too; proximal guidance is not for it"
            )
        self._check_cross_guidance()
        if self.editor.rule.start.sampled_steps(self.steps) < 1:
            raise ParameterError(
                f"{self.editor.name} samples none of {self.steps} steps: "
                f"{self.editor.rule.start.strength:g} of them is less than one"
            )

    def _check_edit_friendly(self) -> None:
        require_number("skipped_fraction", self.skipped_fraction, minimum=0.0, maximum=1.0)
        require_number("source_guidance_scale", self.source_guidance_scale, minimum=0.0)
        if self.inversion != "edit_friendly":
            published = SKIPPED_FRACTION, SOURCE_GUIDANCE_SCALE
            if (self.skipped_fraction, self.source_guidance_scale) != published:
                raise ParameterError(
                    "skipped_fraction and source_guidance_scale are parameters of inversion "
                    f"edit_friendly; it is {self.inversion}"
                )
            return
        if self.method.rule.start != Start():
            raise ParameterError(
                f"{self.method.name} does not start at the inversion of all steps; inversion "
                "edit_friendly is for editors that do"
            )
        if self.rule.start.sampled_steps(self.steps) < 1:
            raise ParameterError(
                f"skipped_fraction {self.skipped_fraction:g} leaves none of {self.steps} steps"
            )

    def _check_cross_guidance(self) -> None:
        """Of a method whose unconditional rows have the source's prompt, and a loop of its own."""
        if self.method.rule.cross_guidance is None:
            return
        if self.proximal is not None:
            raise ParameterError(f"proximal guidance is not for {self.method.name}")
        if self.negative_prompt:
            raise ParameterError(
                f"the unconditional rows of {self.method.name} have the source's prompt; "
                f"negative_prompt must be empty, got {self.negative_prompt!r}"
            )

    @property
    def method(self) -> EditMethod:
        """The editing method with all of its parameters."""
        if self.editor is not None:
            return self.editor
        return FreePromptEditing(self.layers, self.replaced_fraction, self.replace_cross_attention)

    @property
    def rule(self) -> EditRule:
        """What the sampling loop does, with edits that have nothing but their prompts."""
        return self.rule_for(NOTHING)

    def rule_for(self, inputs: EditInputs) -> EditRule:
        """What the sampling loop does with edits that have these inputs."""
        rule = replace(self.method.rule_for(inputs), inside=self.inside is not None)
        if self.inversion == "edit_friendly":
            return replace(rule, start=Start("inverted", 1.0 - self.skipped_fraction))
        return rule

    @property
    def inverted_steps(self) -> int:
        """How many steps of the inversion edits need; all of them with null-text inversion."""
        if self.inversion == "null_text":
            return self.steps
        return self.rule.inverted_steps(self.steps)

    def edited_by(self, method: EditMethod) -> EditParameters:
        """The same parameters with another method, Free-Prompt-Editing included."""
        if isinstance(method, FreePromptEditing):
            return replace(self, editor=None, **vars(method))
        return replace(self, editor=method, **_FPE)

    def keeping(self, more: float) -> EditParameters:
        """The same with a method that keeps so much more of the source (`EditMethod.keeping`).

        Unchanged for Free-Prompt-Editing, whose parameters are these themselves, and if that method
        would sample none of so few steps. Of an edit-friendly inversion more steps are left out;
        fewer cannot be, because the source is not inverted so far.
        """
        if self.inversion == "edit_friendly" and more > 0:
            most = 1.0 - 1.0 / self.steps
            return replace(self, skipped_fraction=min(most, share(self.skipped_fraction + more)))
        method = self.method.keeping(more)
        is_possible = method.rule.start.sampled_steps(self.steps) > 0
        return self.edited_by(method) if is_possible else self

    @property
    def can_make_any(self) -> bool:
        """Whether `not_applicable` is "" for every edit."""
        return self.editor is None and self.inversion == "direct" and self.inside is None

    def not_applicable(
        self,
        source_prompt: str,
        target_prompt: str,
        inputs: EditInputs = NOTHING,
        *,
        synthetic: bool = False,
    ) -> str:
        """Why an edit cannot be made with these parameters, in words; "" if it can.

        `synthetic`: its source is synthesised. Needs neither a model nor a tokenizer.
        """
        method = self.method
        if synthetic and not (self.rule.edits_synthetic and self.inversion == "direct"):
            how = f"inversion {self.inversion}" if self.inside is None else "a mask that binds"
            return f"{method.name} with {how} edits images, not a synthetic one"
        if self.inside is not None and inputs.mask is None:
            return "no mask, inside of which it is edited"
        if self.inversion in ("negative_prompt", "null_text") and not source_prompt.strip():
            return f"no source prompt, which inversion {self.inversion} needs"
        blend = method.rule_for(inputs).blend
        if blend is not None and isinstance(blend.mask, DifferenceMask):
            strength = blend.mask.strength
            if floor_of(strength, self.steps) < 1:
                return f"mask_strength {strength:g} of {self.steps} steps is less than one step"
        return method.not_applicable(source_prompt, target_prompt, inputs)

    @property
    def replaced_steps(self) -> int:
        """How many steps replace attention maps, counted from the noisy end."""
        return int(self.steps * self.replaced_fraction + 1e-9)

    @property
    def guided_steps(self) -> range:
        """The steps that need an unconditional row, from 0 at the noisy end.

        Empty at scale 1, where guidance changes nothing, and if no step is in the interval.
        """
        return range(0) if self.guidance_scale == 1.0 else self.interval_steps

    @property
    def interval_steps(self) -> range:
        """The steps of `guidance_interval`, whatever the scale."""
        first, end = (math.ceil(self.steps * share - 1e-9) for share in self.guidance_interval)
        return range(first, end)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for ids and records: equal parameters give equal dictionaries."""
        values: dict[str, Any] = {
            "steps": self.steps,
            "guidance_scale": float(self.guidance_scale),
            "negative_prompt": self.negative_prompt,
            "width_px": self.width_px,
            "height_px": self.height_px,
        }
        if self.editor is None:
            values["layers"] = self.layers.to_dict()
            values["replaced_fraction"] = float(self.replaced_fraction)
        else:
            values["editor"] = self.editor.to_dict()
        # Parameters added later are only written if they are used, so that older records and ids
        # stay the same.
        if self.guidance_interval != EVERY_STEP:
            values["guidance_interval"] = [float(share) for share in self.guidance_interval]
        if self.replace_cross_attention:
            values["replace_cross_attention"] = True
        if self.inversion != "direct":
            values["inversion"] = self.inversion
        if self.inversion == "edit_friendly":
            values["skipped_fraction"] = float(self.skipped_fraction)
            values["source_guidance_scale"] = float(self.source_guidance_scale)
        if self.inside is not None:
            values["inside"] = self.inside.to_dict()
        if self.proximal is not None:
            values["proximal"] = self.proximal.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EditParameters:
        """Reads back what `to_dict` wrote; keys that are absent keep their defaults."""
        known = dict(values)
        if "layers" in known:
            known["layers"] = layer_rule_from_dict(known["layers"])
        if known.get("editor") is not None:
            known["editor"] = method_from_dict(known["editor"])
        if known.get("inside") is not None:
            known["inside"] = Inside.from_dict(known["inside"])
        if known.get("proximal") is not None:
            known["proximal"] = Proximal.from_dict(known["proximal"])
        if isinstance(known.get("guidance_interval"), list):
            known["guidance_interval"] = tuple(known["guidance_interval"])
        allowed = [field.name for field in fields(cls)]
        if unknown := sorted(set(known) - set(allowed)):
            raise ParameterError(
                f"unknown edit parameter {', '.join(unknown)}; allowed: {', '.join(allowed)}"
            )
        return cls(**known)


def _own_start(rule: EditRule) -> str:
    """Why edits of a rule have no choice of the inversion, "" if they do."""
    if rule.image_guidance is not None:
        return "inverts nothing"
    if rule.regions is not None:
        return "inverts with its edits' masks and region prompts"
    if rule.cross_guidance is not None:
        return "has an inversion of its own"
    return ""


def _require_interval(name: str, value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ParameterError(f"{name} must be two numbers, its start and its end, got {value!r}")
    for place, each in zip(("start", "end"), value, strict=True):
        require_number(f"{name}'s {place}", each, minimum=0.0, maximum=1.0)
    if value[0] >= value[1]:
        raise ParameterError(
            f"{name} must start before it ends, got {list(value)}; for no guidance at all set "
            "guidance_scale to 1"
        )
