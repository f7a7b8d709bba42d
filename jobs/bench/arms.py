"""The ways of editing (arms) that the benchmark commands compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from fpe_core import Editor, EditParameters, LayersByRange, ParameterError
from fpe_core.checkpoint.autoencoder import latent_shape
from fpe_core.speed import SPEEDS, SpeedPreset, at_speed
from fpe_core.still_life.benchmark.benchmark import Arm
from fpe_core.unet.attention import self_attention_layers

_RANGES = ((1, 3), (3, 13), (4, 14), (12, 16))
_FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

_STEP_SHARES = (1.0, 0.6, 0.4)
_INTERVALS = ((0.0, 1.0), (0.0, 0.8), (0.0, 0.6), (0.2, 1.0))

CHOSEN, NONE, ALL = "chosen", "none", "all"


def three_arms(editor: Editor, parameters: EditParameters) -> list[Arm]:
    """The given parameters, and two extremes: no layer replaced, and all layers replaced."""
    return [
        Arm(CHOSEN, parameters),
        Arm(NONE, dataclasses.replace(parameters, replaced_fraction=0.0)),
        Arm(ALL, dataclasses.replace(parameters, layers=_all_layers(editor, parameters))),
    ]


def findings_arms(editor: Editor, parameters: EditParameters) -> dict[str, list[Arm]]:
    """The arms of the paper's three studies (arXiv 2403.03431, sec. 3 and 4), by the study's title.

    Parameters that a study does not vary are those that the checkpoint recommends. The exception is
    the replaced fraction in the studies of layers and cross-attention: 0.8, as in the paper.
    """
    whole = _all_layers(editor, parameters)
    paper = dataclasses.replace(parameters, replaced_fraction=0.8)

    def layers(rule: LayersByRange) -> Arm:
        return Arm(f"layers {rule}", dataclasses.replace(paper, layers=rule))

    none = Arm("layers none", dataclasses.replace(paper, replaced_fraction=0.0))
    ranges = [layers(LayersByRange(*pair)) for pair in _RANGES if pair[1] <= whole.last]
    fractions = [
        Arm(f"fraction {share:g}", dataclasses.replace(parameters, replaced_fraction=share))
        for share in _FRACTIONS
    ]
    crossed = [
        Arm(f"{arm.name} + cross", _crossed(arm.parameters)) for arm in (ranges[1], layers(whole))
    ]
    return {
        "Replaced layers, in 0.8 of the steps": [none, *ranges, layers(whole)],
        f"Replaced share of the steps, layers {parameters.layers}": fractions,
        "Cross-attention replaced as well": [ranges[1], crossed[0], layers(whole), crossed[1]],
    }


def preset_arms(parameters: EditParameters) -> list[Arm]:
    """An arm for each value of `edit.speed`, "exact" first."""
    return [Arm(speed, at_speed(parameters, speed)) for speed in SPEEDS]


def grid_arms(parameters: EditParameters) -> list[Arm]:
    """The grid from which presets are chosen: every share of the steps with every guidance
    interval."""
    presets = [SpeedPreset(share, interval) for share in _STEP_SHARES for interval in _INTERVALS]
    tried = dict.fromkeys(preset.applied_to(parameters) for preset in presets)
    return [Arm(f"{each.steps} {interval_text(each)}", each) for each in tried]


def interval_text(parameters: EditParameters) -> str:
    """The guidance interval as short text."""
    return "{:g}-{:g}".format(*parameters.guidance_interval)


def settings_from_text(settings: Sequence[str]) -> dict[str, Any]:
    """`["steps=20", "layers={first: 4, last: 14}"]` to parameters; values are YAML.

    Raises:
        ParameterError: text without a key, or a value that is not valid YAML.
    """
    values: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ParameterError(f"expected KEY=VALUE, such as guidance_scale=5, got {text!r}")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ParameterError(f"{key}: {value!r} is not a valid YAML value: {error}") from None
    return values


def _crossed(parameters: EditParameters) -> EditParameters:
    return dataclasses.replace(parameters, replace_cross_attention=True)


def _all_layers(editor: Editor, parameters: EditParameters) -> LayersByRange:
    _, height, width = latent_shape(editor.checkpoint, parameters)
    return LayersByRange(1, len(self_attention_layers(editor.checkpoint.unet, height, width)))
