"""The interface of an editor that edits a block: a real one, or the one of `editor: none`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from fpe_core import EditInputs, EditParameters, EditResult, Fit, Inversion, SyntheticSources
from fpe_core.inversion import Sources


class ImageEditor(Protocol):
    """Four methods with the arguments, results and errors of `fpe_core.Editor`."""

    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
        *,
        fits: Sequence[Fit] | None = None,
    ) -> Inversion: ...

    def synthesise(
        self,
        source_prompts: Sequence[str],
        seeds: Sequence[int],
        parameters: EditParameters | None = None,
    ) -> SyntheticSources: ...

    def edit(
        self,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,
        inputs: Sequence[Sequence[EditInputs]] | None = None,
    ) -> EditResult: ...

    def through_autoencoder(
        self, images: Sequence[Image.Image], parameters: EditParameters
    ) -> tuple[Image.Image, ...]: ...
