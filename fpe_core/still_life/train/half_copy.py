"""Training in bfloat16 while the weights stay in float32: faster on CPUs that have it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)


class HalfCopy(Generic[M]):
    """A bfloat16 copy of a network computes gradients; the float32 original takes the steps.

        half = HalfCopy(network)
        loss(half.fresh()(inputs)).backward()
        half.hand_over_gradients()
        optimizer.step()

    `prepare` changes the copy once, before anything is computed with it. Give it explicit attention
    maps: on CPUs the fused kernel's backward pass is several times slower in bfloat16.
    """

    def __init__(self, original: M, prepare: Callable[[M], object]) -> None:
        self._original = original
        self._copy: M = copy.deepcopy(original).to(torch.bfloat16)
        prepare(self._copy)

    def fresh(self) -> M:
        """The copy, with the original's weights as they are now."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._copy.parameters()), list(self._original.parameters()))
        return self._copy

    def hand_over_gradients(self) -> None:
        """Moves the gradients to the original's weights."""
        for weight, copied in zip(
            self._original.parameters(), self._copy.parameters(), strict=True
        ):
            weight.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None
