"""The stages that Ray Data makes of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import ray
from ray.data._internal.logical.optimizers import get_execution_plan

from pipeline.cluster.actor_kinds import ActorKind
from pipeline.cluster.graph import _dataset, _reader_memory_bytes
from pipeline.cluster.pool import Pool
from pipeline.edit.settings import EditSettings
from pipeline.plan.work_list import WorkSlice
from pipeline.read.decode import DecodeSettings
from pipeline.storage.folder import Folder

KIND = ActorKind(
    actors=2, cpus_per_actor=1.0, gpus_per_actor=0.0, threads_per_actor=1, memory_share=1.0
)


@pytest.mark.parametrize(
    "kinds",
    [
        (KIND,),
        (replace(KIND, cpus_per_actor=2.0),),
        (replace(KIND, gpus_per_actor=1.0),),
        (replace(KIND, gpus_per_actor=1.0), KIND),
    ],
    ids=["1 CPU", "2 CPUs", "GPU", "both"],
)
@pytest.mark.parametrize("readers", [None, 1, 3])
@pytest.mark.usefixtures("ray_cluster")
def test_images_are_decoded_by_tasks_and_not_inside_of_the_actors(
    kinds: tuple[ActorKind, ...], readers: int | None, tmp_path: Any
) -> None:
    dataset = _dataset(
        Folder.open(str(tmp_path)),
        [(WorkSlice("work", 0, 1),), (WorkSlice("work", 1, 1),)],
        None,
        decoding=DecodeSettings(),
        editing=EditSettings(output="", checkpoint="", checkpoint_fingerprint="", device="cpu"),
        pool=Pool(kinds, groups_per_block=1, readers=readers),
        supervisor=cast(Any, None),
        actors=2,
    )
    plan = get_execution_plan(dataset._logical_plan)
    stages, stage = [], (plan[0] if isinstance(plan, tuple) else plan).dag
    while True:
        stages.append(stage.name)
        if not stage.input_dependencies:
            break
        (stage,) = stage.input_dependencies
    actor, *before = stages
    assert "Edit" in actor
    assert "->" not in actor
    assert before[0] == "ReadWorkList->MapBatches(_decode_block)"


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_that_read_request_the_memory_of_the_largest_image() -> None:
    """But never more than a machine has: they would wait for ever."""
    small = DecodeSettings(max_pixels=1)
    (node,) = (each["Resources"]["memory"] for each in ray.nodes())
    assert _reader_memory_bytes(small) == min(small.memory_bytes, int(node / 2))
    assert _reader_memory_bytes(DecodeSettings(max_pixels=10**15)) == int(node / 2)
