"""A whole job over somebody else's signed manifest: rules reach the workers, no secret stays."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import JobError
from pipeline.job.file import load_job_of_run
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.run.driver import run_job
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run
from tests.faults.nobody import Nobody

pytestmark = pytest.mark.usefixtures("ray_cluster")


class _Shop(http.server.BaseHTTPRequestHandler):
    """One file, whole or in part, for whoever has the signature."""

    content = b""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        part = self.content[first : int(wanted[2]) + 1 if wanted and wanted[2] else None]
        if not self.path.endswith("?sig=SECRET"):
            self.send_error(403)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            end = first + len(part) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(self.content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Shop) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_rules_reach_the_workers_and_secrets_stay_out_of_the_run_folder(
    shop: str, tmp_path: Path, tiny_checkpoint: Path, picture: Callable[..., Image.Image]
) -> None:
    for folder in ("open", "closed"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "a.png")
    (tmp_path / "open" / "link.png").symlink_to("../closed/a.png")
    uris = [
        f"{tmp_path}/open/a.png",
        f"{tmp_path}/closed/a.png",
        f"{tmp_path}/open/link.png",
        "https://me:SECRET@127.0.0.1:9/a.png?sig=SECRET",
        "b.png",
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": uris, "target_prompt": ["a red cat"] * len(uris)}), sink)
    _Shop.content = sink.getvalue().to_pybytes()
    job = Job.model_validate(
        {
            "manifest": f"{shop}/data/m.parquet?sig=SECRET",
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
            "edit": {"steps": 1},
            "images": {"allowed_sources": [f"{tmp_path}/open"]},
            "resources": {"actors": 1, "cpus_per_actor": 1, "threads_per_actor": 1},
        }
    )
    summary = run_job(job, progress=Nobody())
    assert (summary.accepted, summary.failed) == (1, 4)
    assert summary.failures_by_code == {"source_forbidden": 4}
    assert verify_run(job).ok
    table = pa.concat_tables(Ledger.open(Folder.open(job.output)).outcomes())
    messages = dict(zip(table["row"].to_pylist(), table["message"].to_pylist(), strict=True))
    assert "leads to " in messages[2]
    assert all("images.allowed_sources allows only" in messages[row] for row in (1, 2, 3, 4))
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and ".plan" not in path.parts:  # the workers fetch with what is there
            assert b"SECRET" not in path.read_bytes(), path
    with pytest.raises(JobError, match="name the job file instead of the run folder"):
        load_job_of_run(job.output)
