"""Where an arm's time goes and how many UNet rows it evaluates: seen from outside, by hooks.

Every arm is watched in the same way, whatever its code looks like. On CUDA the spans are measured
by events on the stream, so that watching makes no step wait for the device.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from fpe_core import Checkpoint

PHASES = ("encode", "invert", "edit", "decode")
"""Texts and pictures into the model; the UNet's two phases; pictures out of it."""


class PhaseClock:
    """Counts rows and measures the networks' time while `watching`.

    Attributes:
        rows: UNet rows so far: latents that entered the UNet, or began to.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows = 0
        self._device = device
        self._unet_phase = "edit"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def inverting(self) -> Iterator[None]:
        """What the UNet does inside is inversion; elsewhere it edits."""
        self._unet_phase = "invert"
        try:
            yield
        finally:
            self._unet_phase = "edit"

    @contextmanager
    def watching(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Hooks on the checkpoint's networks, taken off at the end."""
        with ExitStack() as hooks:
            for network, phase in (
                (checkpoint.text_encoder, "encode"),
                (checkpoint.vae.encoder, "encode"),
                (checkpoint.vae.decoder, "decode"),
                (checkpoint.unet, ""),
            ):
                for handle in self._watch(network, phase):
                    hooks.callback(handle.remove)
            yield

    def seconds(self) -> dict[str, float]:
        """Time inside the networks by phase. On CUDA only after the device was waited for."""
        total = Counter(dict.fromkeys(PHASES, 0.0))
        for phase, start, end in self._spans:
            total[phase] += (
                end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            )
        return dict(total)

    def _watch(self, network: Any, phase: str) -> Iterator[Any]:
        begun: list[Any] = []

        def enter(_module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not phase:
                self.rows += len(inputs[0] if inputs else options["sample"])
            begun.append(self._now())

        def leave(_module: Any, _inputs: Any, _output: Any) -> None:
            self._spans.append((phase or self._unet_phase, begun.pop(), self._now()))

        yield network.register_forward_pre_hook(enter, with_kwargs=True)
        # A forward pass that was left early took its time all the same.
        yield network.register_forward_hook(leave, always_call=True)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
