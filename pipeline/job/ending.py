"""The job file's `failures`, `stop` and `lease`: when a run ends, and who may go on."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipeline.job.section import Section


class FailuresSection(Section):
    """When a source counts as failed, and when a run stops itself."""

    max_in_a_row: int = Field(
        default=100,
        ge=1,
        description="a run stops after this many sources in a row of which every edit failed",
    )
    max_share: float = Field(
        default=0.5, ge=0, le=1, description="share of such sources at which a run stops"
    )
    min_sources_for_share: int = Field(
        default=50, ge=1, description="number of sources before the share is checked"
    )
    max_stall_s: float = Field(
        default=1800.0,
        gt=0,
        description="seconds without any progress after which a worker is killed; a source that "
        "causes this twice fails as worker_died",
    )
    max_group_s: float = Field(
        default=7200.0,
        gt=0,
        description="seconds that one source with all its edits may take, and a block of n "
        "sources n times as long; then the worker is killed likewise",
    )


class StopSection(Section):
    """What a run does after ctrl-C or SIGTERM."""

    grace_s: float = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="seconds to finish the sources in progress; finished edits are committed at "
        "once, and unfinished ones are made again by the next run",
    )


class LeaseSection(Section):
    """How only one run at a time may write to the run folder. See pipeline/ledger/lease.py."""

    expiry_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="seconds without a heartbeat after which another run may take the folder over",
    )
    heartbeat_s: float = Field(
        default=10.0, gt=0, description="seconds between heartbeats; at most a third of expiry_s"
    )

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.heartbeat_s > self.expiry_s / 3:
            raise ValueError(
                f"heartbeat_s ({self.heartbeat_s:g}) must be at most a third of expiry_s "
                f"({self.expiry_s:g}), so that a late heartbeat or two cost nothing"
            )
        return self
