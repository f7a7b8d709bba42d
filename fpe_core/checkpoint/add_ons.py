"""What a checkpoint is loaded with besides its own files: LoRAs, embeddings, an autoencoder.

`Lora`, `Embedding` and a `vae` are what `load_checkpoint` and the keys of `model:` in a job take.
`fpe_core.checkpoint.add_on_files` finds their files on this machine. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpe_core.errors import CheckpointError


@dataclass(frozen=True)
class Lora:
    """A LoRA that is added to a checkpoint's weights when it is loaded.

    Attributes:
        file: a .safetensors file, or a hub id: owner/name, or owner/name/file.safetensors.
        weight: what its changes are multiplied by.
        text_encoder_weight: the same for those of the text encoders; None: `weight`.
    """

    file: str | Path
    weight: float = 1.0
    text_encoder_weight: float | None = None

    def weight_of(self, network: str) -> float:
        """The weight of its changes of a network: "unet", "text_encoder" or "text_encoder_2"."""
        if network == "unet" or self.text_encoder_weight is None:
            return self.weight
        return self.text_encoder_weight


@dataclass(frozen=True)
class Embedding:
    """An embedding of textual inversion: words that prompts may use beside the tokenizer's own.

    Attributes:
        file: a .safetensors file, or a hub id: owner/name, or owner/name/file.safetensors.
        token: how prompts name it; None: its name in the file, else the file's name.
    """

    file: str | Path
    token: str | None = None


@dataclass(frozen=True)
class AddOns:
    """All that a checkpoint is loaded with. False if that is nothing.

    Attributes:
        vae: an AutoencoderKL's folder, file or hub id; None: the checkpoint's own.
    """

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    vae: str | Path | None = None

    @classmethod
    def of(
        cls,
        loras: Sequence[Lora | str | Path] = (),
        embeddings: Sequence[Embedding | str | Path] = (),
        vae: str | Path | None = None,
    ) -> AddOns:
        """From what `load_checkpoint` takes: a file alone is one with weight 1.

        Raises:
            CheckpointError: a weight that is not finite, an empty token.
        """
        found = cls(
            tuple(each if isinstance(each, Lora) else Lora(each) for each in loras),
            tuple(each if isinstance(each, Embedding) else Embedding(each) for each in embeddings),
            vae,
        )
        for lora in found.loras:
            for weight in (lora.weight, lora.weight_of("text_encoder")):
                if not math.isfinite(weight):
                    raise CheckpointError(f"LoRA {lora.file}: its weight {weight} is not finite")
        for each in found.embeddings:
            if each.token is not None:
                refuse_token(each.token, f"embedding {each.file}")
        return found

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings or self.vae is not None)

    def described(self) -> str:
        """In Markdown: "LoRA `ink.safetensors` (weight 0.8), autoencoder `vae`"; "" if none."""
        said = [f"LoRA `{each.file}` ({_weights(each)})" for each in self.loras]
        said += [
            f"embedding `{each.file}`" + ("" if each.token is None else f" as `{each.token}`")
            for each in self.embeddings
        ]
        said += [] if self.vae is None else [f"autoencoder `{self.vae}`"]
        return ", ".join(said)


def _weights(lora: Lora) -> str:
    if lora.text_encoder_weight is None:
        return f"weight {lora.weight:g}"
    return f"weight {lora.weight:g}, in text encoders {lora.text_encoder_weight:g}"


def refuse_token(token: str, what: str) -> None:
    """Raises CheckpointError for a token that no prompt can contain as one word."""
    if not token or token.split() != [token]:
        raise CheckpointError(
            f"{what}: its token {token!r} is not a word; give it another one (token)"
        )
