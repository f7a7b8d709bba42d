"""The job file as one pydantic model, with a description of every key; and its smaller sections.

Nothing is converted silently: a string is not a number, and an unknown key is an error. If null is
allowed, it means "automatic". In the resolved job, which is stored as config.yaml, these keys have
the values that were chosen.
"""

from __future__ import annotations

import itertools
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fpe_core import EditMethod, EditParameters
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.text_settings import TextSettings
from pipeline.job.add_ons import Embeddings, Loras
from pipeline.job.annotations import AnnotationsSection
from pipeline.job.credentials import (
    checked_model,
    refuse_credentials,
    refuse_credentials_in_url,
)
from pipeline.job.edit import EditSection
from pipeline.job.editor import (
    FPE,
    NO_EDITOR,
    Editor,
    checked_editor,
    editor_of,
    method_of,
    name_of,
)
from pipeline.job.ending import FailuresSection, LeaseSection, StopSection
from pipeline.job.judge import JudgeSection
from pipeline.job.prompts import PromptsSection
from pipeline.job.quotas import QuotaSection
from pipeline.job.resources import ResourcesSection
from pipeline.job.section import Section, tuple_from_list
from pipeline.logs import LogSettings
from pipeline.redact import redact_url
from pipeline.storage.allowed_sources import check_rule
from pipeline.storage.model_store import ModelStore


class LogsSection(Section):
    """How a run reports what it does. See pipeline/logs.py."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="lines for people, or one JSON object per line (run, edit_id, stage, ...); of "
        "the driver, and of workers in Ray's session folder",
    )

    bars: Literal["ray", "edits"] = Field(
        default="ray",
        description="what a terminal shows: Ray Data's own bars, one per stage, or one bar of "
        "edits; without a terminal, and above Ray's bars, a line is logged every half minute",
    )

    level: Literal["info", "debug"] = Field(
        default="info",
        description="info: edits that failed or were rejected, and events of the run; debug: also "
        "every edit and every commit",
    )

    @property
    def shows_ray_bars(self) -> bool:
        """Whether Ray Data draws its bars; only if stdout and stderr are both a terminal."""
        is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        return self.bars == "ray" and self.format == "text" and is_terminal

    def to_settings(self, run: str = "") -> LogSettings:
        return LogSettings(self.format, run)


class ModelSection(Section):
    """Which checkpoint edits, and where it runs."""

    checkpoint: str = Field(
        default="builtin:still-life",
        min_length=1,
        description="builtin:still-life, a diffusers folder, a .safetensors file (paths, or URLs "
        "of an object store) or a hub id of a Stable Diffusion checkpoint",
    )
    device: str = Field(
        default="auto",
        min_length=1,
        description="auto, cpu, cuda, cuda:1, mps; auto: the best device of the machine",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] = Field(
        default="auto",
        description="type of the weights; auto is half precision on a GPU, else float32",
    )
    allow_pickle: bool = Field(
        default=False,
        description="also load .bin and .ckpt weights, which can run code; false: safetensors only",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub checkpoint; null: its main branch"
    )
    config: str | None = Field(
        default=None,
        description="folder or hub id with the tokenizer of a single-file checkpoint, and with its "
        "configs where they are not its family's usual ones; null: Stable Diffusion 1.5's",
    )
    loras: Loras = Field(
        default=(),
        description="LoRAs that are added to the weights when the model is loaded: files, or "
        "{file: ..., weight: 0.8}",
    )
    embeddings: Embeddings = Field(
        default=(),
        description="embeddings of textual inversion that prompts may use: files, or "
        "{file: ..., token: <style>}",
    )
    vae: str | None = Field(
        default=None,
        min_length=1,
        description="autoencoder to use instead of the checkpoint's: an AutoencoderKL's folder, a "
        ".safetensors file (paths, or URLs of an object store) or a hub id; null: its own",
    )
    clip_skip: int = Field(
        default=0,
        ge=0,
        description="how many more of the text encoder's last layers are left out, as in diffusers "
        "(1 is what other programs call 2), for negative prompts too",
    )
    long_prompts: Literal["truncate", "windows"] = Field(
        default="truncate",
        description="truncate: a prompt is cut at the text encoder's window (77 tokens); windows: "
        "it is encoded in up to four",
    )
    cache: str | None = Field(
        default=None,
        description="absolute folder on every node for copies of models that lie in an object "
        "store; null: ~/.cache/fpe/models",
    )

    @field_validator("checkpoint", "config", "vae")
    @classmethod
    def _check_source(cls, source: str | None) -> str | None:
        return None if source is None else checked_model(source)

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, cache: str | None) -> str | None:
        if cache is not None and not cache.startswith("/"):
            raise ValueError("is not an absolute path, and has to mean the same on every node")
        return cache

    @property
    def text_settings(self) -> TextSettings:
        """How its text encoders are used."""
        return TextSettings(self.clip_skip, self.long_prompts)

    @property
    def add_ons(self) -> AddOns:
        """What the checkpoint is loaded with, with files as the job names them."""
        return AddOns(
            tuple(each.to_lora() for each in self.loras),
            tuple(each.to_embedding() for each in self.embeddings),
            self.vae,
        )

    def described(self) -> str:
        """In Markdown, what the checkpoint is loaded with and how it is used, where it is not as
        usual; "" if it is."""
        said = [self.add_ons.described()]
        if self.clip_skip:
            said.append(f"`clip_skip: {self.clip_skip}`")
        if self.long_prompts != "truncate":
            said.append(f"`long_prompts: {self.long_prompts}`")
        return ", ".join(filter(None, said))


class ImagesSection(Section):
    """How images are read and written."""

    fit: Literal["crop", "pad"] = Field(
        default="crop",
        description="crop: fill the size and cut off the rest; pad: keep the whole image, with a "
        "border",
    )
    format: Literal["png", "jpeg", "webp"] = Field(
        default="png", description="format of the outputs"
    )
    quality: int = Field(
        default=95, ge=1, le=100, description="quality of jpeg and webp; webp at 100 is lossless"
    )
    max_pixels: int = Field(
        default=100_000_000, ge=1, description="larger images fail as image_too_large, undecoded"
    )
    max_bytes: int = Field(
        default=256_000_000, ge=1, description="larger files fail as image_too_large, unread"
    )
    allowed_sources: Annotated[tuple[str, ...], BeforeValidator(tuple_from_list)] | None = Field(
        default=None,
        description="absolute folders and URLs from which, or from below which, images may be "
        "read; others fail as source_forbidden; null: anywhere, []: only from the manifest itself",
    )
    keep_source: bool = Field(default=True, description="write the fitted source next to its edits")

    @field_validator("allowed_sources")
    @classmethod
    def _check_allowed_sources(cls, rules: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for rule in rules or ():
            check_rule(rule)
            refuse_credentials_in_url(rule)
        return rules


class Job(Section):
    """One job: a manifest, the edits to make of it, and the run folder to write them to."""

    manifest: str | list[str] = Field(
        description="fsspec URL, or a list of them, of a Parquet file, folder or glob"
    )
    output: str = Field(min_length=1, description="fsspec URL of the run folder")
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="fsspec options for both (endpoint_url, anon, ...); credentials are refused",
    )
    editor: str | dict[str, Any] = Field(
        default="fpe",
        description="editing method: fpe, ddim, sdedit, p2p, pnp, masactrl, diffedit or blended, "
        "or a mapping of its name and its parameters (docs/editors.md); none: makes no edits and "
        "loads no model; every output is a copy of its fitted source, to measure everything else "
        "(fpe bench scale)",
    )
    model: ModelSection = Field(default_factory=ModelSection, description="the checkpoint")
    edit: EditSection = Field(default_factory=EditSection, description="how an edit is made")
    prompts: PromptsSection | None = Field(
        default=None,
        description="target prompts from a template; null: the manifest's target_prompt",
    )
    images: ImagesSection = Field(default_factory=ImagesSection, description="reading and writing")
    judge: JudgeSection | None = Field(
        default=None, description="how edits are scored and accepted; null: they are not judged"
    )
    quotas: QuotaSection | None = Field(
        default=None, description="how many accepted edits are enough; null: every edit is made"
    )
    annotations: AnnotationsSection | None = Field(
        default=None,
        description="boxes and masks of the sources, carried into the edits with a verdict on "
        "each; null: columns with boxes are carried unchanged",
    )
    resources: ResourcesSection = Field(
        default_factory=ResourcesSection, description="resources that the run may use"
    )
    failures: FailuresSection = Field(
        default_factory=FailuresSection,
        description="when a source counts as failed, and when a run stops itself",
    )
    stop: StopSection = Field(default_factory=StopSection, description="what ctrl-C and SIGTERM do")
    lease: LeaseSection = Field(
        default_factory=LeaseSection,
        description="how only one run at a time may write to the run folder",
    )
    logs: LogsSection = Field(
        default_factory=LogsSection, description="how a run reports what it does"
    )

    @field_validator("editor")
    @classmethod
    def _check_name(cls, editor: Editor) -> Editor:
        return checked_editor(editor)

    @field_validator("manifest")
    @classmethod
    def _check_manifest(cls, manifest: str | list[str]) -> str | list[str]:
        urls = [manifest] if isinstance(manifest, str) else manifest
        if not urls or any(not url.strip() for url in urls):
            raise ValueError("names no file: give the URL of a Parquet file, folder or glob")
        for url in urls:
            refuse_credentials_in_url(url)
        return manifest

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str) -> str:
        refuse_credentials_in_url(output)
        if redact_url(output) != output:
            raise ValueError(
                "has a query; give the URL without it, and the store's options in storage_options"
            )
        return output

    @field_validator("storage_options")
    @classmethod
    def _check_storage_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        refuse_credentials(options)
        return options

    @model_validator(mode="after")
    def _check_kinds_of_devices(self) -> Self:
        on_gpu = {pool.gpus_per_actor > 0 for pool in self.resources.pools or ()}
        if len(on_gpu) == 2 and self.model.dtype == "auto" and self.model.device != "cpu":
            raise ValueError(
                "resources.pools has actors with a GPU and without, and model.dtype=auto is a "
                "different type on each, so an edit would depend on where it is made: set "
                "model.dtype=float32, or leave out the pool without a GPU"
            )
        return self

    @model_validator(mode="after")
    def _check_inversions(self) -> Self:
        kept, output = self.resources.inversions, self.output.rstrip("/")
        if kept is not None and f"{kept}/".startswith(f"{output}/"):
            raise ValueError(
                f"resources.inversions ({kept}) lies in the output: give it a place outside, since "
                "its files are no part of the dataset"
            )
        return self

    @model_validator(mode="after")
    def _check_editor(self) -> Self:
        name = name_of(self.editor)
        for key in ("layers", "replaced_fraction") if name not in (FPE, NO_EDITOR) else ():
            if getattr(self.edit, key) is not None:
                raise ValueError(
                    f"edit.{key} is a parameter of {FPE}, not of {name}: leave it out; the "
                    f"parameters of {name} are keys of editor"
                )
        retries = None if self.judge is None else self.judge.retries
        changes = () if retries is None or retries.ladder is None else retries.ladder.values()
        of_fpe = [
            key
            for change in itertools.chain.from_iterable(changes)
            for key in ("layers", "replaced_fraction")
            if getattr(change, key) is not None
        ]
        if of_fpe and name not in (FPE, NO_EDITOR):
            raise ValueError(
                f"judge.retries.ladder sets {of_fpe[0]}, a parameter of {FPE} and not of {name}: "
                "set guidance_scale alone, or leave the ladder out"
            )
        for name in ("judge", "annotations") if self.editor == NO_EDITOR else ():
            if getattr(self, name) is not None:
                raise ValueError(
                    f"editor: none makes no edits, so {name} does not apply; leave it out"
                )
        return self

    @property
    def manifest_urls(self) -> tuple[str, ...]:
        return (self.manifest,) if isinstance(self.manifest, str) else tuple(self.manifest)

    @property
    def model_store(self) -> ModelStore:
        """Where the job's models are found on this node."""
        return ModelStore(self.storage_options, self.model.cache)

    def resolve_parameters(self, defaults: EditParameters) -> EditParameters:
        """The parameters of the job's `edit` section, with null replaced by `defaults`.

        Raises fpe_core.ParameterError for values that do not go together.
        """
        method = method_of(self.editor)
        return self.edit.resolve(defaults if method is None else _edited_by(defaults, method))

    def with_parameters(self, parameters: EditParameters) -> Job:
        """The same job with all of its `edit` section set, as it is stored in config.yaml."""
        section = EditSection.of(parameters, self.edit.speed, self.edit.inside)
        editor = self.editor if self.editor == NO_EDITOR else editor_of(parameters.method)
        return self.model_copy(update={"edit": section, "editor": editor})


def _edited_by(defaults: EditParameters, method: EditMethod) -> EditParameters:
    """The checkpoint's recommendation with another method; that for Free-Prompt-Editing has its
    parameters."""
    is_own = method.name == FPE and defaults.editor is None
    return defaults if is_own else defaults.edited_by(method)
