"""The noise levels a checkpoint was trained with, from its scheduler's config.

Needs no torch: a job that is planned finds out here whether a checkpoint's schedule can be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fpe_core.errors import CheckpointError, ParameterError

STEPS_OFFSET = 1
SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
_STATED_BY = ("beta_start", "beta_end", "beta_schedule", "trained_betas")

Levels = np.ndarray[Any, np.dtype[np.float64]]


def training_levels(config: Mapping[str, Any]) -> Levels:
    """Cumulative alpha of every training timestep, float64, 1..0, falling.

    What a config leaves out is as diffusers' DDIMScheduler has it: 1000 timesteps, `linear` betas
    from 0.0001 to 0.02.

    Raises:
        CheckpointError: the config describes no schedule, or one that Stable Diffusion 1.x does not
            use.
    """
    try:
        levels: Levels = np.cumprod(1.0 - _betas(config), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its scheduler config has unusable betas: {error}") from error
    if levels.ndim != 1 or len(levels) < 2 or not (np.diff(levels) < 0).all() or levels[-1] < 0:
        raise CheckpointError("its scheduler config has betas that are not all between 0 and 1")
    return _with_zero_terminal_snr(levels) if config.get("rescale_betas_zero_snr") else levels


def check_schedule(config: Mapping[str, Any]) -> None:
    """Refuses a schedule that cannot be run, whatever the number of steps.

    Raises:
        CheckpointError: betas, or a kind of prediction, that Stable Diffusion 1.x does not use.
    """
    name = str(config.get("_class_name") or "its scheduler")
    if config.get("use_flow_sigmas") or "FlowMatch" in name:
        raise CheckpointError(f"{name} describes a flow-matching model, not a diffusion model")
    if not any(config.get(key) is not None for key in _STATED_BY):
        raise CheckpointError(
            f"the config of {name} does not say with which betas the model was trained; it needs "
            "beta_start, beta_end and beta_schedule"
        )
    levels = training_levels(config)
    is_noise_at_last = is_trailing(config) and levels[-1] == 0
    if prediction_type_of(config) == "epsilon" and is_noise_at_last:
        raise CheckpointError(
            f"{name} begins at the last timestep (timestep_spacing trailing), which is pure noise "
            "(rescale_betas_zero_snr): there a model that predicts epsilon, as this config says, "
            "cannot be sampled. A model that was trained so predicts v: check prediction_type"
        )


def prediction_type_of(config: Mapping[str, Any]) -> str:
    """What the UNet's output is: "epsilon" or "v_prediction"; CheckpointError if anything else."""
    prediction_type = str(config.get("prediction_type") or "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise CheckpointError(
            f"scheduler prediction_type {prediction_type!r} is not supported; "
            f"allowed: {', '.join(PREDICTION_TYPES)}"
        )
    return prediction_type


def is_trailing(config: Mapping[str, Any]) -> bool:
    """Whether the steps end at the last training timestep, as models with zero terminal SNR need.

    `leading` and `linspace` are both the paper's grid, leading with offset 1: they are defaults of
    the sampler that a config was saved for, and say nothing of how the model was trained.

    Raises:
        CheckpointError: a spacing that diffusers does not have.
    """
    spacing = _stated(config, "timestep_spacing", "leading")
    if spacing not in SPACINGS:
        raise CheckpointError(
            f"scheduler timestep_spacing {spacing!r} is not supported; allowed: "
            f"{', '.join(SPACINGS)}"
        )
    return bool(spacing == "trailing")


def timesteps_of(config: Mapping[str, Any], steps: int) -> tuple[int, ...]:
    """The `steps` timesteps of DDIM, ascending: with leading spacing and offset 1, or, for a
    checkpoint whose config says so, with trailing spacing.

    Raises:
        ParameterError: more steps than the schedule has, or a timestep that it cannot sample.
        CheckpointError: as `training_levels` and `is_trailing`.
    """
    levels = training_levels(config)
    if is_trailing(config):
        return _trailing(len(levels), steps)
    stride = len(levels) // steps
    if stride < 1 or (steps - 1) * stride + STEPS_OFFSET >= len(levels):
        raise ParameterError(
            f"steps must be at most {len(levels) - STEPS_OFFSET} for this checkpoint "
            f"(trained on {len(levels)} timesteps), got {steps}"
        )
    timesteps = tuple(k * stride + STEPS_OFFSET for k in range(steps))
    if prediction_type_of(config) == "epsilon" and levels[timesteps[-1]] == 0:
        raise ParameterError(
            f"{steps} steps begin at timestep {timesteps[-1]}, which is pure noise for this "
            "checkpoint (rescale_betas_zero_snr), and a model that predicts epsilon cannot be "
            "sampled there; choose another number of steps"
        )
    return timesteps


def _trailing(count: int, steps: int) -> tuple[int, ...]:
    """Steps of equal length back from the last of `count` timesteps (Lin et al. 2023, arXiv
    2305.08891, table 2), rounded as in diffusers.

    Timestep 0, the level of z_0 itself, would be a step that does not move: it is refused.
    """
    # diffusers' np.arange, which for some numbers of steps has one element more: that is dropped
    places = np.arange(count, 0, -count / steps)[:steps]
    timesteps = tuple(int(place) - 1 for place in np.round(places)[::-1])
    if timesteps[0] < 1:
        most = max(each for each in range(1, steps) if round(count / each) > 1)
        raise ParameterError(
            f"steps must be at most {most} for this checkpoint (trained on {count} timesteps, "
            f"sampled with trailing spacing), got {steps}"
        )
    return timesteps


def _betas(config: Mapping[str, Any]) -> Levels:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    first, last = (
        float(_stated(config, "beta_start", 1e-4)),
        float(_stated(config, "beta_end", 0.02)),
    )
    count = int(_stated(config, "num_train_timesteps", 1000))
    kind = _stated(config, "beta_schedule", "linear")
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count, dtype=np.float64) ** 2
    if kind == "linear":
        return np.linspace(first, last, count, dtype=np.float64)
    raise CheckpointError(
        f"scheduler beta_schedule {kind!r} is not supported; allowed: scaled_linear, linear"
    )


def _stated(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _with_zero_terminal_snr(levels: Levels) -> Levels:
    """Shifted and scaled so that the last level is 0 and the first stays (Lin et al. 2023, arXiv
    2305.08891, algorithm 1)."""
    roots = np.sqrt(levels)
    rescaled: Levels = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return rescaled
