"""`editor: none`: a job that makes no edits. All stages run except the model, to measure the rest.

Every output is a copy of its fitted source, and cannot be mistaken for an edit: the images carry no
provenance of a model, ids, metadata columns and the dataset card differ from those of edits, and a
run folder cannot hold both copies and edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from fpe_core import Edit, EditInputs, EditParameters, EditResult, Fit, Inversion, SyntheticSources
from fpe_core.inversion import Sources
from pipeline.errors import SourceMissingError

NOT_EDITED = "not edited (editor: none): a copy of its source"
_NO_LATENT = torch.empty(0)


class NoEditor:
    """An `ImageEditor` without a model, which makes no edits: it returns copies of the sources."""

    unet_rows = 0
    """UNet rows evaluated so far, see `phase_clock.ClockedEditor`."""

    def take_seconds(self) -> dict[str, float]:
        """Seconds by phase: none, since there is no model."""
        return {}

    def watch_calls(self, on_call: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        """Never calls `on_call`: there are no UNet calls."""
        return lambda: None

    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
        *,
        fits: Sequence[Fit] | None = None,
    ) -> Inversion:
        """The images, which are fitted already, with empty trajectories."""
        if fits is None:
            fits = [Fit("crop", *image.size, 1.0, 1.0, 0.0, 0.0) for image in images]
        return Inversion(
            trajectory=torch.empty((len(images), 1, 0)),
            images=tuple(images),
            fits=tuple(fits),
            source_prompts=tuple(source_prompts or [""] * len(images)),
            parameters=parameters or EditParameters(),
            diverged=(False,) * len(images),
            truncated_prompts=("",) * len(images),
            unet_rows=0,
        )

    def synthesise(
        self,
        source_prompts: Sequence[str],  # noqa: ARG002 - the interface of an editor
        seeds: Sequence[int],  # noqa: ARG002
        parameters: EditParameters | None = None,  # noqa: ARG002
    ) -> SyntheticSources:
        """Raises SourceMissingError: only a model can make a synthetic source."""
        raise SourceMissingError(
            "a synthetic source is made by the model, and there is none (editor: none); leave such "
            "rows out, or name an editor"
        )

    def edit(
        self,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,  # noqa: ARG002 - changes nothing
        inputs: Sequence[Sequence[EditInputs]] | None = None,  # noqa: ARG002
    ) -> EditResult:
        """A copy of the source for each prompt; evaluates no UNet row."""
        assert isinstance(sources, Inversion)  # `synthesise` always raises
        return EditResult(
            edits=tuple(
                tuple(Edit(prompt, image, _NO_LATENT, True, "") for prompt in prompts)
                for image, prompts in zip(sources.images, target_prompts, strict=True)
            ),
            source_images=sources.images,
            unet_rows=0,
        )

    def through_autoencoder(
        self,
        images: Sequence[Image.Image],
        parameters: EditParameters,  # noqa: ARG002 - changes nothing
    ) -> tuple[Image.Image, ...]:
        """The images unchanged: there is no autoencoder."""
        return tuple(images)
