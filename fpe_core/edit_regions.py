"""The edits of a call whose masks split their attention: inversions of their own, and prompts.

Shape-guided diffusion (Park et al. 2024, arXiv 2212.00210). The inversion of a source depends on
the mask and on the prompts of what is inside and outside, so it is made with the edits, once for
all edits of a source that agree on these. From there on every inversion is a source like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fpe_core.blending import given_masks
from fpe_core.checkpoint.autoencoder import latent_shape
from fpe_core.checkpoint.load import Checkpoint
from fpe_core.edit_rows import AskedEdit
from fpe_core.editors.method import EditInputs
from fpe_core.editors.region_prompts import (
    RegionPrompts,
    beyond_half,
    half_window,
    inversion_key,
    shared_tokens,
)
from fpe_core.editors.words import Tokens
from fpe_core.inversion import Inversion, Sources, invert
from fpe_core.parameters import EditParameters
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.attention import level_grids
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.regions import RegionSplit, masks_by_positions
from fpe_core.unet.rows import UNetRows
from fpe_core.unet.text_encoders import token_ids

TokenWeights = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class EditRegions:
    """What the edits of a call have of masks and region prompts.

    Attributes:
        text: the call's prompts, with those of the regions joined behind all others.
        asked: the edits, with the number of their inversion as their source, and the name of their
            joined prompts in `text` as their prompt.
        sources: of each inversion, its source.
        prompts: of each inversion, the name of its joined prompts.
        of_inversions, of_edits: what splits their attention.
    """

    text: EncodedPrompts
    asked: tuple[AskedEdit, ...]
    sources: tuple[int, ...]
    prompts: tuple[str, ...]
    of_inversions: RegionSplit
    of_edits: RegionSplit

    def inverted(self, denoiser: Denoiser, schedule: DDIMSchedule, sources: Inversion) -> Inversion:
        """The inversions, each as a source; T rows each.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """
        chosen = sources.select(self.sources)
        z_0 = chosen.trajectory[:, 0]
        prompts = [self.text.of(each) for each in self.prompts]
        rows = UNetRows.unguided(prompts, z_0.device)
        trajectory = invert(
            denoiser, schedule, rows, z_0, schedule.steps, regions=self.of_inversions
        )
        return replace(chosen, trajectory=trajectory)


def region_prompts_of(
    parameters: EditParameters,
    sources: Sources,
    asked: Sequence[AskedEdit],
    inputs: Sequence[EditInputs],
) -> list[RegionPrompts]:
    """All four prompts of each edit; empty if the method splits no attention."""
    if parameters.rule.regions is None:
        return []
    return [
        parameters.method.region_prompts(
            sources.source_prompts[edit.source], edit.target_prompt, each
        )
        for edit, each in zip(asked, inputs, strict=True)
    ]


def texts_of(prompts: Sequence[RegionPrompts]) -> list[str]:
    """All texts that are to be encoded for these: theirs, and the empty one, which joins them."""
    return ["", *(text for each in prompts for text in each)] if prompts else []


def cut_off(tokenizer: Any, prompts: RegionPrompts) -> str:
    """What of an edit's region prompts has no place in their half of the window; "" if all has."""
    window = int(tokenizer.model_max_length)
    rests = (
        beyond_half(partial(token_ids, tokenizer), window, text) for text in dict.fromkeys(prompts)
    )
    return " / ".join(tokenizer.decode(rest).strip() for rest in rests if rest)


def split_regions(
    checkpoint: Checkpoint,
    sources: Inversion,
    asked: Sequence[AskedEdit],
    inputs: Sequence[EditInputs],
    *,
    parameters: EditParameters,
    text: EncodedPrompts,
) -> EditRegions:
    """Which inversions the edits need, and what splits the attention of both.

    Args:
        parameters: with a rule that has regions.
        text: all prompts of the call, `texts_of` the edits included.

    Raises:
        ParameterError: a mask that is not bool, or not of the edit's size.
    """
    rule = parameters.rule.regions
    assert rule is not None
    given_masks(inputs, sources.start)  # refuses masks before the first row is evaluated
    prompts = region_prompts_of(parameters, sources, asked, inputs)
    masks = [np.asarray(each.mask) for each in inputs]
    keys = [
        (edit.source, inversion_key(each, mask))
        for edit, each, mask in zip(asked, prompts, masks, strict=True)
    ]
    number = {key: inversion for inversion, key in enumerate(dict.fromkeys(keys))}
    first = [keys.index(key) for key in number]  # of each inversion, the first edit that needs it
    source_pairs = [(each.source_inside, each.source_outside) for each in prompts]
    target_pairs = [(each.target_inside, each.target_outside) for each in prompts]
    text = _with_joined(text, [*source_pairs, *target_pairs])
    tokens, window = partial(token_ids, checkpoint.tokenizer), text.embeddings.shape[1]
    weights = [_edit_weights(tokens, window, rule.cross_scale, each) for each in prompts]

    _, height, width = latent_shape(checkpoint, parameters)
    grids = level_grids(checkpoint.unet, height, width)

    def split(places: Sequence[int], of_tokens: Sequence[TokenWeights]) -> RegionSplit:
        stacked = np.stack(of_tokens) if of_tokens else np.zeros((0, 2, window))
        on_device = torch.from_numpy(stacked).to(text.embeddings)
        by_positions = masks_by_positions([masks[p] for p in places], grids, on_device.device)
        return RegionSplit(by_positions, on_device[:, 0], on_device[:, 1])

    return EditRegions(
        text,
        tuple(AskedEdit(number[k], _name(*p)) for k, p in zip(keys, target_pairs, strict=True)),
        tuple(asked[place].source for place in first),
        tuple(_name(*source_pairs[place]) for place in first),
        split(first, [_token_weights(window, rule.cross_scale)] * len(first)),
        split(range(len(asked)), weights),
    )


def _name(inside: str, outside: str) -> str:
    """What stands for two joined prompts among prompts; no prompt is that."""
    return f"\0inside {inside}\0outside {outside}"


def _with_joined(text: EncodedPrompts, pairs: Sequence[tuple[str, str]]) -> EncodedPrompts:
    """The prompts, and behind them joined ones: the empty prompt's embedding, with tokens 1 .. n of
    the first one's in their place, and of the second one's behind these."""
    pairs = list(dict.fromkeys(pairs))
    if not pairs:
        return text
    embeddings, half = text.embeddings, half_window(text.embeddings.shape[1])
    made = embeddings[[text.of("")] * len(pairs)]
    for side in (0, 1):
        own = embeddings[[text.of(pair[side]) for pair in pairs]]
        made[:, 1 + side * half : 1 + (1 + side) * half] = own[:, 1 : 1 + half]
    return text.and_named(made, [_name(*pair) for pair in pairs])


def _edit_weights(
    tokens: Tokens, window: int, scale: float, prompts: RegionPrompts
) -> TokenWeights:
    """Those of an edit, in which tokens that its source's prompts have too keep their weight."""
    weights, half = _token_weights(window, scale), half_window(window)
    inside = shared_tokens(tokens, window, prompts.source_inside, prompts.target_inside)
    outside = shared_tokens(tokens, window, prompts.source_outside, prompts.target_outside)
    weights[0, inside] = 1.0
    weights[1, [half + place for place in outside]] = 1.0
    return weights


def _token_weights(window: int, scale: float) -> TokenWeights:
    """(2, window): of each token the weight for positions inside and outside."""
    half, weights = half_window(window), np.zeros((2, window))
    weights[0, 1 : 1 + half] = weights[1, 1 + half : 1 + 2 * half] = scale
    return weights
