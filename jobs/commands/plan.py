"""`fpe plan`: checks a job, counts its work, and estimates its cost from a probe of the device.

Also `fpe config show`.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.commands.arguments import JobFile, Overrides
from jobs.terminal import console
from jobs.terminal.exits import guarded

if TYPE_CHECKING:
    from pipeline.cost.price import Price
    from pipeline.job.job import Job
    from pipeline.ledger.ledger import Ledger
    from pipeline.plan.plan import Plan
    from pipeline.plan.quotas import QuotaRow


Measure = Annotated[
    bool | None,
    typer.Option(
        "--probe/--no-probe",
        help="Measure this device again, or do not measure. By default a stored probe of it is "
        "used, and it is measured only if there is none.",
        show_default=False,
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(help="Price the job for this device, by its stored probe.", metavar="NAME"),
]
Probes = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="File of stored probes; default: fpe/probes.json in the user's cache.", metavar="FILE"
    ),
]
ProbeSeconds = Annotated[
    float,
    typer.Option(min=1, help="How long measuring may take, roughly; longer is more stable."),
]
PricePerHour = Annotated[
    float | None, typer.Option(min=0, help="Price of one device; the plan then shows the cost.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")]


@guarded
def plan(
    job_file: JobFile,
    overrides: Overrides = None,
    *,
    probe: Measure = None,
    device_name: DeviceName = None,
    probes: Probes = None,
    probe_seconds: ProbeSeconds = 30.0,
    price_per_hour: PricePerHour = None,
    as_json: AsJson = False,
) -> None:
    """Check a job and its manifest; show what a run would do and cost. Writes no run folder."""
    from pipeline.cost.probe import default_file
    from pipeline.errors import JobError
    from pipeline.job.file import load_job
    from pipeline.ledger.ledger import Ledger
    from pipeline.plan.plan import make_plan
    from pipeline.storage.folder import Folder

    if device_name is not None and probe is not None:
        raise JobError(
            "--device-name uses a stored probe: do not give --probe or --no-probe with it"
        )
    job = load_job(job_file, overrides or [])
    with console.err().status("Reading the manifest"):
        ledger = Ledger.open(Folder.open(job.output, job.storage_options))
        planned = make_plan(job, ledger, write=False)
    report = _PlanReport(job, planned, ledger, price_per_hour)
    if planned.edits_pending and planned.makes_edits and probe is not False:
        with console.err().status("Measuring this device"):
            wanted = _Wanted(device_name, probe is True, probe_seconds)
            report = _priced(report, probes or default_file(), wanted)
    if as_json:
        console.out().print(json.dumps(_as_json(report), indent=2), markup=False)
    else:
        _print(report)


@dataclass(frozen=True)
class _PlanReport:
    """Everything that is printed about a job. If there is no price, `why_not` is the reason."""

    job: Job
    plan: Plan
    ledger: Ledger
    price_per_hour: float | None
    price: Price | None = None
    why_not: str = ""

    @property
    def quotas(self) -> list[QuotaRow]:
        from pipeline.plan.plan import quota_rows

        return quota_rows(self.plan, self.ledger)


@dataclass(frozen=True)
class _Wanted:
    """Which probe to use; see `pipeline.cost.price.price`."""

    device: str | None
    measure: bool
    seconds: float


def _priced(report: _PlanReport, file: pathlib.Path, wanted: _Wanted) -> _PlanReport:
    """The report with a price, or with the reason why there is none.

    Raises the reason as an error if the user asked for a probe.
    """
    from transformers.utils.logging import disable_progress_bar

    from fpe_core import FPEError
    from pipeline.cost.price import price
    from pipeline.cost.probe import ProbeStore
    from pipeline.errors import ProbeError, ResourceError

    disable_progress_bar()  # of loading weights; the status line says what is done
    try:
        found = price(report.job, report.plan, report.ledger, ProbeStore(file), **asdict(wanted))
    except (FPEError, ProbeError, ResourceError) as error:
        if wanted.measure or wanted.device is not None:
            raise
        return replace(report, why_not=str(error))
    expected = replace(report.plan, output_bytes=round(found.estimate.output_bytes))
    return replace(report, plan=expected, price=found)


def _print(report: _PlanReport) -> None:
    from jobs.commands.plan_tables import cost_table, key_effects_table
    from jobs.terminal.tables import plan_table, quotas_table

    console.out().print(plan_table(report.plan, report.job.output))
    if report.price is not None:
        console.out().print(cost_table(report.price, report.price_per_hour))
        console.out().print(key_effects_table(report.price, report.price_per_hour))
    if (kept := report.job.resources.inversions) is not None and report.plan.makes_edits:
        console.out().print(f"Inversions that {kept} has already are counted too.", markup=False)
    if report.why_not:
        console.out().print(
            f"No price: {report.why_not}\n--device-name uses the stored probe of another device, "
            "--no-probe only counts the work.",
            markup=False,
        )
    if report.plan.round is not None:
        console.out().print(quotas_table(report.quotas))


def _as_json(report: _PlanReport) -> dict[str, Any]:
    plan, price, price_per_hour = report.plan, report.price, report.price_per_hour
    values: dict[str, Any] = {
        "edits_total": plan.edits_total,
        "edits_done": plan.edits_done,
        "edits_pending": plan.edits_pending,
        "edits_skipped_by_quota": plan.edits_skipped_by_quota,
        "sources": plan.sources,
        "sources_pending": plan.groups_pending,
        "sources_refused": plan.sources_refused,
        "rows_repeated": plan.rows_repeated,
        "unet_rows": plan.unet_rows,
        "output_bytes": plan.output_bytes,
        "quotas": [asdict(row) for row in report.quotas],
    }
    if price is None:
        return values | {"price": None, "why_not": report.why_not}

    def money(hours: float) -> float | None:
        return None if price_per_hour is None else hours * price_per_hour

    expected, work = price.estimate, price.work
    sizes = {"actors": work.actors, "groups_per_block": work.groups_per_block}
    paid = {"price_per_hour": price_per_hour, "money": money(expected.device_hours)}
    return values | {
        "price": expected.to_dict() | sizes | paid,
        "probe": price.probe.to_dict() | {"is_measured_now": price.is_measured_now},
        "key_effects": [
            {"key": effect.key, "now": effect.now, "then": effect.then}
            | effect.estimate.to_dict()
            | {"money": money(effect.estimate.device_hours)}
            for effect in price.key_effects
        ],
    }


@guarded
def config_show(
    job_file: Annotated[
        str | None, typer.Argument(metavar="JOB.yaml", help="Show this job instead of defaults.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print every key of a job file, with its value or default and what it means, as YAML."""
    from jobs.job_file.show import job_as_yaml
    from pipeline.job.file import load_job

    job = None if job_file is None else load_job(job_file, overrides or [])
    console.out().print(job_as_yaml(job), markup=False, end="")
