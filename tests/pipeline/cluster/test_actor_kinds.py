"""Actors of several kinds: each finds its machine, readers keep a CPU, or what lacks is said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.actor_kinds import (
    ActorKind,
    Node,
    first_actors,
    kind_of_actor,
    place_actors,
)
from pipeline.cluster.pool import Pool, size_pool
from pipeline.errors import InsufficientCapacityError, ResourceError
from pipeline.job.job import Job
from pipeline.job.resources import PoolSection, ResourcesSection

A10G, H100 = Node(8, 4, "A10G"), Node(16, 2, "H100")
READER = Node(4)


def placed(*nodes: Node, free: float = 1, can_grow: bool = False, pools: Any) -> Any:
    sections = [PoolSection(**each) for each in pools]
    return place_actors(nodes, sections, free_cpus=free, can_grow=can_grow)


def kinds_of(*nodes: Node, **options: Any) -> tuple[ActorKind, ...]:
    return tuple(each.to_kind(nodes) for each in placed(*nodes, **options))


def test_each_kind_gets_what_is_there_of_it() -> None:
    pools = [{"accelerator": "A10G"}, {"accelerator": "H100", "gpus_per_actor": 0.5}]
    kinds = kinds_of(A10G, H100, READER, pools=pools)
    assert kinds == (
        ActorKind(4, 1, 1, 2, 1.0, "A10G", most_on_one=4, encoders_per_actor=2),
        ActorKind(4, 1, 0.5, 4, 0.5, "H100", most_on_one=4, encoders_per_actor=4),
    )


def test_actors_share_the_cores_of_their_own_machine() -> None:
    few, many = Node(4, 4), Node(32, 4)
    (kind,) = kinds_of(few, many, READER, pools=[{}])
    assert kind.threads_per_actor == 1, "what is said of all of them is true of the smallest"
    assert [kind.on_node(node).threads_per_actor for node in (few, many)] == [1, 8]
    assert kind.on_node(Node(12, 1)).threads_per_actor == 12, "one that comes later, with one GPU"
    (kind,) = kinds_of(Node(2), Node(8), pools=[{"gpus_per_actor": 0, "actors": 2}])
    assert [kind.on_node(node).threads_per_actor for node in (Node(2), Node(8))] == [2, 8]
    (kind,) = kinds_of(Node(2), Node(9), pools=[{"gpus_per_actor": 0}], free=1)
    shares = [kind.on_node(node).memory_share for node in (Node(2), Node(9))]
    assert shares == [1 / 2, 1 / 8]
    assert kind.memory_share == 1 / 8
    (kind,) = kinds_of(few, many, READER, pools=[{"threads_per_actor": 3}])
    assert [kind.on_node(node).threads_per_actor for node in (few, many)] == [3, 3]


def test_actors_that_share_a_gpu_share_its_memory() -> None:
    (half,) = kinds_of(Node(8, 1), pools=[{"gpus_per_actor": 0.5}])
    assert (half.actors, half.memory_share) == (2, 0.5)
    (three,) = kinds_of(Node(8, 2), pools=[{"gpus_per_actor": 0.3}])
    assert (three.actors, three.memory_share) == (6, 0.3)
    (more,) = kinds_of(Node(8, 2), pools=[{"gpus_per_actor": 0.6}])
    assert more.actors == 2, "a fraction never spans two GPUs"
    (two,) = kinds_of(Node(8, 5), pools=[{"gpus_per_actor": 2}])
    assert (two.actors, two.memory_share) == (2, 1.0)


def test_who_is_choosy_goes_first_whatever_the_order_in_the_job() -> None:
    pools = [{"gpus_per_actor": 0}, {}, {"accelerator": "H100", "actors": 2}]
    kinds = kinds_of(A10G, H100, READER, pools=pools)
    assert [(k.accelerator, k.gpus_per_actor, k.actors) for k in kinds] == [
        ("H100", 1, 2),
        (None, 1, 4),
        (None, 0, 8 + 16 + 4 - 6 - 1),
    ]


def test_a_machine_without_a_gpu_has_no_actor_and_all_its_cpus_for_reading() -> None:
    full = Node(4, 4)
    assert [kind.actors for kind in kinds_of(full, READER, pools=[{}])] == [4]
    with pytest.raises(ResourceError, match="room for 3"):
        kinds_of(full, pools=[{"actors": 4}])


@pytest.mark.parametrize(
    ("pools", "missing"),
    [
        ([{"accelerator": "H100"}], "an actor on H100 needs .* room for 0"),
        ([{"accelerator": "A10G", "actors": 5}], "5 actors on A10G need .* room for 4"),
        ([{"cpus_per_actor": 9}], "an actor needs 9 CPUs"),
        ([{"actors": 4}, {"actors": 9, "gpus_per_actor": 0}], "9 actors need 9 CPUs and 0 GPUs"),
    ],
)
def test_what_is_missing_is_said(pools: list[dict[str, Any]], missing: str) -> None:
    with pytest.raises(ResourceError, match=missing) as caught:
        kinds_of(A10G, READER, pools=pools)
    assert "8 CPUs, 4 GPUs (A10G); 4 CPUs, 0 GPUs" in str(caught.value)


@given(
    nodes=st.lists(
        st.builds(
            Node, st.integers(0, 16), st.integers(0, 4), st.sampled_from([None, "A10G", "H100"])
        ),
        min_size=1,
        max_size=4,
    ),
    accelerator=st.sampled_from([None, "A10G"]),
    share=st.sampled_from([0.25, 0.3, 0.5, 1.0, 1.5, 2.0]),
    free=st.integers(1, 3),
)
def test_nothing_is_given_out_that_is_not_there(
    nodes: list[Node], accelerator: str | None, share: float, free: int
) -> None:
    pools: list[dict[str, Any]] = [
        {"accelerator": accelerator, "gpus_per_actor": share},
        {"gpus_per_actor": 0},
    ]
    try:
        kinds = kinds_of(*nodes, free=free, pools=pools)
    except ResourceError:
        return
    assert sum(k.actors * k.cpus_per_actor for k in kinds) + free <= sum(n.cpus for n in nodes)
    gpus = sum(n.gpus for n in nodes if accelerator in (None, n.accelerator))
    assert sum(k.actors * k.gpus_per_actor for k in kinds) <= gpus + 1e-6
    assert all(0 < kind.memory_share <= 1 and kind.threads_per_actor >= 1 for kind in kinds)


def test_an_actor_knows_its_kind_by_what_it_was_given() -> None:
    pools = [{"accelerator": "A10G"}, {"gpus_per_actor": 0.5}, {"gpus_per_actor": 0, "actors": 1}]
    kinds = kinds_of(A10G, H100, READER, pools=pools)
    given = [
        {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A10G": 0.001},
        {"CPU": 1.0, "GPU": 0.5},
        {"CPU": 1.0},
    ]
    for number, resources in enumerate(given):
        assert [kind.matches(resources) for kind in kinds] == [n == number for n in range(3)]


def test_ray_is_asked_for_each_actor_of_each_kind_once() -> None:
    kinds = (ActorKind(2, 1, 1, 1, 1.0, "A10G"), ActorKind(1, 2, 0, 1, 1.0))
    asked = [kind_of_actor(kinds, number).remote_args() for number in range(4)]
    assert asked[3] == asked[0], "an actor that takes the place of another"
    assert asked[:3] == [
        {"num_cpus": 1, "num_gpus": 1, "accelerator_type": "A10G"},
        {"num_cpus": 1, "num_gpus": 1, "accelerator_type": "A10G"},
        {"num_cpus": 2, "num_gpus": 0},
    ]


def test_few_blocks_need_few_actors_of_the_first_kinds() -> None:
    pools = [{"accelerator": "A10G"}, {"gpus_per_actor": 0, "actors": 3}]
    placements = placed(Node(2, 2, "A10G"), READER, pools=pools)
    for most in range(1, 8):
        kept = first_actors(placements, most)
        assert sum(each.actors for each in kept) == min(most, 5)
        assert kept[0].pool.accelerator == "A10G"
    section = ResourcesSection(pools=(PoolSection(accelerator="A10G"), PoolSection()))
    pool = size_pool(
        [A10G, H100, READER], section, device="auto", groups=5, pixels_per_image=512 * 512
    )
    assert (pool.actors, pool.groups_per_block) == (5, 1)
    assert (pool.gpus_per_actor, pool.memory_share) == (1, 1), "as its first kind has it"
    assert Counter({k.accelerator: k.actors for k in pool.kinds}) == {"A10G": 4, None: 1}
    assert isinstance(pool, Pool)


def test_each_kind_may_grow_by_itself() -> None:
    pools = [{"accelerator": "H100", "max_actors": 3}, {"accelerator": "A10G", "max_actors": 6}]
    h100, a10g = kinds_of(A10G, READER, pools=pools, can_grow=True)
    assert (h100.accelerator, h100.actors, h100.later) == ("H100", 3, 3)
    assert (a10g.accelerator, a10g.actors, a10g.later) == ("A10G", 6, 2)
    assert [k.actors for k in kinds_of(A10G, READER, pools=pools)] == [4], "a local Ray does not"
    with pytest.raises(InsufficientCapacityError, match="room for 0"):
        kinds_of(READER, pools=pools, can_grow=True)
    with pytest.raises(InsufficientCapacityError, match="room for 3"):
        kinds_of(Node(4, 4), pools=[{"max_actors": 9}], can_grow=True)
    first = first_actors(placed(A10G, READER, pools=pools, can_grow=True), 5)
    found = [(each.pool.accelerator, each.actors, each.later) for each in first]
    assert found == [("H100", 1, 1), ("A10G", 4, 0)]


def test_fewer_actors_have_more_threads_each() -> None:
    section = ResourcesSection(groups_per_block=1)
    few = size_pool([Node(16)], section, device="cpu", groups=3, pixels_per_image=64)
    assert (few.actors, few.threads_per_actor, few.memory_share) == (3, 5, pytest.approx(1 / 3))


def test_a_pool_without_a_gpu_does_not_fit_a_device_with_one() -> None:
    section = ResourcesSection(pools=(PoolSection(), PoolSection(gpus_per_actor=0)))
    with pytest.raises(ResourceError, match="a pool has gpus_per_actor: 0"):
        size_pool([A10G], section, device="cuda", groups=3, pixels_per_image=64)


def test_part_of_a_gpu_that_ray_has_is_given_out() -> None:
    (half,) = kinds_of(Node(4, 1.5), pools=[{"gpus_per_actor": 0.5}])
    assert half.actors == 3


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"pools": []}, "pools is empty"),
        ({"actors": 3, "max_actors": 2}, "max_actors is 2, and actors 3"),
        ({"pools": [{"actors": 3, "max_actors": 2}]}, "max_actors is 2, and actors 3"),
        ({"pools": [{}], "actors": 2}, "actors is set by each of the pools"),
        ({"pools": [{}, {"actors": 2}]}, "two pools have 1 GPUs an actor"),
        ({"pools": [{"accelerator": "H100", "gpus_per_actor": 0}]}, "have no accelerator"),
        ({"pools": [{}, {"gpus_per_actor": 0}]}, "set model.dtype=float32"),
    ],
)
def test_pools_that_make_no_sense_are_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Job.model_validate({"manifest": "m", "output": "o", "resources": section})


def test_one_type_for_all_kinds_is_fine() -> None:
    pools = {"pools": [{}, {"gpus_per_actor": 0}]}
    for model in ({"dtype": "float32"}, {"device": "cpu"}):
        Job.model_validate({"manifest": "m", "output": "o", "resources": pools, "model": model})
