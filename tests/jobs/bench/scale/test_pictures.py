"""`fpe bench scale`, workloads with pictures: bytes are counted outside the product, and a bare Ray
Data script makes the same pictures."""

from __future__ import annotations

import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.bench.scale.figures import PhaseCost
from jobs.bench.scale.picture_rounds import (
    BareRun,
    PictureFigures,
    PictureRun,
    PlanOfPictures,
    Store,
    Traffic,
    measure_pictures,
)
from jobs.bench.scale.picture_tables import aims
from jobs.bench.scale.pictures import HEIGHT_PX, SIZE_PX, WIDTH_PX, Workload, workloads
from jobs.bench.scale.relay import ByteRelay
from jobs.cli import app
from jobs.terminal.exits import USAGE
from pipeline.run.driver import run_job
from tests.servers.s3_server import S3Server

ROWS = 8


class Silent:
    def start(self, *_: Any) -> None: ...

    advance = start

    def finish(self) -> None: ...


def test_a_relay_counts_what_passes() -> None:
    """A server that answers any four bytes with a million, and then hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(3):
            client, _ = listener.accept()
            with client:
                assert client.recv(4, socket.MSG_WAITALL) == b"data"
                client.sendall(bytes(10**6))

    serving = threading.Thread(target=serve)
    serving.start()
    with ByteRelay(f"http://127.0.0.1:{listener.getsockname()[1]}") as relay:
        for number in range(1, 4):
            address = ("127.0.0.1", int(relay.endpoint_url.rpartition(":")[2]))
            with socket.create_connection(address) as client:
                client.sendall(b"data")
                got = 0
                while piece := client.recv(1 << 16):
                    got += len(piece)
            assert got == 10**6
            assert (relay.sent_bytes, relay.received_bytes) == (4 * number, number * 10**6)
    serving.join()
    listener.close()
    for other in ("https://127.0.0.1:1", "s3://bucket", ""):
        with pytest.raises(ValueError, match="http endpoints"):
            ByteRelay(other)


def test_the_workloads_are_what_their_names_say(tmp_path: Path) -> None:
    for workload in workloads(1000):
        assert workload.rows * workload.prompts == 1000
    by_uri, embedded, many, quotas = workloads(1000)
    assert many.prompts > 100
    assert quotas.quota
    assert [each.has_peer for each in (by_uri, embedded, many, quotas)] == [1, 1, 0, 0]
    small = Workload("embedded", 3, embedded=True)
    manifest, size = small.write(str(tmp_path), {})
    assert size == Path(manifest).stat().st_size
    pictures = pq.read_table(manifest)["image"].to_pylist()
    assert len(set(pictures)) == 3
    for data in pictures:
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (WIDTH_PX, HEIGHT_PX))
        assert 1 < 8 * len(data) / (WIDTH_PX * HEIGHT_PX) < 5, "bits a pixel, as photographs have"
    other = small.write(str(tmp_path / "again"), {})[0]
    assert Path(other).read_bytes() == Path(manifest).read_bytes()


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server
) -> tuple[Path, list[PictureFigures]]:
    folder = tmp_path_factory.mktemp("pictures")
    stores = [Store(str(folder)), Store(s3_server.url("scale"), s3_server.endpoint_url)]
    chosen = [Workload("embedded", ROWS, embedded=True)]
    return folder, list(measure_pictures(chosen, stores, 1, lambda _: None))


@pytest.mark.endurance
def test_pictures_are_measured_on_both_stores(
    measured: tuple[Path, list[PictureFigures]], s3_server: S3Server
) -> None:
    folder, (local, remote) = measured
    assert (local.store, remote.store) == ("local", "s3")
    for each in (local, remote):
        (run,), (bare,) = each.runs, each.bare
        assert run.edits == ROWS
        assert min(run.cost.reader_bytes, run.cost.editor_bytes, bare.reader_bytes) > 10**7
        assert each.ratio == pytest.approx(run.cost.seconds / bare.seconds)
        assert 0 < each.planned.traffic.written < run.traffic.written
    assert local.runs[0].traffic.read is None
    for run in (*remote.runs, *remote.bare):
        assert run.traffic.read is not None
        assert run.traffic.read >= remote.manifest_bytes, "the pictures are in it"
    # Both write the same pictures, so about the same bytes; ours more, for metadata and the ledger.
    pictures = local.bare[0].traffic.written
    assert pictures < local.runs[0].traffic.written < 1.5 * pictures + 100_000
    assert pictures < remote.bare[0].traffic.written < 1.1 * pictures + 100_000
    assert not list(folder.glob("pictures-*"))
    assert not s3_server.file("scale").exists() or not any(s3_server.file("scale").rglob("*.webp"))


def test_our_pictures_are_those_of_the_script(tmp_path: Path) -> None:
    """Pixel for pixel: both fit, encode and write the same."""
    from jobs.bench.scale import bare_ray

    workload = Workload("by URI", 2)
    manifest, _ = workload.write(str(tmp_path), {})
    job = workload.job(str(tmp_path), str(tmp_path / "run"), {})
    assert run_job(job, progress=Silent()).accepted == 2
    (tmp_path / "bare" / "source").mkdir(parents=True)
    (tmp_path / "bare" / "edited").mkdir()
    for row in pq.read_table(manifest).to_pylist():
        bare_ray.edit_row(row, manifest, str(tmp_path / "bare"), {})
        for kind in ("source", "edited"):
            (ours,) = (tmp_path / "run").glob(f"part-*/{kind}/{row['id']}__*.webp")
            (theirs,) = (tmp_path / "bare" / kind).glob(f"{row['id']}.webp")
            with Image.open(ours) as one, Image.open(theirs) as other:
                assert one.size == other.size == (SIZE_PX, SIZE_PX)
                assert one.tobytes() == other.tobytes(), kind


def figures(*, ours: float, plan_bytes: int, peak: int) -> PictureFigures:
    cost = PhaseCost(ours, 1.0, 1, 10**8, reader_bytes=peak, editor_bytes=10**8)
    return PictureFigures(
        "by URI",
        "local",
        rows=10,
        prompts=10,
        manifest_bytes=1,
        planned=PlanOfPictures(cost, Traffic(None, plan_bytes)),
        runs=[PictureRun(100, cost, Traffic(None, 1))],
        bare=[BareRun(100.0, 1, Traffic(None, 1))],
    )


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, set()),
        ({"ours": 106.0}, {"seconds"}),
        ({"plan_bytes": 20_100}, {"bytes"}),
        ({"peak": 4_100_000_000}, {"memory"}),
    ],
)
def test_an_aim_that_is_missed_is_said(change: dict[str, Any], missed: set[str]) -> None:
    met = {"ours": 105.0, "plan_bytes": 20_000, "peak": 10**9}
    found = list(aims([figures(**met), figures(**met | change)]))
    assert {aim.text.split()[0] for aim in found if not aim.is_met} == missed
    assert list(aims([])) == []


@pytest.mark.parametrize(
    ("store", "endpoint"),
    [("s3://bucket", ""), ("", "http://127.0.0.1:1"), ("s3://bucket", "https://127.0.0.1:1")],
)
def test_a_store_without_its_server_is_refused(tmp_path: Path, store: str, endpoint: str) -> None:
    arguments = ["--store", store, "--endpoint-url", endpoint, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "scale", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == USAGE
    assert "--store and --endpoint-url go together" in result.output
    assert not (tmp_path / "scale.json").exists()
    assert json.dumps(endpoint)[1:-1] in result.output
