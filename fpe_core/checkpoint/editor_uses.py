"""What every editor would do in the layers of a checkpoint, by its rule. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core.checkpoint.unet_layers import UNetLayer
from fpe_core.editors.method import NOTHING, EditMethod, method_named, method_names
from fpe_core.errors import ParameterError
from fpe_core.family_limits import require_family
from fpe_core.injection import EditRule, Injection, ResidualInjection
from fpe_core.layer_rules import LayerRule
from fpe_core.parameters import EditParameters
from fpe_core.row_formulas import row_counts
from fpe_core.unet.attention import SelfAttentionLayer, select_layers

_WORDS = {"q": "queries", "k": "keys", "v": "values", "qk": "maps", "kv": "keys and values"}


@dataclass(frozen=True)
class Replacement:
    """What an edit takes of its source.

    Attributes:
        what: "self-attention maps" for one.
        layers: numbers of the self-attentions, or of those that cross-attentions and residual
            blocks stand beside; empty: none of this checkpoint's.
        steps: shares of the steps from the noisy end.
    """

    what: str
    layers: tuple[int, ...]
    steps: tuple[float, float]


@dataclass(frozen=True)
class EditorUse:
    """What an editor does with a checkpoint.

    Attributes:
        editor: its name.
        why_not: why it cannot edit with this checkpoint; "" if it can.
        replaces: what its edits take of their sources.
        also: what else it does, in words.
        rows: UNet rows of a source with one edit, at the checkpoint's steps; None if it cannot.
    """

    editor: str
    why_not: str
    replaces: tuple[Replacement, ...]
    also: tuple[str, ...]
    rows: int | None


def editor_uses(
    own: EditParameters, layers: Sequence[UNetLayer], *, sees_source: bool, is_told_sizes: bool
) -> tuple[EditorUse, ...]:
    """Of every editor with its own parameters, and of `fpe` and the checkpoint's own editor with
    those that the checkpoint recommends.

    Args:
        own: what the checkpoint recommends.
        layers: of its UNet.
        sees_source, is_told_sizes: of its UNet, see `require_family`.
    """
    found = []
    for name in method_names():
        method = method_named(name)()
        try:
            parameters = own if name == own.method.name else _edited_by(own, method)
            require_family(parameters, sees_source=sees_source, is_told_sizes=is_told_sizes)
            found.append(_use(name, parameters, layers))
        except ParameterError as error:
            found.append(EditorUse(name, str(error), (), (), None))
    return tuple(found)


def _edited_by(own: EditParameters, method: EditMethod) -> EditParameters:
    """With the checkpoint's steps and size, and the prompt of the unconditional rows if it may."""
    plain = EditParameters(
        steps=own.steps,
        guidance_scale=own.guidance_scale,
        width_px=own.width_px,
        height_px=own.height_px,
    )
    return plain.edited_by(method)


def _use(name: str, parameters: EditParameters, layers: Sequence[UNetLayer]) -> EditorUse:
    rule = parameters.rule
    replaces = tuple(
        Replacement(_what(each), _numbers(layers, each.layers), each.steps)
        for each in rule.exchanges
    )
    rows = row_counts(parameters, [NOTHING], source_prompt="a source prompt").total
    return EditorUse(name, "", replaces, tuple(_also(rule)), rows)


def _what(exchange: Injection | ResidualInjection) -> str:
    if isinstance(exchange, ResidualInjection):
        return "residuals in front of self-attention"
    what = f"{exchange.attention}-attention {_WORDS.get(exchange.takes, exchange.takes)}"
    return f"{what}, appended" if exchange.appends else what


def _numbers(layers: Sequence[UNetLayer], rule: LayerRule) -> tuple[int, ...]:
    """Raises ParameterError for a rule that reaches past the last layer."""
    known = tuple(
        SelfAttentionLayer(each.number, "", each.tokens, each.level, each.part) for each in layers
    )
    return tuple(each.position for each in select_layers(known, rule))


def _also(rule: EditRule) -> list[str]:
    found = []
    if rule.start.latent == "noised":
        found.append(f"starts at its source with noise, {rule.start.strength:g} of the steps")
    elif rule.start.latent == "noise":
        found.append("starts at noise")
    elif rule.start.strength < 1:
        found.append(f"starts at {rule.start.strength:g} of the inversion")
    if rule.blend is not None:
        how = "given" if rule.blend.mask == "given" else "found"
        found.append(f"keeps its source's latent outside of a mask that is {how}")
    if rule.regions is not None:
        found.append("a mask splits all attention, in all layers at all steps")
    if rule.cross_guidance is not None:
        found.append("gradients keep all cross-attention maps near its source's")
    if rule.image_guidance is not None:
        found.append("the UNet sees the source in channels of its own")
    return found


def layers_text(numbers: Sequence[int], count: int) -> str:
    """3-13 (11 of 16), or 1-4, 7 (5 of 16)."""
    if not numbers:
        return f"none of {count}"
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    texts = [f"{each[0]}-{each[-1]}" if len(each) > 1 else str(each[0]) for each in parts]
    return f"{', '.join(texts)} ({len(numbers)} of {count})"


def steps_text(steps: tuple[float, float]) -> str:
    """0.8 of the steps, or steps 0.08 to 1."""
    start, end = steps
    return f"{end:g} of the steps" if start == 0 else f"{start:g} to {end:g} of the steps"
