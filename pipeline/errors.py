"""The exceptions of the pipeline.

    PipelineError
    ├── UserError               shown without a traceback: the message says what to do
    │   ├── JobError            the job file is wrong
    │   ├── ManifestError       the manifest is wrong: .problems (a page of them), .total
    │   ├── StorageError        a folder or file cannot be listed, read or written
    │   │   └── AlreadyExistsError   an exclusive create found the name taken
    │   ├── LedgerError         the ledger is damaged, or another run writes to it
    │   ├── LeaseError          another run uses the run folder
    │   ├── ResourceError       the cluster has too little for this job
    │   │   └── InsufficientCapacityError   not enough free now; adding nodes would help
    │   ├── ProbeError          a device's cost cannot be measured, or was not stored
    │   ├── TooManyFailuresError     the job passed its failure limits and stopped
    │   ├── SupervisorLostError      the process that watches a run's workers is gone
    │   └── Interrupted         ctrl-C or SIGTERM; what arrived before is committed
    └── RowError                fails one row and no other: .code is a FailureCode
        ├── SourceMissingError       source_missing
        ├── SourceForbiddenError     source_forbidden
        ├── SourceThrottledError     source_throttled
        └── WorkerDiedError          worker_died

Errors of single images and prompts that come from the algorithm (`decode_failed`,
`image_too_large`, `prompt_invalid`, `out_of_memory`) are fpe_core's and carry `.code` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pipeline.redact import safe_text


class PipelineError(Exception):
    """The base class. Its message holds no secrets of URLs and no control characters."""

    def __init__(self, message: str = "") -> None:
        super().__init__(safe_text(message))


class UserError(PipelineError):
    """A mistake or a limit that a person can act on: printed without a traceback."""


class JobError(UserError):
    """The job file asks for something that cannot be done."""


class ManifestError(UserError):
    """The manifest cannot be used.

    `problems` holds at most a page of lines, each with its row; `total` counts all of them.
    """

    def __init__(
        self, headline: str, problems: Sequence[str] = (), *, total: int | None = None
    ) -> None:
        self.headline = safe_text(headline)
        self.problems = tuple(map(safe_text, problems))
        self.total = len(self.problems) if total is None else total
        hidden = self.total - len(self.problems)
        lines = [self.headline, *(f"  {problem}" for problem in self.problems)]
        if hidden > 0:
            lines.append(f"  ... and {hidden} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_manifest_error, (self.headline, self.problems, self.total)


def _rebuild_manifest_error(headline: str, problems: tuple[str, ...], total: int) -> ManifestError:
    return ManifestError(headline, problems, total=total)


class StorageError(UserError):
    """A folder or file cannot be listed, read or written."""


class AlreadyExistsError(StorageError):
    """An exclusive create found that the name is taken; nothing was written."""


class LedgerError(UserError):
    """The ledger is damaged, or another run is writing to it."""


class LeaseError(UserError):
    """Another run uses the run folder: it held the lease first, or took it over from this run."""


class ResourceError(UserError):
    """The cluster has too little for this job; the message says what is missing."""


class InsufficientCapacityError(ResourceError):
    """Not enough free resources now; adding nodes, if the cluster may have more, would help."""


class ProbeError(UserError):
    """What edits cost on a device cannot be measured, or was not stored; the message says what to
    do."""


class TooManyFailuresError(UserError):
    """The job passed its failure limits and stopped; what arrived before is committed."""


class SupervisorLostError(UserError):
    """The process that watches a run's workers is gone, or does not answer: the run ends."""


class Interrupted(UserError):  # noqa: N818  # an event, not a mistake
    """The run was asked to stop. What arrived before is committed; the same command resumes."""


class RowError(PipelineError):
    """An error that fails one row and no other."""

    code: ClassVar[str]


class SourceMissingError(RowError):
    """The source does not exist, or no attempt to fetch it succeeded."""

    code = "source_missing"


class SourceForbiddenError(RowError):
    """The source may not be read: these credentials, or the job's rules, do not allow it."""

    code = "source_forbidden"


class SourceThrottledError(RowError):
    """The server gets too many requests, and asks to wait for longer than the pipeline does."""

    code = "source_throttled"


class WorkerDiedError(RowError):
    """The row killed its worker twice and is quarantined."""

    code = "worker_died"
