"""Runs the workloads with pictures, and the bare script beside them, in turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from jobs.bench.scale.figures import PhaseCost
from jobs.bench.scale.measure import run_module, run_phase
from jobs.bench.scale.pictures import Workload
from jobs.bench.scale.relay import ByteRelay


@dataclass(frozen=True)
class Store:
    """Where manifest, pictures and run folders lie: a folder or the URL of one.

    Attributes:
        endpoint_url: of an S3 server with plain http; "" for a local folder. Bytes are counted
            there.
    """

    url: str
    endpoint_url: str = ""

    @property
    def name(self) -> str:
        return self.url.partition("://")[0] if "://" in self.url else "local"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Those of a job on this store."""
        return {"endpoint_url": self.endpoint_url} if self.endpoint_url else {}


@dataclass(frozen=True)
class Traffic:
    """Bytes between a store and its clients, with the headers of requests and answers.

    Of a local folder `read` is None, and `written` the sizes of the files that were left there.
    """

    read: int | None
    written: int


@dataclass(frozen=True)
class PlanOfPictures:
    """Planning alone, on an empty run folder."""

    cost: PhaseCost
    traffic: Traffic


@dataclass(frozen=True)
class PictureRun:
    """One run of a workload, planning included."""

    edits: int
    cost: PhaseCost
    traffic: Traffic


@dataclass(frozen=True)
class BareRun:
    """One run of the bare script over the same manifest."""

    seconds: float
    reader_bytes: int
    traffic: Traffic


@dataclass
class PictureFigures:
    """All runs of one workload on one store; ours and the bare script's were in turns."""

    workload: str
    store: str
    rows: int
    prompts: int
    manifest_bytes: int
    planned: PlanOfPictures
    runs: list[PictureRun] = field(default_factory=list)
    bare: list[BareRun] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of our runs."""
        return statistics.median(run.cost.seconds for run in self.runs)

    @property
    def ratio(self) -> float | None:
        """Our seconds to the bare script's, medians; None if there is no script for it."""
        if not self.bare:
            return None
        return self.seconds / statistics.median(run.seconds for run in self.bare)


def measure_pictures(
    workloads: Sequence[Workload],
    stores: Sequence[Store],
    rounds: int,
    report: Callable[[str], None],
) -> Iterator[PictureFigures]:
    """Yields the figures of each workload on each store.

    `report` is called with a line for each step. What was written is deleted afterwards. Raises
    ResourceError if a run fails.
    """
    for store in stores:
        for workload in workloads:
            folder = f"{store.url.rstrip('/')}/pictures-{workload.name.replace(' ', '-')}"
            name = f"{workload.name}, {store.name}"
            try:
                report(f"{name}: manifest")
                manifest, size = workload.write(folder, store.storage_options)
                report(f"{name}: planning")
                found, traffic = _phase("plan", workload, folder, store)
                planned = PlanOfPictures(PhaseCost(**found["cost"]), traffic)
                figures = PictureFigures(
                    workload.name, store.name, workload.rows, workload.prompts, size, planned
                )
                for number in range(1, rounds + 1):
                    report(f"{name}: run {number} of {rounds}")
                    found, traffic = _phase("run", workload, folder, store)
                    cost = PhaseCost(**found["cost"])
                    figures.runs.append(PictureRun(found["edits"], cost, traffic))
                    if workload.has_peer:
                        report(f"{name}: bare Ray Data {number} of {rounds}")
                        figures.bare.append(_bare(manifest, folder, store))
                yield figures
            finally:
                _delete(folder, store)


def _phase(
    name: str, workload: Workload, folder: str, store: Store
) -> tuple[dict[str, Any], Traffic]:
    output = f"{folder}/run"
    with _counted(store, output) as (options, traffic):
        found = run_phase(name, workload.job(folder, output, options))
    return found, traffic()


def _bare(manifest: str, folder: str, store: Store) -> BareRun:
    output = f"{folder}/bare"
    with _counted(store, output) as (options, traffic):
        found = run_module(
            ("jobs.bench.scale.bare_ray", manifest, output, json.dumps(options)), b""
        )
    return BareRun(found["seconds"], found["reader_bytes"], traffic())


@contextmanager
def _counted(store: Store, output: str) -> Iterator[tuple[dict[str, Any], Callable[[], Traffic]]]:
    """Yields the storage options to use, and a function that returns the traffic afterwards. The
    output is deleted before and after."""
    _delete(output, store)
    traffic: list[Traffic] = []
    try:
        if store.endpoint_url:
            with ByteRelay(store.endpoint_url) as relay:
                yield {"endpoint_url": relay.endpoint_url}, traffic.pop
                traffic.append(Traffic(relay.received_bytes, relay.sent_bytes))
        else:
            yield {}, traffic.pop
            traffic.append(Traffic(None, _size_of(Path(output))))
    finally:
        _delete(output, store)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _delete(folder: str, store: Store) -> None:
    files, path = fsspec.url_to_fs(folder, **store.storage_options)
    files.invalidate_cache()
    if files.exists(path):
        files.rm(path, recursive=True)
