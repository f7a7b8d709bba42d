"""How a checkpoint's text encoders are used, where there is a choice. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from fpe_core.editors.method import require_choice
from fpe_core.errors import ParameterError
from fpe_core.layer_rules import require_integer

LONG_PROMPTS = ("truncate", "windows")
"""What becomes of a prompt that is longer than the encoders' window: it is cut there, or it is
encoded in up to four windows."""


@dataclass(frozen=True)
class TextSettings:
    """
    Attributes:
        clip_skip: how many more of the text encoders' last layers are left out, >= 0, as in
            diffusers; 1 is what other programs call 2. It holds for negative prompts too.
        long_prompts: one of `LONG_PROMPTS`.
    """

    clip_skip: int = 0
    long_prompts: str = "truncate"

    def __post_init__(self) -> None:
        require_integer("clip_skip", self.clip_skip, minimum=0)
        require_choice("long_prompts", self.long_prompts, LONG_PROMPTS)

    def of_fingerprint(self, fingerprint: str) -> str:
        """The fingerprint of a checkpoint with these; of one without, the same."""
        if self == AS_IT_IS:
            return fingerprint
        content = f"{fingerprint} clip_skip {self.clip_skip} long_prompts {self.long_prompts}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def require_layers(self, numbers: Iterable[int]) -> None:
        """Raises ParameterError if a text encoder has too few layers; `numbers`: of each."""
        for layers in numbers:
            if self.clip_skip >= layers:
                raise ParameterError(
                    f"clip_skip must be at most {layers - 1} with a text encoder of {layers} "
                    f"layers, got {self.clip_skip}"
                )


AS_IT_IS = TextSettings()
"""What a checkpoint has if nothing is chosen."""
