"""Measures how an editor's time is divided among four phases: encode, invert, sample, decode.

    encode    prompts to embeddings and images to latents
    invert    the rest of inverting sources: the UNet, mostly
    sample    the rest of editing: the UNet with the sources' attention maps
    decode    latents to images

A call of the editor returns once its results are on the CPU, so a wall clock around the call is
right on any device. Within a call a CUDA device runs behind Python; there the encoders and the
decoder are timed by CUDA events, which are read when the call is over. Measuring adds no
synchronisation with the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from PIL import Image

from fpe_core import (
    Checkpoint,
    EditInputs,
    Editor,
    EditParameters,
    EditResult,
    Fit,
    Inversion,
    SyntheticSources,
)
from fpe_core.inversion import Sources
from pipeline.edit.model_sharing import ModelThread, ThisThread
from pipeline.edit.no_editor import NoEditor
from pipeline.supervision.supervisor import Oversight

MODEL_PHASES = ("encode", "invert", "sample", "decode")


class ClockedEditor:
    """An `ImageEditor` that calls an `Editor` on `thread` and sums up its seconds by phase. One
    thread at a time may use it."""

    def __init__(self, editor: Editor, thread: ModelThread | ThisThread | None = None) -> None:
        self._editor = editor
        self._thread = ThisThread() if thread is None else thread
        self._clock = _NetworkClock(editor)
        self._seconds: dict[str, float] = {}
        self._adding = threading.Lock()

    @property
    def checkpoint(self) -> Checkpoint:
        return self._editor.checkpoint

    @property
    def device(self) -> torch.device:
        """The device of the checkpoint."""
        return self.checkpoint.device

    @property
    def unet_rows(self) -> int:
        """UNet rows evaluated so far, including those of calls that raised."""
        return self._editor.unet_rows

    def watch_calls(self, on_call: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_call` after every call of the UNet, until the returned function is called."""
        hook = self._editor.unet.register_forward_hook(lambda *_: on_call())
        return lambda: hook.remove()

    def take_seconds(self) -> dict[str, float]:
        """Seconds by phase since the last call of this method."""
        with self._adding:
            taken, self._seconds = self._seconds, {}
        return {phase: taken.get(phase, 0.0) for phase in MODEL_PHASES}

    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
        *,
        fits: Sequence[Fit] | None = None,
    ) -> Inversion:
        with self._timed("invert"):
            return self._thread.run(
                lambda: self._editor.invert(images, source_prompts, parameters, fits=fits)
            )

    def synthesise(
        self,
        source_prompts: Sequence[str],
        seeds: Sequence[int],
        parameters: EditParameters | None = None,
    ) -> SyntheticSources:
        return self._editor.synthesise(source_prompts, seeds, parameters)

    def edit(
        self,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,
        inputs: Sequence[Sequence[EditInputs]] | None = None,
    ) -> EditResult:
        with self._timed("sample"):
            return self._thread.run(
                lambda: self._editor.edit(sources, target_prompts, parameters, inputs)
            )

    def through_autoencoder(
        self, images: Sequence[Image.Image], parameters: EditParameters
    ) -> tuple[Image.Image, ...]:
        with self._timed("decode"):
            return self._thread.run(lambda: self._editor.through_autoencoder(images, parameters))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Adds the encoders' and the decoder's seconds to their phases and the rest to `phase`."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = self._clock.take()
            rest = max(0.0, time.monotonic() - began - sum(spent.values()))
            with self._adding:
                for name, seconds in (*spent.items(), (phase, rest)):
                    self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class ModelTime:
    """Counts the UNet rows and the seconds by phase of one block while it has the model.

    While it is open, every call of the UNet is reported as progress. `close` it when the model is
    released, so that the work of the next block is not counted.
    """

    def __init__(self, editor: ClockedEditor | NoEditor, oversight: Oversight) -> None:
        self._editor, self._oversight = editor, oversight
        self._rows_before = editor.unet_rows
        self._is_open = True
        self.unet_rows = 0
        self.seconds: Mapping[str, float] = {}
        editor.take_seconds()  # discards those of an earlier block that raised
        self._unwatch = editor.watch_calls(self._report)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops counting. Does nothing the second time."""
        if self._is_open:
            self._is_open = False
            self._unwatch()
            self.unet_rows = self._editor.unet_rows - self._rows_before
            self.seconds = self._editor.take_seconds()

    def _report(self) -> None:
        self._oversight.alive()
        self._oversight.made(self._editor.unet_rows - self._rows_before)


class _NetworkClock:
    """Measures the seconds inside an editor's encoders and decoder, with hooks on these modules."""

    def __init__(self, editor: Editor) -> None:
        self._device = editor.checkpoint.device
        self._spans: list[tuple[str, Any, Any]] = []
        for network, phase in (
            *((encoder, "encode") for encoder in editor.checkpoint.text_encoders.encoders),
            (editor.autoencoder.encoder, "encode"),
            (editor.autoencoder.decoder, "decode"),
        ):
            self._watch(network, phase)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call of this method."""
        spans, self._spans = self._spans, []
        taken = dict.fromkeys(MODEL_PHASES, 0.0)
        for phase, start, end in spans:
            if isinstance(start, float):
                taken[phase] += end - start
            elif end.query():  # else the call raised, and the device is not done with it
                taken[phase] += start.elapsed_time(end) / 1000
        return taken

    def _watch(self, network: Any, phase: str) -> None:
        begun: list[Any] = []

        def enter(*_: Any) -> None:
            begun.append(self._now())

        def leave(*_: Any) -> None:
            self._spans.append((phase, begun.pop(), self._now()))

        network.register_forward_pre_hook(enter)
        network.register_forward_hook(leave, always_call=True)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
