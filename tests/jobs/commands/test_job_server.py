"""`fpe submit`: what travels, what is refused, and whole submissions to a real job server."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from ray.job_submission import JobDetails, JobStatus, JobType
from typer.testing import CliRunner

from jobs.cli import app
from jobs.commands.job_server import (
    STOP_MARGIN_S,
    JobClient,
    Submission,
    connect,
    follow,
    new_submission_id,
    place_job,
    runtime_env,
)
from pipeline.errors import JobError, ResourceError
from pipeline.job.job import Job
from pipeline.report.status import run_status
from pipeline.verify.verify import verify_run
from tests.servers.gated_pictures import GatedPictures

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's use of aiohttp
ROOT = Path(__file__).parent.parent.parent.parent
ELSEWHERE = "http://head.example:8265"
SOURCES, FREE = 4, 2


def job_of(**sections: Any) -> Job:
    places = {"manifest": "s3://photos/m.parquet", "output": "s3://photos/run"}
    return Job.model_validate(places | sections)


# what travels


def test_what_travels_is_what_the_job_says_on_the_cluster_it_is_on() -> None:
    job = job_of(edit={"steps": 7}, resources={"actors": 2})
    assert yaml.safe_load(place_job(job, ELSEWHERE, False)) == {
        "manifest": "s3://photos/m.parquet",
        "output": "s3://photos/run",
        "edit": {"steps": 7},
        "resources": {"actors": 2, "ray_address": "auto"},
    }


def test_places_of_this_machine_are_refused_by_name_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "dino").mkdir()
    job = job_of(
        manifest=["s3://photos/a.parquet", "b.parquet"],
        output="out/run",
        model={
            "checkpoint": "/models/sd15",
            "config": "owner/name",
            "loras": ["owner/name", {"file": "/loras/ink.safetensors", "weight": 0.5}],
            "embeddings": ["s3://photos/x.safetensors", str(tmp_path / "dino")],
            "vae": "./vae",
        },
        judge={"structure": str(tmp_path / "dino")},
    )
    with pytest.raises(JobError) as refused:
        place_job(job, ELSEWHERE, False)
    named = re.findall(r"^  (\S+): (.*)$", str(refused.value), re.MULTILINE)
    assert dict(named) == {
        "manifest.1": str(Path.cwd() / "b.parquet"),
        "output": str(Path.cwd() / "out/run"),
        "model.checkpoint": "/models/sd15",
        "model.vae": str(Path.cwd() / "vae"),
        "model.loras.1.file": "/loras/ink.safetensors",
        "model.embeddings.1.file": str(tmp_path / "dino"),
        "judge.structure": str(tmp_path / "dino"),
    }


def test_places_on_a_disk_of_all_nodes_travel_absolute() -> None:
    job = job_of(
        manifest=["s3://photos/a.parquet", "b.parquet"],
        output="out/run",
        model={"loras": ["owner/name", {"file": "./ink.safetensors", "weight": 0.5}]},
    )
    placed = Job.model_validate(yaml.safe_load(place_job(job, ELSEWHERE, True)))
    assert placed.manifest == ["s3://photos/a.parquet", str(Path.cwd() / "b.parquet")]
    assert placed.output == str(Path.cwd() / "out/run")
    assert [(each.file, each.weight) for each in placed.model.loras] == [
        ("owner/name", 1.0),
        (str(Path.cwd() / "ink.safetensors"), 0.5),
    ]


def test_neither_variables_nor_credentials_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    job = job_of(storage_options={"endpoint_url": "https://storage.example.com"})
    along = runtime_env("folder", 12.5, with_code=False)
    assert along == {
        "working_dir": "folder",
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(13 + STOP_MARGIN_S)},
    }
    assert "secret" not in place_job(job, ELSEWHERE, False)


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "auto"])
def test_an_address_that_is_no_job_server_is_refused(address: str) -> None:
    with pytest.raises(JobError, match=r"expected a job server's address, such as http"):
        connect(address)


def test_where_nothing_answers_it_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that is given counts, whatever Ray's variables say."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:7")
    with pytest.raises(
        ResourceError, match=r"answers at http://127\.0\.0\.1:9 .*Is the cluster up"
    ):
        connect("http://127.0.0.1:9")
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:7"


def test_a_token_that_is_missing_is_told() -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Silence."""

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ResourceError, match=r"asks for a token.*set RAY_AUTH_MODE=token"):
            connect(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("s3://photos/recoloured/", "fpe-recoloured-"),
        ("/data/My réd cats!", "fpe-My-r-d-cats-"),
        ("s3://photos/" + "x" * 60, "fpe-" + "x" * 40 + "-"),
        ("/", "fpe-"),
    ],
)
def test_ids_name_the_run_folder_and_no_two_are_alike(output: str, name: str) -> None:
    one, other = new_submission_id(output), new_submission_id(output)
    assert re.fullmatch(re.escape(name) + "[0-9a-f]{8}", one)
    assert one != other


class LogThatBreaksOff:
    """A job whose log ends early, and begins anew when it is opened again."""

    ANSWERS = (["one\n", "two\n"], ["one\ntw", "o\nthree\n"], ["one\ntwo\nthree\nend\n"])

    def __init__(self) -> None:
        self.opened = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        del job_id
        self.opened += 1
        for lines in self.ANSWERS[self.opened - 1]:
            yield lines

    def get_job_info(self, job_id: str) -> JobDetails:
        has_ended = self.opened == len(self.ANSWERS) - 1
        status = JobStatus.SUCCEEDED if has_ended else JobStatus.RUNNING
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=job_id, status=status, entrypoint="fpe"
        )


def test_a_log_that_ends_before_its_job_is_opened_again_and_nothing_comes_twice() -> None:
    client, log = LogThatBreaksOff(), list[str]()
    assert follow(client, Submission(ELSEWHERE, "fpe-run-0"), log.append) == 0
    assert "".join(log) == "one\ntwo\nthree\nend\n"


# to a real job server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The job server of a Ray of its own; its jobs run this code."""
    programs = Path(sys.executable).parent
    own = {k: v for k, v in os.environ.items() if k != "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"}
    environment = own | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",  # a token would outlive this module in Ray's client
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is at work when it ends
    }
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as home:
        start = [
            *(programs / "ray", "start", "--head", "--block", "--disable-usage-stats"),
            *("--num-cpus=3", "--num-gpus=0", f"--object-store-memory={128 * 2**20}"),
            *("--port=0", "--dashboard-port=0", "--dashboard-host=127.0.0.1"),
            # Its default is one port for all Rays of a machine; without it no job is taken.
            *("--dashboard-agent-listen-port=0", f"--temp-dir={home}"),
        ]
        with subprocess.Popen(
            start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as head:
            assert head.stdout is not None
            said, found = "", None
            for line in head.stdout:
                said += line
                if found := re.search(r"RAY_API_SERVER_ADDRESS='(http://[^']+)'", line):
                    break
            assert found, said
            yield found[1]
            head.terminate()  # with --block it ends what it started


@pytest.fixture
def pictures(
    picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> Iterator[GatedPictures]:
    with GatedPictures(png(picture()), FREE) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.opened.set()
        server.shutdown()


@pytest.fixture
def job_file(tmp_path: Path, tiny_checkpoint: Path, pictures: GatedPictures) -> Path:
    """Sources of which some come only later, one edit and one block each."""
    urls = [pictures.url(number) for number in range(SOURCES)]
    table = pa.table({"image": urls, "target_prompt": ["a red cat"] * SOURCES})
    pq.write_table(table, tmp_path / "manifest.parquet")
    job = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
        "resources": {"actors": 1, "groups_per_block": 1},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job), encoding="utf-8")
    return file


@pytest.mark.endurance
@pytest.mark.soak
def test_a_job_that_is_stopped_keeps_what_arrived_and_the_same_submit_goes_on(
    address: str, job_file: Path, pictures: GatedPictures
) -> None:
    command = [sys.executable, "-m", "jobs", "submit", str(job_file), "--address", address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as following:
        assert following.stdout is not None
        seen = []
        for line in following.stdout:
            seen.append(line)
            if re.search(rf" [1-9]\d*/{SOURCES} edits", line):
                break  # the first sources have arrived, and the others do not come
        following.send_signal(signal.SIGINT)
        said = following.stdout.read()
    assert following.returncode == 130, "".join(seen) + said
    submission_id = seen[0].removeprefix("Submitted ").strip()
    assert submission_id.startswith("fpe-run-")
    assert f"no longer following {submission_id}, which continues" in said
    assert f"ray job stop --address {address} {submission_id}" in said

    client = connect(address)
    info = client.get_job_info(submission_id)
    assert info.status == "RUNNING"
    assert info.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(10 + STOP_MARGIN_S)}
    client.stop_job(submission_id)  # type: ignore[attr-defined]
    log: list[str] = []
    assert follow(client, Submission(address, submission_id), log.append) == 143
    assert "finished first" in "".join(log)
    stopped = run_status(str(job_file.parent / "run"))
    assert 1 <= stopped.done <= FREE
    assert stopped.lease is not None
    assert stopped.lease.is_released, "it was killed before it could end"

    pictures.opened.set()
    again = CliRunner().invoke(app, ["submit", str(job_file), "--address", address])
    assert again.exit_code == 0, again.output
    made = int(re.search(r"accepted +(\d+)", again.output)[1])  # type: ignore[index]
    assert made == SOURCES - stopped.done
    verified = verify_run(Job.model_validate(yaml.safe_load(job_file.read_text())))
    assert (verified.accepted, verified.pending, verified.problems) == (SOURCES, 0, ())


def test_its_exit_code_is_the_runs_and_the_program_can_travel(address: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"manifest": str(tmp_path / "no"), "output": str(tmp_path)}))
    told = CliRunner().invoke(
        app, ["submit", str(file), "--address", address, "--with-code", "--detach"]
    )
    assert told.exit_code == 0, told.output
    submission_id = re.match(r"Submitted (\S+)", told.output)[1]  # type: ignore[index]
    assert f"--follow {submission_id}" in told.output
    client: JobClient = connect(address)
    log: list[str] = []
    assert follow(client, Submission(address, submission_id), log.append) == 2
    assert str(tmp_path / "no") in "".join(log)
    assert len(client.get_job_info(submission_id).runtime_env["py_modules"]) == 3
