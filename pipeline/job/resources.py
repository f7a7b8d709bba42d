"""The job file's `resources`: what a run may use of a machine or a cluster."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.job.credentials import refuse_credentials_in_url
from pipeline.job.section import Section, tuple_from_list


class PoolSection(Section):
    """Actors of one kind. Kinds differ in the accelerator, or in the share of it per actor."""

    accelerator: str | None = Field(
        default=None,
        min_length=1,
        description="kind of GPU, as `ray status` shows it after accelerator_type: (A10G, H100); "
        "null: any",
    )
    actors: int | None = Field(
        default=None,
        ge=1,
        description="processes with a model each that a run needs to start; null: as many as fit",
    )
    max_actors: int | None = Field(
        default=None,
        ge=1,
        description="upper limit of actors, counting nodes that join during the run; null: no "
        "more than fit at the start",
    )
    gpus_per_actor: float = Field(
        default=1.0,
        ge=0,
        description="GPUs that each reserves; 0.5 puts two on one GPU; 0: on the CPU",
    )
    cpus_per_actor: float = Field(default=1.0, gt=0, description="CPUs that each reserves")
    threads_per_actor: int | None = Field(default=None, ge=1, description="torch threads of each")

    @model_validator(mode="after")
    def _check_accelerator(self) -> Self:
        if self.accelerator is not None and not self.gpus_per_actor:
            raise ValueError("actors without a GPU (gpus_per_actor: 0) have no accelerator")
        _check_most(self.actors, self.max_actors)
        return self


class ResourcesSection(Section):
    """What the run may use. Null means: determined from the cluster."""

    ray_address: str | None = Field(
        default=None, description="auto or ray://host:10001 of a running cluster; null: a local Ray"
    )
    actors: int | None = Field(
        default=None, ge=1, description="processes with a model each that the run needs to start"
    )
    max_actors: int | None = Field(
        default=None,
        ge=1,
        description="upper limit of actors, counting nodes that join during the run: on a "
        "cluster, actors with a GPU that do not fit yet wait for nodes that its autoscaler adds; "
        "null: no more than fit at the start",
    )
    wait_s: float = Field(
        default=900.0,
        ge=0,
        description="how long a run waits for a cluster with too few free resources, whose "
        "autoscaler is asked for more; has no effect on a local Ray",
    )
    cpus_per_actor: float | None = Field(default=None, gt=0, description="CPUs that each reserves")
    gpus_per_actor: float | None = Field(
        default=None, ge=0, description="GPUs that each reserves; 0.5 puts two on one GPU"
    )
    threads_per_actor: int | None = Field(default=None, ge=1, description="torch threads of each")
    pools: Annotated[tuple[PoolSection, ...], BeforeValidator(tuple_from_list)] | None = Field(
        default=None,
        description="actors of several kinds in one run, instead of the five keys of actors "
        "above; null: all actors are of one kind",
    )
    groups_per_block: int | None = Field(
        default=None,
        ge=1,
        description="sources that are processed and committed together, as one block; null: by "
        "the size of images and the number of actors",
    )
    edits_per_block: int | None = Field(
        default=None,
        ge=1,
        description="limit of a block's edits, if its sources have more than one each: a block has "
        "fewer sources then, and one at least; null: 2048",
    )
    max_rows: int | None = Field(
        default=None, ge=1, description="latents in one UNet call; null: as many as memory allows"
    )
    free_cpus: int = Field(
        default=1,
        ge=0,
        description="CPUs that actors leave free for reading sources and other work",
    )

    inversions: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL in which inversions are kept, so that jobs with other editors, "
        "prompts or guidance on the same sources need not invert them again; 3.3 MB a source at "
        "512 px and 50 steps, never removed; null: they are not kept",
    )

    @field_validator("inversions")
    @classmethod
    def _check_inversions(cls, url: str | None) -> str | None:
        if url is not None:
            refuse_credentials_in_url(url)
        return url

    @property
    def can_grow(self) -> bool:
        """Whether nodes may join during the run; on a local Ray they cannot."""
        return self.ray_address is not None

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        _check_most(self.actors, self.max_actors)
        if self.pools is None:
            return self
        if not self.pools:
            raise ValueError("pools is empty: name a kind of actors, or leave it out")
        for name in (
            "actors",
            "max_actors",
            "cpus_per_actor",
            "gpus_per_actor",
            "threads_per_actor",
        ):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is set by each of the pools: leave it out here")
        kinds = [(pool.accelerator, pool.gpus_per_actor) for pool in self.pools]
        for accelerator, gpus in kinds:
            if kinds.count((accelerator, gpus)) > 1:
                raise ValueError(
                    f"two pools have {gpus:g} GPUs an actor and accelerator "
                    f"{accelerator or 'null'}: make one of them"
                )
        return self


def _check_most(actors: int | None, max_actors: int | None) -> None:
    if actors is not None and max_actors is not None and max_actors < actors:
        raise ValueError(f"max_actors is {max_actors}, and actors {actors}: it cannot be less")
