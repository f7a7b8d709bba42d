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
        rows: UNet rows so far, as its first cross-attention sees them: rows of one latent are one
            before that, and rows that are left early count.
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
            ):
                for handle in self._watch(network, phase):
                    hooks.callback(handle.remove)
            for handle in self._watch_unet(checkpoint.unet):
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

        def enter(*_: Any) -> None:
            begun.append(self._now())

        def leave(*_: Any) -> None:
            self._spans.append((phase, begun.pop(), self._now()))

        yield network.register_forward_pre_hook(enter)
        yield network.register_forward_hook(leave, always_call=True)

    def _watch_unet(self, unet: Any) -> Iterator[Any]:
        """From its first convolution to its last, or to the self-attention layer where a pass ends
        early; not the module itself, because our own pass goes over its parts."""
        begun: list[Any] = []

        def enter(*_: Any) -> None:
            begun.append(self._now())

        def leave(*_: Any) -> None:
            self._spans.append((self._unet_phase, begun.pop(), self._now()))

        def leave_early(_module: Any, _inputs: Any, output: Any) -> None:
            if output is None:  # it was left by an exception
                leave()

        def count(_module: Any, inputs: tuple[Any, ...]) -> None:
            self.rows += len(inputs[0])

        attentions = {n: m for n, m in unet.named_modules() if n.endswith((".attn1", ".attn2"))}
        first = next(module for name, module in attentions.items() if name.endswith(".attn2"))
        yield unet.conv_in.register_forward_pre_hook(enter)
        yield unet.conv_out.register_forward_hook(leave)
        yield first.register_forward_pre_hook(count)
        for name, module in attentions.items():
            if name.endswith(".attn1"):
                yield module.register_forward_hook(leave_early, always_call=True)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
