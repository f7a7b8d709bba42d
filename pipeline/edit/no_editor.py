"""`editor: none`: the whole way of an edit but the model, for measuring the engine itself.

Nothing is edited. Every "edit" of a real source is a copy of its fitted picture, and nothing says
otherwise: the pictures carry no word of a model, ids, metadata columns and the dataset card are
others than those of edits, and a folder with the one refuses the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from fpe_core import Edit, EditParameters, EditResult, Fit, Inversion, SyntheticSources
from fpe_core.inversion import Sources
from pipeline.errors import SourceMissingError

NOT_EDITED = "not edited (editor: none): a copy of its source"
_NO_LATENT = torch.empty(0)


class NoEditor:
    """An `ImageEditor` without a model: every edit is the picture of its source."""

    unet_rows = 0
    """Evaluated so far; as of `phase_clock.ClockedEditor`."""

    def take_seconds(self) -> dict[str, float]:
        """By phase: none."""
        return {}

    def watch_calls(self, tell: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        """There are none."""
        return lambda: None

    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
    ) -> Inversion:
        """The pictures, already fitted, with trajectories of no size."""
        fits = (Fit("crop", *image.size, 1.0, 1.0, 0.0, 0.0) for image in images)
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
        """Raises SourceMissingError: there is no picture before a model made it."""
        raise SourceMissingError(
            "a synthetic source is made by the model, and there is none (editor: none); leave such "
            "rows out, or name an editor"
        )

    def edit(
        self,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,  # noqa: ARG002 - of no consequence
    ) -> EditResult:
        """A copy of the source for each prompt; no UNet row."""
        assert isinstance(sources, Inversion)  # `synthesise` gives none
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
        parameters: EditParameters,  # noqa: ARG002 - of no consequence
    ) -> tuple[Image.Image, ...]:
        """The images themselves: there is no autoencoder to lose anything."""
        return tuple(images)
