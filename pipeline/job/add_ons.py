"""What `model:` of a job file may add to a checkpoint: LoRAs, embeddings, an autoencoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from fpe_core import Embedding, Lora
from pipeline.job.credentials import checked_model
from pipeline.job.section import Section


class LoraSection(Section):
    """A LoRA, and how strong it is."""

    file: str = Field(
        min_length=1,
        description="a .safetensors file (path, or URL of an object store) or a hub id: owner/name "
        "or owner/name/file.safetensors",
    )
    weight: float = Field(default=1.0, description="what its changes are multiplied by")
    text_encoder_weight: float | None = Field(
        default=None, description="the same for those of the text encoders; null: weight"
    )

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        return checked_model(file)

    def to_lora(self) -> Lora:
        return Lora(self.file, self.weight, self.text_encoder_weight)


class EmbeddingSection(Section):
    """An embedding of textual inversion, and how prompts name it."""

    file: str = Field(
        min_length=1,
        description="a .safetensors file (path, or URL of an object store) or a hub id: owner/name "
        "or owner/name/file.safetensors",
    )
    token: str | None = Field(
        default=None,
        min_length=1,
        description="the word in prompts; null: its name in the file, else the file's name",
    )

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        return checked_model(file)

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: str | None) -> str | None:
        if token is not None and token.split() != [token]:
            raise ValueError(f"{token!r} is not one word, and prompts name an embedding by one")
        return token

    def to_embedding(self) -> Embedding:
        return Embedding(self.file, self.token)


def _sections(value: object) -> object:
    """A list as YAML has it to the tuple that a frozen model needs; a text alone is a file."""
    if not isinstance(value, list):
        return value
    return tuple({"file": each} if isinstance(each, str) else each for each in value)


Loras = Annotated[tuple[LoraSection, ...], BeforeValidator(_sections)]
Embeddings = Annotated[tuple[EmbeddingSection, ...], BeforeValidator(_sections)]
