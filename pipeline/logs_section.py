"""The section of a job file that says how logs are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.logs import LogSettings
from pipeline.section import Section


class LogsSection(Section):
    """What a run writes about itself. See pipeline/logs.py."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="lines for people, or one JSON object per line (run, edit_id, station, ...); "
        "of the driver, and of workers in Ray's session folder",
    )

    bars: Literal["edits", "ray"] = Field(
        default="edits",
        description="what a terminal shows: a bar of edits, or Ray Data's own bars, one for each "
        "station; elsewhere, and beside Ray's bars, there is a line every half minute",
    )

    def to_settings(self, run: str = "") -> LogSettings:
        return LogSettings(self.format, run)
