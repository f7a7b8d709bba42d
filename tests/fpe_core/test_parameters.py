from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_core import (
    EditParameters,
    LayersByLevel,
    LayersByRange,
    LayersByTokens,
    ParameterError,
)

rules = st.one_of(
    st.builds(LayersByTokens, st.integers(0, 10**6)),
    st.builds(LayersByLevel, st.sampled_from([1, 2, 4, 8])),
    st.integers(1, 16).flatmap(
        lambda first: st.builds(LayersByRange, st.just(first), st.integers(first, 32))
    ),
)
shares = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)
parameters = st.builds(
    EditParameters,
    steps=st.integers(1, 999),
    guidance_scale=st.floats(0, 50),
    negative_prompt=st.text(max_size=20),
    layers=rules,
    replaced_fraction=st.floats(0, 1),
    width_px=st.integers(1, 256).map(lambda n: 8 * n),
    height_px=st.integers(1, 256).map(lambda n: 8 * n),
    guidance_interval=shares.map(lambda pair: (min(pair), max(pair))),
    replace_cross_attention=st.booleans(),
)


@given(parameters)
def test_a_record_reads_back_as_the_same_parameters(value):
    assert EditParameters.from_dict(json.loads(json.dumps(value.to_dict()))) == value


def test_defaults_are_the_paper_s():
    value = EditParameters()
    assert (value.steps, value.guidance_scale, value.replaced_fraction) == (50, 7.5, 0.8)
    assert value.layers == LayersByTokens(1024)
    assert value.replaced_steps == 40


def test_only_the_experiment_names_cross_attention_in_its_record():
    """Records of ordinary edits, and so their ids, do not change."""
    assert "replace_cross_attention" not in EditParameters().to_dict()
    assert EditParameters(replace_cross_attention=True).to_dict()["replace_cross_attention"] is True


def test_only_limited_guidance_is_named_in_a_record():
    """Nor do ids of edits that are guided at every step, in any notation."""
    assert "guidance_interval" not in EditParameters(guidance_interval=(0, 1)).to_dict()
    limited = EditParameters(guidance_interval=(0, 0.5))
    assert limited.to_dict()["guidance_interval"] == [0.0, 0.5]
    assert EditParameters(guidance_interval=(0.0, 0.5)).to_dict() == limited.to_dict()


@pytest.mark.parametrize(
    ("steps", "interval", "guided"),
    [
        (10, (0.0, 1.0), range(10)),
        (10, (0.0, 0.7), range(7)),
        (10, (0.3, 0.7), range(3, 7)),
        (25, (0.2, 0.5), range(5, 13)),  # 12 / 25 < 0.5 <= 13 / 25
        (3, (0.1, 1.0), range(1, 3)),
        (1, (0.0, 0.01), range(1)),
        (2, (0.1, 0.4), range(0)),
    ],
)
def test_a_step_is_guided_where_its_share_of_the_steps_is_in_the_interval(steps, interval, guided):
    value = EditParameters(steps=steps, guidance_interval=interval)
    assert list(value.guided_steps) == list(guided)
    assert list(EditParameters(steps=steps, guidance_scale=1.0).guided_steps) == []


def test_whole_and_decimal_guidance_are_one_record():
    assert (
        EditParameters(guidance_scale=5).to_dict() == EditParameters(guidance_scale=5.0).to_dict()
    )


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.7, 0.8, 1.0])
def test_replaced_steps_do_not_suffer_from_rounding(fraction):
    assert EditParameters(steps=10, replaced_fraction=fraction).replaced_steps == round(
        10 * fraction
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 999, got 0"),
        ({"steps": 1000}, "steps must be 1 to 999, got 1000"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"guidance_scale": -1}, "guidance_scale must be >= 0"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a finite number"),
        ({"replaced_fraction": 1.5}, "replaced_fraction must be 0 to 1, got 1.5"),
        ({"guidance_interval": [0.5, 0.5]}, r"must start before it ends, got \[0.5, 0.5\]"),
        ({"guidance_interval": [0.1]}, "guidance_interval must be two numbers"),
        ({"guidance_interval": 0.5}, "guidance_interval must be two numbers"),
        ({"guidance_interval": [-1, 1]}, "guidance_interval's start must be 0 to 1, got -1"),
        ({"guidance_interval": [0, "1"]}, "guidance_interval's end must be a finite number"),
        ({"width_px": 100}, "width_px must be a multiple of 8, got 100"),
        ({"height_px": 0}, "height_px must be >= 8"),
        ({"negative_prompt": None}, "negative_prompt must be text"),
        ({"replace_cross_attention": 1}, "replace_cross_attention must be true or false, got 1"),
        ({"layers": 4}, "layers must be"),
        ({"layers": {"first": 4}}, "layers must be"),
        ({"layers": {"first": 5, "last": 4}}, r"layers.last must be >= layers.first \(5\), got 4"),
        ({"layers": {"level": 3}}, "layers.level must be a power of two"),
        ({"inversion": "edict"}, "inversion must be one of direct, negative_prompt, null_text"),
        (
            {"inversion": "negative_prompt", "negative_prompt": "ugly"},
            "negative_prompt must be empty",
        ),
        ({"editor": {"name": "p3p"}}, "unknown editor 'p3p'; allowed: .*p2p, pix2pix_zero, pnp"),
        (
            {"editor": {"name": "sdedit", "strenth": 0.5}},
            "parameter of sdedit: strenth; allowed: s",
        ),
        ({"editor": {"name": "sdedit", "strength": 0}}, "strength must be above 0"),
        ({"editor": {"name": "sdedit"}, "replaced_fraction": 0.5}, "replaced_fraction: parameters"),
        ({"editor": {"name": "sdedit", "strength": 0.01}}, "sdedit samples none of 50 steps"),
        ({"editor": {"name": "fpe"}}, "editor must be a method other than fpe"),
        ({"layers": {"max_tokens": -1}}, "layers.max_tokens must be >= 0"),
        ({"stepz": 4}, "unknown edit parameter"),
    ],
)
def test_bad_values_are_named(values, message):
    if "layers" in values and not isinstance(values["layers"], dict):
        with pytest.raises(ParameterError, match=message):
            EditParameters(**values)
    else:
        with pytest.raises(ParameterError, match=message):
            EditParameters.from_dict(values)
