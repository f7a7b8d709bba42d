"""`fpe plan`: checks a job, counts its work and prices it by a probe of the device."""

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


@guarded
def plan(
    job_file: JobFile,
    overrides: Overrides = None,
    *,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Measure this device anew, or do not measure. Without either a stored probe of it "
            "will do, and where there is none it is measured.",
            show_default=False,
        ),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(help="Price the job for this device, by its stored probe.", metavar="NAME"),
    ] = None,
    probes: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="File of stored probes; else fpe/probes.json in the user's cache.", metavar="FILE"
        ),
    ] = None,
    probe_seconds: Annotated[
        float,
        typer.Option(min=1, help="What measuring may take, about; longer is steadier."),
    ] = 30.0,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one device: the plan then counts money.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> None:
    """Check a job and its manifest, say what a run would do and cost. Writes no run folder."""
    from pipeline.cost.probe import default_file
    from pipeline.errors import JobError
    from pipeline.job.file import load_job
    from pipeline.ledger.ledger import Ledger
    from pipeline.plan.plan import make_plan
    from pipeline.storage.folder import Folder

    if device_name is not None and probe is not None:
        raise JobError("--device-name takes a stored probe: leave --probe and --no-probe out")
    job = load_job(job_file, overrides or [])
    with console.err().status("Reading the manifest"):
        ledger = Ledger.open(Folder.open(job.output, job.storage_options))
        planned = make_plan(job, ledger, write=False)
    said = _Said(job, planned, ledger, price_per_hour)
    if planned.edits_pending and planned.makes_edits and probe is not False:
        with console.err().status("Measuring this device"):
            wanted = _Wanted(device_name, probe is True, probe_seconds)
            said = _priced(said, probes or default_file(), wanted)
    if as_json:
        console.out().print(json.dumps(_as_json(said), indent=2), markup=False)
    else:
        _print(said)


@dataclass(frozen=True)
class _Said:
    """All that is said of a job; `why_not`: why there is no price."""

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
    """Which probe; see `pipeline.cost.price.price`."""

    device: str | None
    measure: bool
    seconds: float


def _priced(said: _Said, file: pathlib.Path, wanted: _Wanted) -> _Said:
    """With a price, or why there is none; where a probe was asked for, that is an error instead."""
    from transformers.utils.logging import disable_progress_bar

    from fpe_core import FPEError
    from pipeline.cost.price import price
    from pipeline.cost.probe import ProbeStore
    from pipeline.errors import ProbeError, ResourceError

    disable_progress_bar()  # of loading weights: what is done is said above
    try:
        found = price(said.job, said.plan, said.ledger, ProbeStore(file), **asdict(wanted))
    except (FPEError, ProbeError, ResourceError) as error:
        if wanted.measure or wanted.device is not None:
            raise
        return replace(said, why_not=str(error))
    expected = replace(said.plan, output_bytes=round(found.estimate.output_bytes))
    return replace(said, plan=expected, price=found)


def _print(said: _Said) -> None:
    from jobs.commands.plan_tables import cost_table, knobs_table
    from jobs.terminal.tables import plan_table, quotas_table

    console.out().print(plan_table(said.plan, said.job.output))
    if said.price is not None:
        console.out().print(cost_table(said.price, said.price_per_hour))
        console.out().print(knobs_table(said.price, said.price_per_hour))
    if said.why_not:
        console.out().print(
            f"No price: {said.why_not}\n--device-name takes the stored probe of another device, "
            "--no-probe only counts.",
            markup=False,
        )
    if said.plan.round is not None:
        console.out().print(quotas_table(said.quotas))


def _as_json(said: _Said) -> dict[str, Any]:
    plan, price, price_per_hour = said.plan, said.price, said.price_per_hour
    values: dict[str, Any] = {
        "edits_total": plan.edits_total,
        "edits_done": plan.edits_done,
        "edits_pending": plan.edits_pending,
        "edits_spared": plan.edits_spared,
        "sources": plan.sources,
        "sources_pending": plan.groups_pending,
        "sources_refused": plan.sources_refused,
        "unet_rows": plan.unet_rows,
        "output_bytes": plan.output_bytes,
        "quotas": [asdict(row) for row in said.quotas],
    }
    if price is None:
        return values | {"price": None, "why_not": said.why_not}

    def money(hours: float) -> float | None:
        return None if price_per_hour is None else hours * price_per_hour

    expected, work = price.estimate, price.work
    sizes = {"actors": work.actors, "groups_per_block": work.groups_per_block}
    paid = {"price_per_hour": price_per_hour, "money": money(expected.device_hours)}
    return values | {
        "price": expected.to_dict() | sizes | paid,
        "probe": price.probe.to_dict() | {"is_measured_now": price.is_measured_now},
        "knobs": [
            {"key": knob.key, "now": knob.now, "then": knob.then}
            | knob.estimate.to_dict()
            | {"money": money(knob.estimate.device_hours)}
            for knob in price.knobs
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
