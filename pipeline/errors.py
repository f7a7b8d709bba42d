"""Everything that the pipeline raises on purpose.

    PipelineError
    ├── UserError               shown without a traceback: the message says what to do
    │   ├── JobError            the job file is wrong
    │   ├── ManifestError       the manifest is wrong: .problems (a page of them), .total
    │   ├── StorageError        a folder or file cannot be listed, read or written
    │   │   └── AlreadyExistsError   an exclusive create found the name taken
    │   ├── LedgerError         the ledger is damaged, or another run writes to it
    │   ├── LeaseError          another run has the run folder
    │   ├── ResourceError       the cluster has too little for this job
    │   │   └── InsufficientCapacityError   not enough free now; adding nodes would help
    │   ├── ProbeError          what a device takes cannot be measured, or is not stored
    │   ├── TooManyFailuresError     the job stopped itself
    │   └── Interrupted         ctrl-C or SIGTERM; what had arrived is committed
    └── RowError                costs one row: .code is a FailureCode
        ├── SourceMissingError       source_missing
        ├── SourceForbiddenError     source_forbidden
        └── WorkerDiedError          worker_died

Errors of single images and prompts that come from the algorithm (`decode_failed`,
`image_too_large`, `prompt_invalid`, `out_of_memory`) are fpe_core's and carry `.code` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pipeline.redact import tellable


class PipelineError(Exception):
    """The root. Its message holds no secret of a URL and no control characters."""

    def __init__(self, message: str = "") -> None:
        super().__init__(tellable(message))


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
        self.headline = tellable(headline)
        self.problems = tuple(map(tellable, problems))
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
    """An exclusive create found the name taken: nothing was written."""


class LedgerError(UserError):
    """The ledger is damaged, or another run is writing to it."""


class LeaseError(UserError):
    """Another run has the run folder: it had it before us, or took it over from us."""


class ResourceError(UserError):
    """The cluster has too little for this job; the message says what is missing."""


class InsufficientCapacityError(ResourceError):
    """Not enough free resources now; adding nodes, if the cluster may have more, would help."""


class ProbeError(UserError):
    """What a device takes cannot be measured, or was not stored; the message says what to do."""


class TooManyFailuresError(UserError):
    """The job passed its failure limits and stopped itself; what had arrived is committed."""


class Interrupted(UserError):  # noqa: N818  # an event, not a mistake
    """The run was asked to stop; what had arrived is committed and the same command goes on."""


class RowError(PipelineError):
    """Something that costs one row and no more."""

    code: ClassVar[str]


class SourceMissingError(RowError):
    """The source is not there, or no try to fetch it succeeded."""

    code = "source_missing"


class SourceForbiddenError(RowError):
    """The source is there, and these credentials may not read it."""

    code = "source_forbidden"


class WorkerDiedError(RowError):
    """The row killed its worker twice and is quarantined."""

    code = "worker_died"
