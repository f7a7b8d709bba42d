"""In the place of the authors' checkout: which maps are exchanged."""

from __future__ import annotations

from torch import Tensor


class SelfAttentionControlEdit:
    """Of maps (rows x heads, tokens, tokens), gives the last row of four the third's."""

    def __init__(self, prompts: list[str], num_steps: int, self_replace_steps: float) -> None:
        self.rows = 2 * len(prompts)
        self.replaced_steps = int(num_steps * self_replace_steps)
        self.num_att_layers = -1
        self.step = self.layer = 0

    def __call__(self, maps: Tensor, is_cross: bool, _place: str) -> Tensor:
        heads = maps.shape[0] // self.rows
        if not is_cross and self.step < self.replaced_steps and maps.shape[-1] <= 32**2:
            maps[3 * heads :] = maps[2 * heads : 3 * heads]
        self.layer += 1
        if self.layer == self.num_att_layers:
            self.layer, self.step = 0, self.step + 1
        return maps
