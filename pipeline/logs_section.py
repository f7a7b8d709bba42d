"""The section of a job file that says how logs are written."""

from __future__ import annotations

import sys
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

    bars: Literal["ray", "edits"] = Field(
        default="ray",
        description="what a terminal shows: Ray Data's own bars, one for each station, or a bar of "
        "edits; elsewhere, and above Ray's bars, there is a line every half minute",
    )

    level: Literal["info", "debug"] = Field(
        default="info",
        description="info: edits that failed or were rejected, and what happens to the run; debug: "
        "every edit and every commit too",
    )

    @property
    def shows_ray_bars(self) -> bool:
        """Whether Ray Data draws its bars: where both outputs of this process are a terminal."""
        is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        return self.bars == "ray" and self.format == "text" and is_terminal

    def to_settings(self, run: str = "") -> LogSettings:
        return LogSettings(self.format, run)
