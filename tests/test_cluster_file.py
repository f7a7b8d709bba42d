"""cluster.yaml is what Ray's launcher and AWS take: a misspelt key shows here, not on a bill."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import botocore
import jsonschema
import pytest
import ray
import yaml

FILE = pathlib.Path(__file__).parent.parent / "cluster.yaml"
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
    nodes = cluster.get("available_node_types", {})
    if cluster.get("head_node_type") not in nodes:
        found.append("head_node_type names no node type")
    for name, node in nodes.items():
        found += [f"{name}: no resource {r}" for r in set(node.get("resources", {})) - RESOURCES]
        found += unknown_to_aws(node.get("node_config", {}), "RunInstancesRequest", name)
    return found


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


def cluster_file() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def test_the_launcher_takes_the_file() -> None:
    assert problems(cluster_file()) == []


def key_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if path[:1] != ("file_mounts",) and path != ("available_node_types",):
                yield (*path, key)
            yield from key_paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from key_paths(item, (*path, number))


@pytest.mark.parametrize(
    "path", list(key_paths(cluster_file())), ids=lambda p: ".".join(map(str, p))
)
def test_a_misspelt_key_is_found(path: tuple[str | int, ...]) -> None:
    broken = copy.deepcopy(cluster_file())
    holder: Any = broken
    for step in path[:-1]:
        holder = holder[step]
    holder[f"{path[-1]}x"] = holder.pop(path[-1])
    assert problems(broken)


def test_the_head_takes_no_tasks_and_gpu_workers_come_and_go() -> None:
    cluster = cluster_file()
    nodes = cluster["available_node_types"]
    assert nodes[cluster["head_node_type"]]["resources"]["CPU"] == 0
    assert any("--num-cpus=0" in command for command in cluster["head_start_ray_commands"])
    gpu_nodes = [node for node in nodes.values() if node["resources"].get("GPU")]
    assert gpu_nodes
    for node in gpu_nodes:
        assert 1 <= node["min_workers"] <= node["max_workers"], "a pool is sized when a job starts"
    workers = sum(n["max_workers"] for k, n in nodes.items() if k != cluster["head_node_type"])
    assert cluster["max_workers"] == workers


def test_the_containers_hold_the_pinned_ray() -> None:
    pins = (FILE.parent / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^ray==(.+)$", pins, re.MULTILINE)
    assert pinned is not None
    docker = cluster_file()["docker"]
    for image in (docker["head_image"], docker["worker_image"]):
        assert re.search(r"ray:([0-9.]+)-", image).group(1) == pinned[1]  # type: ignore[union-attr]
