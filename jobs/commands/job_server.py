"""`fpe submit`: runs a job on a Ray cluster through its job server, which needs no open terminal.

    uploaded       the job, with overrides, as job.yaml; with `with_code` this program too
    not uploaded   manifests, images, run folders, environment variables, credentials
    returned       the log as it is written, and the exit code of `fpe run` there

Local paths are refused unless all nodes of the cluster are this machine, or `shared_disk` states
that all nodes have the same disk.

The job server stops a job with SIGTERM, and by default with SIGKILL three seconds later. The job's
runtime environment sets a longer time: `stop.grace_s` for the sources in progress, and
`STOP_MARGIN_S`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml

from jobs.terminal.exits import OK, STOPPED, TERMINATED
from pipeline.errors import Interrupted, JobError, ResourceError
from pipeline.job.job import Job
from pipeline.redact import redact_url
from pipeline.storage.folder import absolute_url, is_local_path

JOB_FILE = "job.yaml"
STOP_MARGIN_S = 30
"""Time for the last commit, the summary, and ending Ray."""
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_S = 0.5
_AGENT_WAIT_S = 60.0
_LONGEST_NAME = 40
_NO_AGENT_YET = "No available agent to submit job"
"""The job server's message while its agent has not started yet; nothing is submitted then."""
_VERBOSE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_CODE_FOLDER = Path(__file__).parent.parent.parent
_CODE_PACKAGES = ("fpe_core", "pipeline", "jobs")
_log = logging.getLogger(__name__)


class JobLogs(Protocol):
    """The methods of Ray's JobSubmissionClient that are needed to follow a job."""

    def get_job_info(self, job_id: str) -> Any: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


class JobClient(JobLogs, Protocol):
    """The methods that are needed to submit and follow a job."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
    ) -> str: ...


@dataclass(frozen=True)
class Submission:
    """A job on a cluster: the address of its job server, and Ray's id of the job."""

    address: str
    submission_id: str

    def how_to(self) -> str:
        """The commands that follow and stop it, one per line."""
        where = f"--address {redact_url(self.address)}"
        return (
            f"  follow   ray job logs {where} --follow {self.submission_id}\n"
            f"  stop     ray job stop {where} {self.submission_id}"
        )


def submit(
    job: Job, address: str, *, shared_disk: bool = False, with_code: bool = False
) -> tuple[JobClient, Submission]:
    """Submits a job to the job server at an http:// or https:// address.

    Raises JobError for local paths that the cluster does not have, ResourceError if no job server
    answers or it refuses the job.
    """
    client = connect(address)
    travels = place_job(job, address, shared_disk or _is_here(node_ips(address)))
    with tempfile.TemporaryDirectory(prefix="fpe-submit-") as folder:
        (Path(folder) / JOB_FILE).write_text(travels, encoding="utf-8")
        with _refusals(address):
            submission_id = _hand_over(
                client,
                # exec: the signal to stop reaches the run itself, and only once
                entrypoint=f"exec python -m jobs run {JOB_FILE}",
                submission_id=new_submission_id(job.output),
                runtime_env=runtime_env(folder, job.stop.grace_s, with_code=with_code),
                metadata={"output": redact_url(job.output)},
            )
    return client, Submission(address, submission_id)


def follow(client: JobLogs, submission: Submission, write: Callable[[str], object]) -> int:
    """Writes the job's log, from its start, until it ends; returns the exit code of `fpe run`.

    If the log ends before the job does, it is opened again at the same place.

    Returns 143 for a job that was stopped, and 1 for one that never ran or whose exit code is
    unknown; then Ray's message is written, too. Raises Interrupted if following was interrupted:
    the job continues, and the message says how to follow or stop it. Raises ResourceError if the
    connection to the job server was lost.
    """
    try:
        with _lost(submission):
            info = _followed(client, submission.submission_id, write)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(
            f"no longer following {submission.submission_id}, which continues.\n"
            f"{submission.how_to()}"
        ) from interrupt
    return _exit_code(info, write)


def connect(address: str) -> JobClient:
    """Ray's client for a job server.

    Raises JobError for an address that is not http(s), ResourceError if no job server answers.
    """
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise JobError(
            f"--address {address}: expected a job server's address, such as http://127.0.0.1:8265 "
            "(the dashboard of the cluster's head)"
        )
    from ray.job_submission import JobSubmissionClient  # takes a second to load

    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _only_that_address(), _refusals(address):
        client: JobClient = JobSubmissionClient(address)
        return client


def node_ips(address: str) -> tuple[str, ...]:
    """The IP addresses of the nodes that are up. Raises ResourceError if they cannot be listed."""
    from ray.util.state import list_nodes

    with _only_that_address(), _refusals(address):
        nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")])
        return tuple(node.node_ip for node in nodes)


def runtime_env(folder: str, grace_s: float, *, with_code: bool) -> dict[str, Any]:
    """The job's runtime environment: the folder to upload, this program if wanted, and how long a
    stop waits."""
    wait_s = math.ceil(grace_s) + STOP_MARGIN_S
    environment: dict[str, Any] = {
        "working_dir": folder,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)},
    }
    if with_code:
        environment["py_modules"] = [str(_CODE_FOLDER / name) for name in _CODE_PACKAGES]
        environment["excludes"] = ["__pycache__"]
    return environment


def new_submission_id(output: str) -> str:
    """An id for Ray that names the run folder: `fpe-recoloured-3f9a1c2b` for s3://photos/recoloured.

    Ray names log files after it, so it has only letters, digits, dots and dashes.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", output.rstrip("/").rpartition("/")[2]).strip("-.")
    return "-".join(filter(None, ("fpe", name[:_LONGEST_NAME], secrets.token_hex(4))))


def _hand_over(client: JobClient, **request: Any) -> str:
    """Submits the job; returns Ray's id of it. Waits up to a minute for a cluster that just
    started."""
    until = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return client.submit_job(**request)
        except RuntimeError as error:
            if _NO_AGENT_YET not in str(error) or time.monotonic() > until:
                raise
            _log.info("the cluster is up, but not ready for jobs yet; trying again")
            time.sleep(_POLL_S)


def place_job(job: Job, address: str, is_same_disk: bool) -> str:
    """The job file to upload, as YAML: the keys that the job sets, with local paths made absolute.

    The run connects to the cluster that it is started in. Raises JobError, which lists the local
    paths, if the nodes do not have this disk.
    """
    local = _local_places(job)
    if local and not is_same_disk:
        paths = "\n".join(f"  {key}: {place}" for key, place in local.items())
        raise JobError(
            "these paths are on this machine, and nodes of the cluster at "
            f"{redact_url(address)} are other machines:\n{paths}\nPut the files into an object "
            "store (s3://, gs://, abfs://) and name them there. If all nodes have the same disk "
            "at the same path, give --shared-disk."
        )
    data = job.model_dump(mode="json", exclude_unset=True)
    for key, place in local.items():
        _set(data, key, place)
    data.setdefault("resources", {})["ray_address"] = "auto"
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _local_places(job: Job) -> Mapping[str, str]:
    """Absolute local paths by the key that names them; several manifests by their number."""
    many = isinstance(job.manifest, list)
    urls = {f"manifest.{n}" if many else "manifest": u for n, u in enumerate(job.manifest_urls)}
    urls["output"] = job.output
    places = {key: absolute_url(url) for key, url in urls.items()}
    places = {key: place for key, place in places.items() if is_local_path(place)}
    models: dict[str, str | None] = {
        f"model.{name}": getattr(job.model, name) for name in ("checkpoint", "config", "vae")
    }
    for name in ("loras", "embeddings"):
        for number, each in enumerate(getattr(job.model, name)):
            models[f"model.{name}.{number}.file"] = each.file
    if job.judge is not None:
        for name in ("clip", "structure", "lpips"):
            models[f"judge.{name}"] = getattr(job.judge, name)
    for key, source in models.items():  # otherwise it is a built-in model or a hub id
        path = Path(source or "").expanduser()
        if source and (path.exists() or source.startswith(("/", "~", "./", "../"))):
            places[key] = str(path.absolute())
    return places


def _set(data: dict[str, Any], key: str, value: str) -> None:
    *sections, last = key.split(".")
    holder: Any = data
    for section in sections:
        is_list = isinstance(holder, list)
        holder = holder[int(section)] if is_list else holder.setdefault(section, {})
    holder[int(last) if isinstance(holder, list) else last] = value


def _is_here(ips: Iterable[str]) -> bool:
    """Whether all addresses belong to this machine: only such addresses can be bound."""
    return all(map(_can_bind, ips))


def _can_bind(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def _followed(client: JobLogs, job_id: str, write: Callable[[str], object]) -> Any:
    """Writes the job's log until the job ends; returns the job's details."""
    written = 0
    while True:
        had_ended = (info := client.get_job_info(job_id)).status.is_terminal()
        written += asyncio.run(_write_log(client, job_id, written, write))
        if had_ended:
            return info
        time.sleep(_POLL_S)


async def _write_log(
    client: JobLogs, job_id: str, written: int, write: Callable[[str], object]
) -> int:
    """Writes what comes after the first `written` characters of the log; returns how many it
    wrote."""
    read = 0
    async for lines in client.tail_job_logs(job_id):
        if fresh := lines[max(0, written - read) :]:
            write(fresh)
        read += len(lines)
    return max(0, read - written)


def _exit_code(info: Any, write: Callable[[str], object]) -> int:
    if info.status == "SUCCEEDED":
        return OK
    if info.status == "STOPPED":
        write("stopped through the job server; the same submit continues from what is committed\n")
        return TERMINATED
    code: int | None = info.driver_exit_code
    if code is None:
        write(f"{info.message}\n")
        return STOPPED
    return code if code >= 0 else 128 - code  # killed by a signal: the exit code of a shell


@contextmanager
def _only_that_address() -> Iterator[None]:
    """Removes environment variables that Ray would prefer to the given address."""
    hidden = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Turns the errors of Ray's clients into ours, with what to do."""
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException

    where = redact_url(address)
    try:
        yield
    except OSError as error:  # the errors of requests are OSErrors, too
        raise ResourceError(
            f"no job server answers at {where} ({error}). Is the cluster up, and can this machine "
            "reach its head? A dashboard that only listens on its own machine needs a tunnel: "
            "`ray dashboard cluster.yaml`, or `kubectl port-forward`"
        ) from error
    except AuthenticationError as error:
        raise ResourceError(
            f"the job server at {where} asks for a token; this machine has none, or a wrong one: "
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        ) from error
    except (RuntimeError, RayStateApiException) as error:
        raise ResourceError(f"the job server at {where} refused: {error}") from error


@contextmanager
def _lost(submission: Submission) -> Iterator[None]:
    from aiohttp import ClientError

    try:
        yield
    except (ClientError, RuntimeError, OSError) as error:
        raise ResourceError(
            f"lost the connection to the job server at {redact_url(submission.address)} "
            f"({error}). {submission.submission_id} may still be running; `fpe status` of its run "
            f"folder shows whether it is.\n{submission.how_to()}"
        ) from error
