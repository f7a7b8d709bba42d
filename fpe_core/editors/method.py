"""What every editing method is: its parameters, its rule, and what a row must have for it."""

from __future__ import annotations

import functools
import hashlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fpe_core import editors
from fpe_core.editors.region_prompts import RegionPrompts
from fpe_core.errors import ParameterError
from fpe_core.injection import EditRule, require_steps
from fpe_core.layer_rules import layer_rule_from_dict

if TYPE_CHECKING:
    import numpy as np

    from fpe_core.editors.words import TokenMix, Tokens

NEEDS = ("source_prompt", "mask", "blend_words", "region_prompts", "seed")
"""What a method may need besides an image and a target prompt, as `EditMethod.needs` names it."""


@dataclass(frozen=True, eq=False)
class EditInputs:
    """What one edit has besides its source and its target prompt; all optional.

    Attributes:
        seed: of all noise of this edit, 0 .. 2^63 - 1.
        mask: True where the picture is edited, bool, (height_px, width_px) of the edit.
        blend_words: words of the source prompt and of the target prompt that say what is edited;
            each may be several words that follow each other.
        word_scales: words of the target prompt and a factor for their attention, such as
            (("red", 2.0),).
        region_prompts: what is inside the mask and outside of it, in the source and in the edit.
    """

    seed: int | None = None
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    blend_words: tuple[str, str] | None = None
    word_scales: tuple[tuple[str, float], ...] = ()
    region_prompts: RegionPrompts | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for ids: equal inputs give equal dictionaries; a mask is its digest."""
        values: dict[str, Any] = {}
        if self.seed is not None:
            values["seed"] = self.seed
        if self.mask is not None:
            bits = hashlib.blake2b(self.mask.astype(bool).tobytes(), digest_size=16)
            values["mask"] = {"shape": list(self.mask.shape), "blake2b": bits.hexdigest()}
        if self.blend_words is not None:
            values["blend_words"] = list(self.blend_words)
        if self.word_scales:
            values["word_scales"] = [[word, float(scale)] for word, scale in self.word_scales]
        if self.region_prompts is not None:
            values["region_prompts"] = self.region_prompts._asdict()
        return values


NOTHING = EditInputs()


@dataclass(frozen=True)
class EditMethod:
    """Base of all methods. A subclass is a frozen dataclass; its fields are its parameters.

    Attributes:
        name: as in job files and ids.
        paper: title, venue, arXiv number and equation.
        published: `EditParameters` that the method was published with.
        needs: what an edit must have, of `NEEDS`; more by parameters: `missing`.
        takes: what it uses besides if an edit has it, of `NEEDS`.
        prompts: what an edit's prompt says: the "target", what the edited picture shows, or the
            "instruction", what is to be changed.
        rows_formula: UNet rows of a source with N edits that are guided at all of the T steps, as a
            Python expression; other names are explained in the method's docstring. It agrees with
            `fpe_core.row_formulas`, which counts them from the rule for all parameters.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    published: ClassVar[Mapping[str, Any]] = MappingProxyType({"steps": 50, "guidance_scale": 7.5})
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    prompts: ClassVar[str] = "target"
    rows_formula: ClassVar[str]

    @property
    def rule(self) -> EditRule:
        """What the sampling loop does."""
        raise NotImplementedError

    def rule_for(self, inputs: EditInputs) -> EditRule:
        """The rule for an edit with these inputs; the edits of a call agree on it."""
        del inputs
        return self.rule

    def keeping(self, more: float) -> EditMethod:
        """The method with its shares of the steps moved so that an edit keeps more of its source.

        `more`: by how much, -1..1; below 0 less of it is kept, and more can change. Shares stay in
        their range. The method itself if it has no such share.
        """
        del more
        return self

    def missing(self, inputs: EditInputs, source_prompt: str) -> tuple[str, ...]:
        """What an edit lacks for this method, of `NEEDS`; empty if it can be made."""
        has = {
            "source_prompt": bool(source_prompt.strip()),
            "mask": inputs.mask is not None,
            "blend_words": inputs.blend_words is not None,
            "region_prompts": inputs.region_prompts is not None,
            "seed": inputs.seed is not None,
        }
        return tuple(need for need in NEEDS if need in self.needs and not has[need])

    def not_applicable(self, source_prompt: str, target_prompt: str, inputs: EditInputs) -> str:
        """Why this edit cannot be made by this method, in words; "" if it can.

        Needs neither a model nor a tokenizer, so that a plan can say it.
        """
        del target_prompt
        lacks = self.missing(inputs, source_prompt)
        return f"no {', no '.join(each.replace('_', ' ') for each in lacks)}" if lacks else ""

    def token_mix(
        self,
        tokens: Tokens,
        window: int,
        source_prompt: str,
        target_prompt: str,
        inputs: EditInputs,
    ) -> TokenMix:
        """How the source's tokens are brought to the target's, for `Injection.mixes_words`.

        Args:
            tokens: the token ids of a text, the first and the last special one included.
            window: how many tokens the text encoder sees.
        """
        raise NotImplementedError

    def region_prompts(
        self, source_prompt: str, target_prompt: str, inputs: EditInputs
    ) -> RegionPrompts:
        """All four prompts of an edit, for `EditRule.regions`; those not given by the method's
        rule."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for ids and records: the name and all parameters."""
        values: dict[str, Any] = {"name": self.name}
        for each in fields(self):
            value = getattr(self, each.name)
            if hasattr(value, "to_dict"):
                value = value.to_dict()
            elif isinstance(value, tuple):
                value = [each if isinstance(each, str) else float(each) for each in value]
            elif each.type == "float":
                value = float(value)
            values[each.name] = value
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EditMethod:
        """A method of this class from parameters as JSON has them; others keep their defaults.

        Raises:
            ParameterError: an unknown parameter, or one out of range.
        """
        allowed = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(allowed)):
            raise ParameterError(
                f"unknown parameter of {cls.name}: {', '.join(unknown)}; allowed: "
                f"{', '.join(allowed) or 'none'}"
            )
        return cls(**{name: _plain(value) for name, value in values.items()})


def method_names() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(sorted(_methods()))


def method_named(name: str) -> type[EditMethod]:
    """The class of a method. Raises ParameterError for a name that is none."""
    methods = _methods()
    if name not in methods:
        raise ParameterError(f"unknown editor {name!r}; allowed: {', '.join(sorted(methods))}")
    return methods[name]


def method_from_dict(values: Mapping[str, Any]) -> EditMethod:
    """Reads back what `EditMethod.to_dict` wrote; absent parameters keep their defaults.

    Raises:
        ParameterError: an unknown name or parameter, or a value out of range.
    """
    others = dict(values)
    return method_named(str(others.pop("name", None))).of(others)


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ParameterError, which names the value, unless it is one of the allowed ones."""
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def require_method(method: EditMethod, sees_source: bool) -> None:
    """Raises ParameterError if a method is for UNets of another kind.

    `sees_source`: whether the UNet takes the source's latent in channels of its own.
    """
    wants = method.rule.image_guidance is not None
    if wants == sees_source:
        return
    if wants:
        raise ParameterError(
            f"{method.name} needs a UNet of eight input channels, which sees the source; this "
            "checkpoint's has four: name one such as builtin:still-life-instruct"
        )
    raise ParameterError(
        f"this checkpoint's UNet has eight input channels: it reads instructions, and "
        f"{method.name} cannot edit with it; the editor for it is instruct_pix2pix"
    )


def share(value: float, least: float = 0.0) -> float:
    """A share of the steps, brought into its range and freed from rounding."""
    return round(min(1.0, max(least, value)), 6)


def require_shares(**values: object) -> None:
    """Raises ParameterError for the first of these steps that is not (start, end), both 0..1."""
    for name, value in values.items():
        require_steps(name, value)


@functools.cache
def _methods() -> dict[str, type[EditMethod]]:
    """By name: every method that a file of this folder defines."""
    found: dict[str, type[EditMethod]] = {}
    for file in pkgutil.iter_modules(editors.__path__):
        module = import_module(f"{editors.__name__}.{file.name}")
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, EditMethod) and "name" in vars(each):
                found[each.name] = each
    return found


def _plain(value: Any) -> Any:
    """A parameter from JSON: rules of layers are dictionaries; shares of steps and texts are
    lists."""
    if isinstance(value, Mapping):
        return layer_rule_from_dict(value)
    return tuple(value) if isinstance(value, list) else value
