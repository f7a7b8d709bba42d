"""Batch editing on Ray: a job file and a manifest go in, a run folder of committed parts comes out.

    job ──┐                        ┌─ judge ─┐
          ├─ plan ─ cluster ─ read ┤         ├─ write ─ ledger
 manifest ┘                        └─ edit ──┘
                    run drives it;  verify and report read what it left;  cost estimates it first
                    storage and supervision are under all of it

Imports run down this list (tests/test_house.py): cost, verify, report > run > cluster > plan, edit
> judge, write > job, read > manifest, ledger > storage, supervision > errors, logs, redact.

From Python: `from pipeline import Job, run_job, plan_job, open_run` (api.py, docs/python.md). These
names are loaded when they are first used (PEP 562), so that `import pipeline` loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import open_run, plan_job, run_job
    from pipeline.job.file import load_job
    from pipeline.job.job import Job
    from pipeline.plan.plan import Plan
    from pipeline.report.opened_run import OpenedRun
    from pipeline.run.stats import RunSummary

__all__ = [
    "Job",
    "OpenedRun",
    "Plan",
    "RunSummary",
    "load_job",
    "open_run",
    "plan_job",
    "run_job",
]

_MODULES = {
    "Job": "pipeline.job.job",
    "OpenedRun": "pipeline.report.opened_run",
    "Plan": "pipeline.plan.plan",
    "RunSummary": "pipeline.run.stats",
    "load_job": "pipeline.job.file",
    "open_run": "pipeline.api",
    "plan_job": "pipeline.api",
    "run_job": "pipeline.api",
}

if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
