"""Loads a network from its folder, and refuses it unless its weights are all there.

The one way in which networks of checkpoints, scorers and structure models are loaded. transformers
fills in weights that a file lacks with random numbers, and diffusers leaves them without a value;
both only log it. Here each is a CheckpointError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fpe_core.checkpoint.weights import Differences, headers_of, refuse
from fpe_core.errors import CheckpointError

_PREFIX = "text_model."
ANYTHING = (r"",)
"""`unread` for networks whose files usually hold more, a classifier for one."""


def load_network(
    model_class: Any,
    folder: Path,
    what: str,
    dtype: torch.dtype,
    unread: Sequence[str] = (),
    **options: Any,
) -> Any:
    """`model_class.from_pretrained` of a folder on this machine.

    Args:
        model_class: of diffusers or transformers.
        what: the subject of error messages, "checkpoint /models/x: its UNet" for one.
        unread: patterns of weights that the folder may hold beyond those of the class.
        options: more arguments of `from_pretrained`.

    Raises:
        CheckpointError: it cannot be loaded, or its weights are not those of the class.
    """
    of_diffusers = model_class.__module__.startswith("diffusers")
    options |= {"torch_dtype" if of_diffusers else "dtype": dtype}
    if not of_diffusers:
        options |= _renaming(model_class, folder)
    try:
        network, report = model_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # broken JSON, truncated safetensors, other shapes, ...
        raise CheckpointError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    refuse(what, model_class.__name__, _differences(report, unread))
    refuse_empty(what, network)
    return network


def load_tensors(
    model_class: Any, folder: Path, tensors: Mapping[str, Any], what: str, dtype: torch.dtype
) -> Any:
    """A text encoder of transformers with the config in a folder, and weights read elsewhere.

    Args:
        tensors: by name, without the prefix `text_model.` that some versions have.
        what: as for `load_network`.

    Raises:
        CheckpointError: its weights are not those of the class.
    """
    config = model_class.config_class.from_pretrained(folder)
    with torch.device("meta"):
        has_prefix = all(name.startswith(_PREFIX) for name in model_class(config).state_dict())
    prefix = _PREFIX if has_prefix else ""
    try:
        network, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict={prefix + name: each for name, each in tensors.items()},
            output_loading_info=True,
            dtype=dtype,
        )
    except Exception as error:  # other shapes, for one
        raise CheckpointError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    refuse(what, model_class.__name__, _differences(report, (r"\.position_ids$",)))
    refuse_empty(what, network)
    return network


def refuse_empty(what: str, network: Any) -> None:
    """Raises CheckpointError if weights of a loaded network have no value."""
    empty = [name for name, each in network.named_parameters() if each.is_meta]
    refuse(what, type(network).__name__, Differences(missing=empty))


def _differences(report: Mapping[str, Any], unread: Sequence[str]) -> Differences:
    unexpected = [
        name
        for name in sorted(report["unexpected_keys"])
        if not any(re.search(pattern, name) for pattern in unread)
    ]
    reshaped = [
        f"{each[0]} is {list(each[1])}, not {list(each[2])}" for each in report["mismatched_keys"]
    ]
    return Differences(sorted(report["missing_keys"]), unexpected, reshaped)


def _renaming(model_class: Any, folder: Path) -> dict[str, Any]:
    """Names for transformers before 5.6, whose CLIPTextModel has a prefix that the files of later
    ones lack. The later ones read both."""
    if model_class.__name__ != "CLIPTextModel":
        return {}
    with torch.device("meta"):
        names = model_class(model_class.config_class.from_pretrained(folder)).state_dict()
    held = headers_of(folder.glob("*.safetensors"))
    if not all(name.startswith(_PREFIX) for name in names):
        return {}
    if not held or any(name.startswith(_PREFIX) for name in held):
        return {}
    roots = ("embeddings", "encoder", "final_layer_norm")
    return {"key_mapping": {f"^{root}": _PREFIX + root for root in roots}}


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from a folder.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    import transformers

    # The same one in every version: what transformers 4 calls CLIPTokenizer is another
    # implementation, which needs files that transformers 5 does not write.
    name = "CLIPTokenizerFast" if transformers.__version__.startswith("4.") else "CLIPTokenizer"
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # broken JSON, a vocabulary of another kind, ...
        raise CheckpointError(
            f"tokenizer {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def limit_window(tokenizer: Any, positions: int) -> Any:
    """The tokenizer, with a window (`model_max_length`) of at most the text encoder's `positions`.

    A folder need not state a window; transformers then has 10^30.
    """
    tokenizer.model_max_length = int(min(tokenizer.model_max_length, positions))
    return tokenizer
