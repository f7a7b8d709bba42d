"""How fast a run goes, told from its ledger: rows of its files, and when the store got them.

No clock of this machine is asked: a file's time is the store's, so the rate is the same from
wherever one looks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.storage import Folder

RECENT_FILES = 20
"""The latest commits, at least five seconds apart: what the rate is of, and what is read for it."""


@dataclass(frozen=True)
class Commit:
    """One file of a ledger: how many outcomes, and when, in seconds since 1970 by the store."""

    outcomes: int
    at_s: float


def recent_commits(folder: Folder, files: Sequence[str]) -> list[Commit]:
    """The latest commits of a ledger whose files these are, oldest first, without fences.

    Raises StorageError.
    """
    commits = []
    for path in files[-RECENT_FILES:]:
        outcomes = pq.read_metadata(io.BytesIO(folder.read(path))).num_rows
        if outcomes:
            commits.append(Commit(outcomes, folder.modified(path)))
    return commits


def edits_per_second(commits: Sequence[Commit], since_s: float) -> float | None:
    """Outcomes per second of the run that began at `since_s`; None while that cannot be told.

    Between the first of its commits and the last: what came before the first was loading models.
    With one commit, since it began.
    """
    own = [commit for commit in commits if commit.at_s >= since_s]
    if len(own) > 1 and own[-1].at_s > own[0].at_s:
        return sum(commit.outcomes for commit in own[1:]) / (own[-1].at_s - own[0].at_s)
    if own and own[-1].at_s > since_s:
        return sum(commit.outcomes for commit in own) / (own[-1].at_s - since_s)
    return None
