"""The shell script of the nightly CronJob, run against a `kubectl` that plays a cluster."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
from dataclasses import dataclass

import pytest
import yaml

FILE = pathlib.Path(__file__).parent.parent.parent.parent / "jobs" / "cluster" / "nightly.yaml"
RAYJOB = "rayjob.ray.io/fpe-x7k2p"
UNREACHABLE, GONE, NEW = "unreachable", "gone", ""
KUBECTL = f"""#!/bin/sh
printf '%s\\n' "$*" >> calls
case "$1" in
  create) echo {RAYJOB} ;;
  get)
    status=$(head -n 1 answers); sed -i 1d answers
    case "$status" in
      {UNREACHABLE}) echo "the API server does not answer" >&2; exit 1 ;;
      {GONE}) case "$*" in
          *--ignore-not-found*) ;;
          *) echo "NotFound" >&2; exit 1 ;;
        esac ;;
      *) printf '%s %s' fpe-x7k2p "$status" ;;
    esac ;;
  *) case " $REFUSES " in *" $1 "*) echo "$1 is refused" >&2; exit 1 ;; esac ;;
esac
"""
"""Notes each call; `get` prints the next answer. Where none is left `sleep` ends the script."""


@dataclass(frozen=True)
class Night:
    code: int
    said: str
    calls: list[str]
    unread: str

    def called(self, verb: str) -> list[str]:
        return [call for call in self.calls if call.startswith(verb)]


def a_night(folder: pathlib.Path, *answers: str, refuses: str = "") -> Night:
    """Runs the container's command; the cluster gives these answers about the RayJob, in turn."""
    for name, text in {
        "kubectl": KUBECTL,
        "sleep": '#!/bin/sh\ntest -s answers || kill "$PPID"\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    *_, job = yaml.safe_load_all(FILE.read_text(encoding="utf-8"))
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    own = {"JOB_NAME": "fpe-nightly-29", "JOB_UID": "0b1c", "REFUSES": refuses}
    done = subprocess.run(
        [*container["command"], *container["args"]],
        cwd=folder,
        env=own | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    calls = (folder / "calls").read_text().splitlines()
    return Night(done.returncode, done.stdout, calls, (folder / "answers").read_text())


def test_a_night_that_went_well_is_waited_for_and_deleted(tmp_path: pathlib.Path) -> None:
    night = a_night(tmp_path, NEW, "Initializing", "Running", "Complete")
    assert night.code == 0
    assert night.called("create") == ["create -f /etc/fpe/rayjob.yaml -o name"]
    assert night.called("delete") == [f"delete {RAYJOB} --wait=false"]
    assert night.unread == ""


@pytest.mark.parametrize("status", ["Failed", "ValidationFailed"])
def test_a_night_that_failed_is_kept_and_says_where_to_look(
    tmp_path: pathlib.Path, status: str
) -> None:
    night = a_night(tmp_path, "Running", "Retrying", status)
    assert night.code == 1
    assert f"kubectl describe {RAYJOB}" in night.said
    assert night.called("delete") == []


def test_a_rayjob_that_somebody_deleted_ends_the_night(tmp_path: pathlib.Path) -> None:
    night = a_night(tmp_path, "Running", GONE)
    assert (night.code, night.called("delete")) == (1, [])
    assert f"{RAYJOB} is gone" in night.said


def test_an_api_server_that_does_not_answer_is_asked_again(tmp_path: pathlib.Path) -> None:
    night = a_night(tmp_path, UNREACHABLE, "Running", UNREACHABLE, "Complete")
    assert night.code == 0
    assert len(night.called("get")) == 4


def test_a_rayjob_goes_with_the_job_of_its_night(tmp_path: pathlib.Path) -> None:
    """The CronJob's failedJobsHistoryLimit bounds what is kept of nights that failed."""
    (patch,) = a_night(tmp_path, "Complete").called("patch")
    *_, option, merged = shlex.split(patch.replace('"', r"\""))
    assert option == "-p"
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "fpe-nightly-29", "uid": "0b1c"}
    assert json.loads(merged) == {"metadata": {"ownerReferences": [owner]}}


@pytest.mark.parametrize("verb", ["patch", "delete"])
def test_tidying_that_is_refused_does_not_end_a_night(tmp_path: pathlib.Path, verb: str) -> None:
    night = a_night(tmp_path, "Running", "Complete", refuses=verb)
    assert night.code == 0
    assert RAYJOB in night.said
