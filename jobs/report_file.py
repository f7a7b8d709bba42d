"""Where a report goes: into the run folder, or to any file or URL."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.report import COMPARISON_NAME, REPORT_NAME, render_comparison, render_report
from pipeline.comparison import read_comparison
from pipeline.errors import JobError
from pipeline.report import ReportLimits, read_report
from pipeline.storage import Folder, absolute_url


@dataclass(frozen=True)
class Written:
    """A page: its URL or path, and how large it is."""

    url: str
    size_bytes: int


def write_report(
    folder: Folder,
    *,
    out: str | None = None,
    price_per_hour: float | None = None,
    limits: ReportLimits | None = None,
) -> Written:
    """Writes the report of a run to RUN/report.html, over an earlier one, or to `out`.

    Raises StorageError where no run is or nothing can be written, LedgerError, and JobError for
    an `out` that names no HTML file.
    """
    place, name = _place(folder, out, REPORT_NAME)
    facts = read_report(folder, limits)
    is_in_run = place.url == folder.url
    page = render_report(facts, price_per_hour=price_per_hour, is_in_run=is_in_run)
    return _write(place, name, page)


def write_comparison(
    a: Folder, b: Folder, *, out: str | None = None, limits: ReportLimits | None = None
) -> Written:
    """Writes the comparison of two runs to A/comparison.html, or to `out`; raises as above."""
    place, name = _place(a, out, COMPARISON_NAME)
    return _write(place, name, render_comparison(read_comparison(a, b, limits)))


def _place(folder: Folder, out: str | None, name: str) -> tuple[Folder, str]:
    if out is None:
        return folder, name
    if not out.endswith((".html", ".htm")):  # not over somebody's data by a slip of the hand
        raise JobError(f"--out {out}: name a file that ends in .html")
    above, _, name = absolute_url(out).rpartition("/")
    options: Mapping[str, Any] = folder.options
    is_same_store = ("://" in above) == ("://" in folder.url)
    return Folder.open(above or posixpath.sep, options if is_same_store else {}), name


def _write(place: Folder, name: str, page: bytes) -> Written:
    place.replace(name, page)
    return Written(place.url_of(name), len(page))
