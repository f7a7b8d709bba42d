"""The launcher's files are what Ray's launcher and AWS take: a misspelt key shows here, not on a
bill.
"""

from __future__ import annotations

import functools
import gzip
import ipaddress
import json
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import botocore
import jsonschema
import pytest
import ray
import yaml
from click import Command, Option
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

ROOT = pathlib.Path(__file__).parent.parent
AWS = "cluster.yaml"
OWN = "jobs/cluster/on-premises.yaml"
RESOURCES = {"CPU", "GPU", "memory", "object_store_memory"}


@functools.cache
def launcher_schema() -> dict[str, Any]:
    """Ray's own schema, closed where it lets unknown keys of a provider pass."""
    text = (pathlib.Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    schema["properties"]["provider"]["additionalProperties"] = False
    return schema


@functools.cache
def aws_shapes() -> dict[str, Any]:
    """The shapes of EC2's API, as AWS publishes them with its client."""
    folder = pathlib.Path(botocore.__file__).parent / "data" / "ec2"
    newest = max(folder.iterdir())
    shapes: dict[str, Any] = json.loads(
        gzip.decompress((newest / "service-2.json.gz").read_bytes())
    )["shapes"]
    return shapes


def problems(cluster: dict[str, Any]) -> list[str]:
    """Everything that Ray's launcher or AWS would not understand."""
    validator = jsonschema.Draft7Validator(launcher_schema())
    found = [error.message for error in validator.iter_errors(cluster)]
    provider = cluster.get("provider", {})
    if provider.get("type") != "aws":
        missing = {"head_ip", "worker_ips"} - provider.keys()
        return found + [f"provider: {name} is missing" for name in missing]
    nodes = cluster.get("available_node_types", {})
    if cluster.get("head_node_type") not in nodes:
        found.append("head_node_type names no node type")
    for name, node in nodes.items():
        found += [f"{name}: no resource {r}" for r in set(node.get("resources", {})) - RESOURCES]
        found += unknown_to_aws(node.get("node_config", {}), "RunInstancesRequest", name)
    rules = provider.get("security_group", {}).get("IpPermissions", [])
    return [*found, *unknown_to_aws(rules, "IpPermissionList", "security_group")]


def unknown_to_aws(value: Any, shape_name: str, where: str) -> Iterator[str]:
    shape = aws_shapes()[shape_name]
    if shape["type"] == "structure":
        for key, inner in value.items():
            if key not in shape["members"]:
                yield f"{where}: {shape_name} has no {key}"
            else:
                yield from unknown_to_aws(inner, shape["members"][key]["shape"], f"{where}.{key}")
    elif shape["type"] == "list":
        for item in value:
            yield from unknown_to_aws(item, shape["member"]["shape"], where)
    elif "enum" in shape and value not in shape["enum"]:
        yield f"{where}: {value!r} is none of {', '.join(shape['enum'])}"


def cluster_file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", [AWS, OWN])
def test_the_launcher_takes_the_file(name: str) -> None:
    assert problems(cluster_file(name)) == []
    validate_config(prepare_config(cluster_file(name)))  # the way `ray up` begins


def key_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if path[:1] != ("file_mounts",) and path != ("available_node_types",):
                yield (*path, key)
            yield from key_paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from key_paths(item, (*path, number))


@pytest.mark.parametrize("name", [AWS, OWN])
def test_a_misspelt_key_is_found(name: str) -> None:
    paths = list(key_paths(cluster_file(name)))
    assert len(paths) > 15
    for path in paths:
        broken = cluster_file(name)
        holder: Any = broken
        for step in path[:-1]:
            holder = holder[step]
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
        assert problems(broken), path


def starts(cluster: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The words of each `ray start`, with its options by name."""
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (line,) = (line for line in commands if "ray start" in line)
        words = shlex.split(line[line.index("ray start") :])[2:]
        yield words, dict(word.partition("=")[::2] for word in words)


@pytest.mark.parametrize("name", [AWS, OWN])
def test_ray_is_started_with_options_it_has_and_no_work_on_the_head(name: str) -> None:
    command = cli.commands["start"]
    assert isinstance(command, Command)
    known = {name for o in command.params if isinstance(o, Option) for name in o.opts}
    head, worker = starts(cluster_file(name))
    for _, options in (head, worker):
        assert set(options) <= known
        assert options["--object-spilling-directory"] == "/home/ray/spill"
        assert options["--metrics-export-port"] == "8080"
    assert head[1]["--num-cpus"] == "0"
    assert head[1]["--dashboard-host"] == "127.0.0.1", "whoever reaches it can run code"
    assert "--head" in head[0]
    assert "--head" not in worker[0]


@pytest.mark.parametrize("name", [AWS, OWN])
def test_the_containers_hold_the_pinned_ray_ask_for_a_token_and_get_this_package(name: str) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^ray==(.+)$", pins, re.MULTILINE)
    assert pinned is not None
    cluster = cluster_file(name)
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert re.search(r"ray:([0-9.]+)-", image).group(1) == pinned[1]  # type: ignore[union-attr]
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    (mounted,) = (there for there, here in cluster["file_mounts"].items() if here == ".")
    (setup,) = cluster["setup_commands"]
    assert setup.startswith(f"cd {mounted} && pip install -c constraints.txt ")


def test_the_head_takes_no_tasks_and_gpu_workers_come_and_go() -> None:
    cluster = cluster_file(AWS)
    nodes = cluster["available_node_types"]
    assert nodes[cluster["head_node_type"]]["resources"]["CPU"] == 0
    gpu_nodes = [node for node in nodes.values() if node["resources"].get("GPU")]
    markets = [n["node_config"].get("InstanceMarketOptions", {}) for n in gpu_nodes]
    assert sorted(m.get("MarketType", "on demand") for m in markets) == ["on demand", "spot"]
    for node in gpu_nodes:
        assert node["min_workers"] == 0 < node["max_workers"], "no GPU waits for a job"
    assert nodes["gpu_worker_spot"]["priority"] > nodes["gpu_worker_on_demand"].get("priority", 0)
    (start,) = (line for line in cluster["head_start_ray_commands"] if "ray start" in line)
    assert "RAY_enable_autoscaler_v2=1" in start, "the first autoscaler knows no priority"
    others = [k for k in nodes if k != cluster["head_node_type"] and nodes[k] not in gpu_nodes]
    assert others, "somebody has to decode"
    workers = sum(n["max_workers"] for k, n in nodes.items() if k != cluster["head_node_type"])
    assert cluster["max_workers"] == workers
    assert cluster["idle_timeout_minutes"] > 0


def test_every_node_has_a_role_instead_of_keys_and_a_disk_to_spill_to() -> None:
    text = (ROOT / AWS).read_text(encoding="utf-8")
    assert not re.search(r"(?i)secret|access_key|password", text)
    for node in cluster_file(AWS)["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Name"]
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100


def test_no_port_is_open_to_the_world_but_the_launchers() -> None:
    """What the group has beside that comes from here; see Ray's _create_default_inbound_rules."""
    rules = cluster_file(AWS)["provider"]["security_group"]["IpPermissions"]
    ranges = [r["CidrIp"] for rule in rules for r in rule["IpRanges"]]
    assert ranges
    assert all(ipaddress.ip_network(r).is_private for r in ranges)
    assert not any("Ipv6Ranges" in rule for rule in rules)


def test_own_machines_are_all_used_and_have_one_disk() -> None:
    cluster = cluster_file(OWN)
    assert cluster["provider"]["type"] == "local"
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    assert cluster["provider"]["head_ip"] not in cluster["provider"]["worker_ips"]
    prepared = prepare_config(cluster)
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == cluster["max_workers"]
    assert "-v /data:/data" in cluster["docker"]["run_options"]
