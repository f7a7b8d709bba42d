"""Which edits a checkpoint's family cannot make."""

from __future__ import annotations

from fpe_core.editors.method import require_method
from fpe_core.errors import ParameterError
from fpe_core.parameters import EditParameters


def require_family(
    parameters: EditParameters,
    *,
    sees_source: bool,
    is_told_sizes: bool,
    long_prompts: str = "truncate",
) -> None:
    """Raises ParameterError if these edits are for UNets of another kind.

    Args:
        sees_source: whether the UNet takes the source's latent in channels of its own.
        is_told_sizes: whether it is Stable Diffusion XL's, which is told the pooled prompt and the
            sizes of pictures.
        long_prompts: see `load_checkpoint`.
    """
    require_method(parameters.method, sees_source)
    if long_prompts == "windows":
        _require_one_window(parameters)
    if not is_told_sizes:
        return
    rule = parameters.rule
    if rule.regions is not None or rule.cross_guidance is not None:
        raise ParameterError(
            f"{parameters.method.name} does not edit with Stable Diffusion XL: its prompts are "
            "joined or moved as embeddings of tokens, and XL has a pooled embedding besides. Use "
            "fpe, p2p or pnp, or a checkpoint of Stable Diffusion 1.x or 2.x"
        )
    if parameters.inversion == "null_text":
        raise ParameterError(
            "inversion null_text is not for Stable Diffusion XL: it optimises the embeddings of "
            "tokens, and XL has a pooled embedding besides. Use inversion direct, negative_prompt "
            "or edit_friendly, or a checkpoint of Stable Diffusion 1.x or 2.x"
        )


def _require_one_window(parameters: EditParameters) -> None:
    rule, what = parameters.rule, ""
    if rule.regions is not None or rule.cross_guidance is not None:
        what = parameters.method.name
    elif any(each.mixes_words for each in rule.injections):
        what = f"{parameters.method.name}, which aligns the words of source and target"
    elif parameters.inversion == "null_text":
        what = "inversion null_text"
    if what:
        raise ParameterError(
            f"long prompts in windows are not for {what}: it works on the tokens of one window. "
            "Set model.long_prompts to truncate, or use another editor"
        )
