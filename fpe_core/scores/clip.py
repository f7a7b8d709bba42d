"""Scores of images and edits from the embeddings of a CLIP model.

    scorer = load_scorer("openai/clip-vit-large-patch14")
    before, after = scorer.embed_images(sources), scorer.embed_images(edits)
    prompts, targets = scorer.embed_texts(source_prompts), scorer.embed_texts(target_prompts)
    text_score(after, targets)
    directional_similarity(before, after, prompts, targets)

`load_scorer` accepts three kinds of source:

    builtin:still-life      the small CLIP in this package; it only knows still-life scenes
    a folder                with a CLIPModel, its tokenizer and preprocessor_config.json
    owner/name              a repository on the Hugging Face hub, or its local cache

Weights are read from safetensors only. Scores of two different scorers cannot be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE
from fpe_core.checkpoint.pretrained import clip_tokenizer, load_network
from fpe_core.device import choose_device
from fpe_core.errors import CheckpointError, ParameterError, PromptError
from fpe_core.scores.check import POSITION_IDS, check_clip, image_settings
from fpe_core.scores.files import locate_scorer

ROWS_AT_ONCE = 64
"""Images, or texts, that go through the network together."""

_LEAST_CHANGE = 1e-4
"""Embeddings closer than this are the same: rounding alone moves them by some 1e-6."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipScorer:
    """A loaded CLIP, ready to embed.

    Attributes:
        name: the source it was loaded from, as given.
        model, tokenizer, image_processor: transformers' own objects; the model in eval mode and
            float32.
        device: where the model runs. Embeddings are returned on the CPU.
    """

    name: str
    model: Any
    tokenizer: Any
    image_processor: Any
    device: torch.device

    @property
    def width(self) -> int:
        """Length D of an embedding."""
        return int(self.model.config.projection_dim)

    @property
    def window(self) -> int:
        """How many tokens of a text the encoder sees, including the start and end token."""
        positions = self.model.config.text_config.max_position_embeddings
        return int(min(self.tokenizer.model_max_length, positions))

    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        """(N, D), float32, unit norm, of N images of any size and mode."""
        return self._embed(self._embed_image_rows, images)

    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        """(M, D), float32, unit norm. A text is cut off at the window, with a warning in the log.

        Raises:
            PromptError: an item that is not text.
        """
        return self._embed(self._embed_text_rows, texts)

    def _embed(self, embed_rows: Callable[[list[Any]], Tensor], items: Iterable[Any]) -> Tensor:
        rows, waiting = [torch.zeros(0, self.width)], iter(items)
        with torch.inference_mode():
            while chunk := list(islice(waiting, ROWS_AT_ONCE)):
                rows.append(embed_rows(chunk).float().cpu())
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)

    def _embed_image_rows(self, images: Sequence[Image.Image]) -> Tensor:
        in_rgb = [image.convert("RGB") for image in images]
        pixels = self.image_processor(images=in_rgb, return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
        embedded: Tensor = self.model.visual_projection(pooled)
        return embedded

    def _embed_text_rows(self, texts: Sequence[str]) -> Tensor:
        for text in texts:
            if not isinstance(text, str):
                raise PromptError(f"a text to score must be text, got {text!r}")
            self._warn_if_cut_off(text)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.window, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        embedded: Tensor = self.model.text_projection(pooled)
        return embedded

    def _warn_if_cut_off(self, text: str) -> None:
        try:
            count = len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
        except (UnicodeError, TypeError, ValueError) as error:
            raise PromptError(f"text {text!r} cannot be tokenized: {error}") from error
        if count > self.window:
            _log.warning(
                "text %r has %d tokens; its score uses the first %d", text, count, self.window
            )


def text_score(image_embeddings: Tensor, text_embeddings: Tensor) -> list[float]:
    """How well each image fits its text: the cosine of their embeddings, -1..1.

    Both are (N, D) from one scorer, row by row. CLIPScore (Hessel et al. 2021, arXiv 2104.08718,
    section 3) is 2.5 * max(cosine, 0); the plain cosine gives the same order and keeps the sign.
    """
    return _cosines("text_score", image_embeddings, text_embeddings)


def image_similarity(first_embeddings: Tensor, second_embeddings: Tensor) -> list[float]:
    """How alike two images are: the cosine of their embeddings, -1..1. Both (N, D)."""
    return _cosines("image_similarity", first_embeddings, second_embeddings)


def directional_similarity(
    source_images: Tensor, edited_images: Tensor, source_texts: Tensor, target_texts: Tensor
) -> list[float | None]:
    """Whether each image changed as its text did: -1..1, the cosine of the two differences.

        (edited image - source image) . (target text - source text), both brought to unit length

    All are (N, D) embeddings from one scorer, row by row. One minus this is the directional loss of
    StyleGAN-NADA (Gal et al. 2021, arXiv 2108.00946, equation 2); InstructPix2Pix (arXiv
    2211.09800) filters and measures edits with it. It says nothing about how much has changed.

    None if either difference vanishes (a length below 1e-4): an unchanged image, or two equal
    texts, has no direction. That is not 0, which means "at right angles".
    """
    _check_rows("directional_similarity", source_images, edited_images, source_texts, target_texts)
    seen = edited_images.double() - source_images.double()
    asked = target_texts.double() - source_texts.double()
    lengths = torch.minimum(seen.norm(dim=-1), asked.norm(dim=-1))
    cosines = torch.nn.functional.cosine_similarity(seen, asked, dim=-1).clamp(-1.0, 1.0)
    return [
        cosine if length >= _LEAST_CHANGE else None
        for cosine, length in zip(cosines.tolist(), lengths.tolist(), strict=True)
    ]


def _cosines(score: str, first: Tensor, second: Tensor) -> list[float]:
    _check_rows(score, first, second)
    cosines = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=-1)
    values: list[float] = cosines.clamp(-1.0, 1.0).tolist()
    return values


def _check_rows(score: str, *embeddings: Tensor) -> None:
    shapes = [tuple(each.shape) for each in embeddings]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ParameterError(
            f"{score} compares row by row, but got {' and '.join(map(str, shapes))}; give every "
            "argument the same shape (N, D), from one scorer"
        )


# --- loading --------------------------------------------------------------------------------------


def load_scorer(
    source: str | Path = BUILTIN_STILL_LIFE,
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> ClipScorer:
    """Loads a CLIP to score with.

    Args:
        source: see the module.
        device: "auto" takes CUDA, then MPS, then the CPU.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: the source is not a CLIP, or cannot be read.
    """
    torch_device = choose_device(device)
    folder = locate_scorer(source, revision, "a CLIPModel")
    check_clip(folder)
    model, tokenizer, image_processor = _load_folder(folder)
    model.requires_grad_(False).eval().to(torch_device)
    return ClipScorer(str(source), model, tokenizer, image_processor, torch_device)


def _load_folder(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import CLIPModel

    model = load_network(
        CLIPModel,
        folder,
        f"scorer {folder}",
        torch.float32,
        POSITION_IDS,
        use_safetensors=True,
    )
    try:
        image_processor = _image_processor_class().from_dict(dict(image_settings(folder)))
    except Exception as error:  # settings that the class refuses
        raise CheckpointError(
            f"scorer {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return model, clip_tokenizer(folder), image_processor


def _image_processor_class() -> Any:
    """The one that works with Pillow, so that scores are the same with and without torchvision."""
    try:
        from transformers import CLIPImageProcessorPil
    except ImportError:  # transformers 4
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor
    return CLIPImageProcessorPil
