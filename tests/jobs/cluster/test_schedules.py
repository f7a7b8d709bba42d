"""The files that start a job on Kubernetes or every night are what those who read them take."""

from __future__ import annotations

import configparser
import copy
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
import yaml
from kubernetes_validate import validate

from jobs.cli import app
from jobs.commands.job_server import STOP_MARGIN_S
from jobs.terminal import exits
from pipeline.job.ending import StopSection
from tests.jobs.cluster.kuberay_schema import KUBERNETES, problems, refused_by_operator

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
FOLDER = ROOT / "jobs" / "cluster"
CRON, NIGHTLY = "raycronjob.yaml", "nightly.yaml"
FILES = ["rayjob.yaml", CRON, NIGHTLY]


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def ray_job() -> dict[str, Any]:
    (manifest,) = manifests("rayjob.yaml")
    spec: dict[str, Any] = manifest["spec"]
    return spec


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The head and the groups of workers, by name."""
    cluster = job["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]} | workers


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container in a manifest, wherever it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from inner if key == "containers" else containers(inner)
    elif isinstance(value, list):
        for item in value:
            yield from containers(item)


# what Kubernetes and KubeRay take


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_and_kuberay_take_the_file(name: str) -> None:
    found = {manifest["kind"]: problems(manifest) for manifest in manifests(name)}
    assert found
    assert not any(found.values()), found


def test_what_kubernetes_has_itself_is_also_taken_by_its_validator() -> None:
    kinds = {validate(m, KUBERNETES, strict=True) and m["kind"] for m in manifests("nightly.yaml")}
    assert kinds == {"ServiceAccount", "Role", "RoleBinding", "CronJob"}


CHOSEN_BY_US = {"labels", "limits", "requests", "rayStartParams", "env_vars", "allocatable"}


def key_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key that is not a name of our own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not CHOSEN_BY_US & set(path[-1:]):
                yield (*path, key)
            yield from key_paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from key_paths(item, (*path, number))


def once(paths: Iterator[tuple[str | int, ...]]) -> Iterator[tuple[str | int, ...]]:
    """One path of those that differ in their numbers only, and of pods that are the same."""
    seen = set()
    for path in paths:
        names = tuple(step for step in path if isinstance(step, str))[-2:]
        if names not in seen:
            seen.add(names)
            yield path


@pytest.mark.parametrize(("name", "least"), [("rayjob.yaml", 60), (CRON, 10), (NIGHTLY, 40)])
def test_a_misspelt_key_is_found(name: str, least: int) -> None:
    checked, in_rayjob = 0, ray_job().keys()
    for manifest in manifests(name):
        for path in once(key_paths(manifest)):
            if name == CRON and set(path[2:3]) & in_rayjob:
                continue  # is the same there
            broken = copy.deepcopy(manifest)
            holder: Any = broken
            for step in path[:-1]:
                holder = holder[step]
            holder[f"{path[-1]}x"] = holder.pop(path[-1])
            assert problems(broken), path
            checked += 1
    assert checked >= least


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"shutdownAfterJobFinishes": False}, "needs shutdownAfterJobFinishes"),
        (
            {"deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]}},
            "exclude",
        ),
    ],
)
def test_deletion_is_said_in_one_way(change: dict[str, Any], refusal: str) -> None:
    assert any(refusal in said for said in refused_by_operator(ray_job() | change))


def test_a_job_says_where_it_runs_and_groups_scale_the_right_way() -> None:
    assert list(refused_by_operator(ray_job())) == []
    job = ray_job()
    del job["rayClusterSpec"]
    assert any("says where it runs" in said for said in refused_by_operator(job))
    job = ray_job() | {"suspend": True, "shutdownAfterJobFinishes": False}
    assert any("suspend needs" in said for said in refused_by_operator(job))
    job = ray_job()
    job["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] = 10**6
    assert any("above maxReplicas" in said for said in refused_by_operator(job))
    job = ray_job()
    job["rayClusterSpec"]["workerGroupSpecs"][0]["idleTimeoutSeconds"] = 60
    del job["rayClusterSpec"]["autoscalerOptions"]["version"]
    assert any("needs autoscaler v2" in said for said in refused_by_operator(job))


def test_a_rayjob_goes_after_what_it_owns() -> None:
    (manifest,) = manifests("raycronjob.yaml")
    job = manifest["spec"]["jobTemplate"]
    rules = job["deletionStrategy"]["deletionRules"]
    rules[0]["condition"]["ttlSeconds"] = rules[1]["condition"]["ttlSeconds"] + 1
    assert list(refused_by_operator(job)) == ["SUCCEEDED: what holds the other goes first"]


# what ours promise


def test_both_nightly_runs_are_the_one_off_but_for_the_deletion() -> None:
    (cron,) = manifests("raycronjob.yaml")
    deletion = {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "deletionStrategy"}
    one, night = (
        {key: value for key, value in spec.items() if key not in deletion}
        for spec in (ray_job(), cron["spec"]["jobTemplate"])
    )
    assert one == night
    *_, job = manifests("nightly.yaml")
    (container,) = containers(job)
    assert "kubectl create -f /etc/fpe/rayjob.yaml" in container["args"][0]
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == (
        cron["spec"]["schedule"],
        cron["spec"]["timeZone"],
    )


def test_a_night_does_not_start_beside_the_last_one_and_ends_before_the_next() -> None:
    account, role, binding, job = manifests("nightly.yaml")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    night = job["spec"]["jobTemplate"]["spec"]
    one_day_s = 24 * 3600
    assert ray_job()["activeDeadlineSeconds"] < night["activeDeadlineSeconds"] < one_day_s
    assert night["backoffLimit"] == 0, "a second pod would make a second RayJob"
    assert role["rules"] == [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayjobs"],
            "verbs": ["create", "get", "patch", "delete"],
        }
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert night["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_decoding_and_editing_have_groups_and_the_head_has_no_work() -> None:
    job = ray_job()
    by_name = groups(job)
    assert by_name["head"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {
        name: next(containers(group))["resources"]["limits"].get("nvidia.com/gpu")
        for name, group in by_name.items()
    }
    assert gpus == {"head": None, "decode": None, "edit": "1"}
    for name in ("decode", "edit"):
        group = by_name[name]
        assert group["minReplicas"] == group["replicas"] < group["maxReplicas"]
    least = {name: by_name[name]["minReplicas"] for name in ("decode", "edit")}
    assert least == {"decode": 1, "edit": 0}, "no GPU waits for a job"
    assert job["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["backoffLimit"] >= 1


@pytest.mark.parametrize("name", FILES)
def test_every_container_has_limits_and_no_rights(name: str) -> None:
    found = [c for manifest in manifests(name) for c in containers(manifest)]
    assert found
    for container in found:
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), container["name"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_nodes_are_probed_and_secrets_are_references() -> None:
    for name, group in groups(ray_job()).items():
        (container,) = containers(group)
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}, name
        assert container["envFrom"] == [{"secretRef": {"name": "fpe-storage", "optional": True}}]
        assert "env" not in container
        spill = group["rayStartParams"]["object-spilling-directory"]
        assert spill in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_stop_waits_for_the_sources_in_hand() -> None:
    variables = yaml.safe_load(ray_job()["runtimeEnvYAML"])["env_vars"]
    grace_s = StopSection().grace_s
    assert variables == {"RAY_JOB_STOP_WAIT_TIME_S": str(round(grace_s) + STOP_MARGIN_S)}


# the image


def test_the_image_is_the_one_that_is_built_and_holds_the_pinned_ray() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image = f"{project['name']}:{project['version']}"
    assert f"docker build -f jobs/cluster/Dockerfile -t {image} ." in text
    named = {
        c["image"]
        for name in ("rayjob.yaml", "raycronjob.yaml")
        for manifest in manifests(name)
        for c in containers(manifest)
    }
    assert named == {image}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    ray_version = re.search(r"^ray==(.+)$", pins, re.MULTILINE)[1]  # type: ignore[index]
    assert f"FROM rayproject/ray:{ray_version}-py311-gpu\n" in text
    assert ray_job()["rayClusterSpec"]["rayVersion"] == ray_version


def test_the_image_is_made_of_what_is_there_and_let_through() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        source
        for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied
    assert all((ROOT / source).exists() for source in copied)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# one machine


def shell_commands() -> Iterator[list[str]]:
    """Every `fpe` that a schedule starts, as words."""
    yield shlex.split(ray_job()["entrypoint"])
    (line,) = re.findall(r"^[\d*/, -]+ (fpe .*)$", crontab(), re.MULTILINE)
    yield shlex.split(line.partition(" >> ")[0])
    words = shlex.split(unit("fpe-nightly.service")["Service"]["ExecStart"])
    yield [pathlib.Path(words[0]).name, *words[1:]]


def crontab() -> str:
    return (FOLDER / "crontab").read_text(encoding="utf-8")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=["="], strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((FOLDER / name).read_text(encoding="utf-8"))
    return parser


def test_what_is_started_is_a_command_with_options_it_has() -> None:
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {name for parameter in run.params for name in parameter.opts}
    for words in shell_commands():
        assert words[:3] == ["fpe", "run", "/etc/fpe/job.yaml"]
        assert {word for word in words if word.startswith("--")} <= options
        assert all(word.startswith("--") or "=" in word for word in words[3:])


def test_a_folder_in_use_is_no_failure_and_a_stop_is_none() -> None:
    assert "--skip-if-in-use" in ray_job()["entrypoint"].split()
    fine = unit("fpe-nightly.service")["Service"]["SuccessExitStatus"].split()
    assert set(map(int, fine)) == {exits.IN_USE, exits.TERMINATED}
    assert f"|| test $? -eq {exits.IN_USE} ||" in crontab()


SYSTEMD = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        *("Type", "User", "ExecStart", "SuccessExitStatus", "EnvironmentFile", "KillMode"),
        *("TimeoutStopSec", "TimeoutStartSec", "Nice"),
        *("NoNewPrivileges", "PrivateTmp", "ProtectSystem"),
    },
    "Timer": {"OnCalendar", "Persistent", "RandomizedDelaySec"},
    "Install": {"WantedBy"},
}
"""What we use of systemd.unit(5), .service(5), .exec(5), .kill(5) and .timer(5)."""


@pytest.mark.parametrize("name", ["fpe-nightly.service", "fpe-nightly.timer"])
def test_units_have_keys_that_systemd_knows(name: str) -> None:
    parsed = unit(name)
    assert parsed.sections()
    for section in parsed.sections():
        assert set(parsed[section]) <= SYSTEMD[section]


def test_systemd_stops_the_run_alone_and_waits_for_it() -> None:
    service = unit("fpe-nightly.service")["Service"]
    assert service["KillMode"] == "mixed", "workers end when the run lets go of them"
    assert int(service["TimeoutStopSec"]) == StopSection().grace_s + STOP_MARGIN_S
