"""Sizing the pool: every machine gets one that can run, or a reason why not."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.actor_kinds import ActorKind, Node
from pipeline.cluster.pool import STORE_SHARE, Pool, bundles_of, size_pool
from pipeline.cluster.session import check_reachable, nodes_alive, ray_session, wait_for_capacity
from pipeline.errors import InsufficientCapacityError, ResourceError
from pipeline.job.resources import PoolSection, ResourcesSection


def pool_of(
    *nodes: Node,
    device: str = "auto",
    groups: int = 100_000,
    pixels: int = 512 * 512,
    **wishes: Any,
) -> Pool:
    section = ResourcesSection(**wishes)
    return size_pool(nodes, section, device=device, groups=groups, pixels_per_image=pixels)


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus_each", "threads"),
    [
        ([Node(2)], 1, 0, 2),
        ([Node(4)], 3, 0, 1),
        ([Node(16)], 15, 0, 1),
        ([Node(4), Node(4)], 7, 0, 1),
        ([Node(16, 1)], 1, 1, 16),
        ([Node(32, 8)], 8, 1, 4),
        ([Node(16, 4), Node(16, 4)], 8, 1, 4),
        ([Node(8), Node(8, 2)], 2, 1, 4),
    ],
)
def test_automatic_sizes(nodes: list[Node], actors: int, gpus_each: int, threads: int) -> None:
    pool = pool_of(*nodes)
    assert (pool.actors, pool.gpus_per_actor) == (actors, gpus_each)
    assert pool.threads_per_actor == threads


def test_blocks_are_smaller_if_their_sources_are_large() -> None:
    """The sources of two blocks are in an actor's memory."""
    sizes = [256, 512, 1024, 2048, 8192]
    groups = [pool_of(Node(16, 1), groups=10**7, pixels=side**2).groups_per_block for side in sizes]
    assert groups == [128, 128, 32, 8, 1]


@pytest.mark.parametrize(
    ("nodes", "encoders"),
    [([Node(2)], 2), ([Node(16)], 1), ([Node(16, 1)], 16), ([Node(64, 4)], 16), ([Node(128)], 1)],
)
def test_actors_encode_on_all_cores_together(nodes: list[Node], encoders: int) -> None:
    assert pool_of(*nodes).encoders_per_actor == encoders


def test_encoders_are_not_the_models_threads() -> None:
    pool = pool_of(Node(8, 1), threads_per_actor=1)
    assert (pool.threads_per_actor, pool.encoders_per_actor) == (1, 8)


@pytest.mark.parametrize(
    ("nodes", "actors"), [([Node(2)], 1), ([Node(16)], 1), ([Node(16), Node(8, 2)], 2)]
)
def test_without_an_editor_a_machine_has_one_actor(nodes: list[Node], actors: int) -> None:
    pool = size_pool(
        nodes,
        ResourcesSection(),
        device="cpu",
        groups=100_000,
        pixels_per_image=512 * 512,
        makes_edits=False,
    )
    assert pool.actors == actors
    assert pool.encoders_per_actor == min(node.cpus for node in nodes)
    assert pool.groups_per_block == 64, "nothing takes minutes"
    asked = ResourcesSection(actors=5)
    pool = size_pool(
        [Node(16)], asked, device="cpu", groups=999, pixels_per_image=64, makes_edits=False
    )
    assert pool.actors == 5


@given(
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    gpus=st.integers(0, 8),
    free=st.integers(0, 3),
    groups=st.integers(1, 10_000),
)
def test_a_reader_always_fits_beside_the_actors(
    cpus: list[int], gpus: int, free: int, groups: int
) -> None:
    nodes = [Node(count, gpus) for count in cpus]
    try:
        pool = pool_of(*nodes, groups=groups, free_cpus=free)
    except ResourceError:
        assert sum(cpus) < 1 + max(1, free)
        return
    assert 1 <= pool.actors <= groups
    assert pool.actors * pool.kinds[0].cpus_per_actor + max(1, free) <= sum(cpus)
    assert pool.actors * pool.gpus_per_actor <= gpus * len(cpus)
    assert pool.threads_per_actor * pool.actors <= max(sum(cpus), pool.actors)
    assert math.ceil(groups / pool.groups_per_block) >= min(pool.actors, groups)


def test_a_hundred_rows_are_enough_blocks_for_eight_gpus() -> None:
    pool = pool_of(Node(32, 8), groups=100)
    assert pool.actors == 8
    assert 100 // pool.groups_per_block >= 2 * pool.actors


@pytest.mark.parametrize(("node", "few", "many"), [(Node(32, 8), 64, 128), (Node(4), 32, 128)])
def test_blocks_are_fuller_where_there_would_be_very_many(node: Node, few: int, many: int) -> None:
    sizes = [
        pool_of(node, groups=groups, pixels=64 * 64).groups_per_block
        for groups in (10_000, 50_000, 10_000_000)
    ]
    assert sizes == [few, few, many]
    between = 200_000
    size = pool_of(node, groups=between, pixels=64 * 64).groups_per_block
    assert few < size < many
    assert math.ceil(between / size) <= 2048


def test_blocks_of_large_work_are_bounded() -> None:
    assert pool_of(Node(4), groups=10**7, pixels=128 * 128).groups_per_block == 32
    assert pool_of(Node(4), groups=10**7, pixels=512 * 512).groups_per_block == 2
    assert pool_of(Node(4), groups=10**7, pixels=1024 * 1024).groups_per_block == 1


def test_few_groups_need_few_actors() -> None:
    assert pool_of(Node(64), groups=3).actors == 3


def test_wishes_are_kept() -> None:
    pool = pool_of(
        Node(16, 2),
        actors=4,
        cpus_per_actor=2,
        gpus_per_actor=0.5,
        threads_per_actor=3,
        groups_per_block=5,
    )
    kind = ActorKind(4, 2, 0.5, 3, 0.5, most_on_one=4, sets_threads=True, encoders_per_actor=4)
    assert pool == Pool((kind,), 5, places=4)


def test_readers_and_what_waits_take_no_more_of_the_store_than_is_said() -> None:
    actors, readers = Node(4, 4, store_bytes=1e12), Node(16, store_bytes=8e9)
    pool = pool_of(actors, readers, groups=10**6)
    block_bytes = pool.groups_per_block * 512 * 512 * 3
    assert pool.waiting_bytes == 2e9, "a machine without a free CPU holds what its actors have"
    assert pool.readers is not None
    assert pool.waiting_bytes + (pool.readers + 1) * block_bytes <= STORE_SHARE * 8e9
    assert pool.waiting_bytes + (pool.readers + 2) * block_bytes > STORE_SHARE * 8e9
    tiny = pool_of(actors, Node(16, store_bytes=1e6), groups=10**6)
    assert tiny.readers == 1, "one at a time, since the run has to go on"
    assert pool_of(actors, Node(16)).readers is None


def test_a_worker_more_is_started_for_each_that_is_left_out() -> None:
    pool = pool_of(Node(8, 4), groups=1)
    assert (pool.actors, pool.places) == (1, 4)
    assert [pool.actors_for(1, left_out=n) for n in range(5)] == [1, 2, 3, 4, 4]
    assert pool_of(Node(8, 4), groups=10**4).actors_for(2, left_out=1) == 3
    assert pool_of(Node(8, 4), groups=10**4, actors=2).actors_for(9, left_out=1) == 2, "the limit"


def test_a_fraction_of_a_gpu_does_not_span_two() -> None:
    assert pool_of(Node(16, 2), gpus_per_actor=0.6).actors == 2
    assert pool_of(Node(16, 2), gpus_per_actor=0.5).actors == 4
    assert pool_of(Node(16, 4), gpus_per_actor=2).actors == 2


def test_the_cpu_can_be_chosen_where_there_are_gpus() -> None:
    pool = pool_of(Node(8, 2), device="cpu")
    assert (pool.actors, pool.gpus_per_actor) == (7, 0)


def test_memory_is_shared_out() -> None:
    assert pool_of(Node(4)).memory_share == pytest.approx(1 / 3)
    assert pool_of(Node(4), Node(4)).memory_share == pytest.approx(1 / 4)
    assert pool_of(Node(8, 1)).memory_share == 1


@pytest.mark.parametrize(
    ("nodes", "wishes", "missing"),
    [
        ([Node(1)], {}, "an actor needs 1 CPUs and 0 GPUs, and 1 CPUs must stay free"),
        ([Node(4)], {"actors": 4}, "4 actors need 4 CPUs"),
        ([Node(4)], {"free_cpus": 4}, "4 CPUs must stay free"),
        ([Node(4), Node(4)], {"cpus_per_actor": 5}, "an actor needs 5 CPUs"),
        ([Node(8, 1)], {"actors": 2}, "2 actors need 2 CPUs and 2 GPUs"),
        ([Node(8)], {"gpus_per_actor": 1}, "the cluster has 8 CPUs, 0 GPUs: room for 0"),
    ],
)
def test_what_is_missing_is_said(nodes: list[Node], wishes: dict[str, Any], missing: str) -> None:
    with pytest.raises(ResourceError) as caught:
        pool_of(*nodes, **wishes)
    assert missing in str(caught.value)


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"model\.device is cuda"):
        pool_of(Node(8), device="cuda")


def test_a_ray_that_runs_already_is_used_and_left_running(ray_cluster: None) -> None:
    import ray

    with ray_session(None):
        assert [node.cpus for node in nodes_alive()] == [3.0]
    assert ray.is_initialized()


def test_an_address_where_nothing_listens_is_refused_before_ray_tries() -> None:
    with socket.socket() as bound:  # bound and not listening: every connection is refused
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for prefix in ("", "ray://"):
            with pytest.raises(ResourceError, match=f"nothing answers at .*{address}"):
                check_reachable(prefix + address)
        bound.listen()
        check_reachable(address)
    check_reachable("auto")


GROWS: dict[str, Any] = {"ray_address": "auto", "max_actors": 8}


def test_actors_with_a_gpu_may_come_later() -> None:
    pool = pool_of(Node(16), Node(8, 2), **GROWS)
    assert (pool.actors, pool.later, pool.gpus_per_actor) == (8, 6, 1)
    assert pool_of(Node(16), Node(8, 2), groups=4, **GROWS).actors == 4
    assert pool_of(Node(16), Node(8, 2), **GROWS | {"max_actors": 1}).actors == 1
    full = pool_of(Node(16, 8), **GROWS)
    assert (full.actors, full.later) == (8, 0)


def test_a_local_ray_has_no_more_than_it_has() -> None:
    pool = pool_of(Node(8, 2), max_actors=8)
    assert (pool.actors, pool.later) == (2, 0)
    assert pool_of(Node(8), max_actors=3).actors == 3


def test_actors_without_a_gpu_do_not_wait_for_the_readers_cpus() -> None:
    pool = pool_of(Node(4), device="cpu", **GROWS)
    assert (pool.actors, pool.later) == (3, 0)
    with pytest.raises(InsufficientCapacityError, match="1 CPUs must stay free"):
        pool_of(Node(2, 2), **GROWS)  # the second would take the last one
    assert pool_of(Node(2, 2), Node(1), **GROWS).later == 6


def test_nobody_starts_before_there_is_a_place() -> None:
    with pytest.raises(InsufficientCapacityError, match="an actor needs 1 CPUs and 1 GPUs"):
        pool_of(Node(16), **GROWS)
    with pytest.raises(InsufficientCapacityError, match="2 actors need"):
        pool_of(Node(16), Node(8, 1), actors=2, **GROWS)


@pytest.mark.parametrize(
    ("wishes", "device", "actors"),
    [
        ({}, "cpu", [{"CPU": 1.0}]),
        ({}, "cuda", [{"CPU": 1.0, "GPU": 1.0}]),
        ({"max_actors": 2}, "auto", [{"CPU": 1.0, "GPU": 1.0}] * 2),
        ({"actors": 2, "gpus_per_actor": 0.5}, "auto", [{"CPU": 1.0, "GPU": 0.5}] * 2),
        ({"max_actors": 9, "cpus_per_actor": 2}, "cuda", [{"CPU": 2.0, "GPU": 1.0}] * 3),
    ],
)
def test_the_autoscaler_is_asked_for_what_the_run_would_take(
    wishes: dict[str, Any], device: str, actors: list[dict[str, float]]
) -> None:
    asked = bundles_of(ResourcesSection(**wishes), device=device, groups=3)
    assert asked == [{"CPU": 1.0}, *actors]


def test_pools_are_asked_for_by_kind() -> None:
    pools = (PoolSection(accelerator="H100", max_actors=2), PoolSection(gpus_per_actor=0))
    asked = bundles_of(ResourcesSection(pools=pools), device="auto", groups=9)
    h100 = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    assert asked == [{"CPU": 1.0}, h100, h100, {"CPU": 1.0}]


def test_room_that_does_not_come_is_said_after_the_time(
    ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    section = ResourcesSection(actors=9)

    def size(nodes: Sequence[Node]) -> Pool:
        return size_pool(nodes, section, device="cpu", groups=9, pixels_per_image=64)

    with pytest.raises(InsufficientCapacityError, match="9 actors need 9 CPUs"):
        wait_for_capacity(size, [{"CPU": 10.0}], wait_s=0)
    with pytest.raises(ResourceError, match=r"9 actors need .* in 0.1 s \(resources.wait_s\)"):
        wait_for_capacity(size, [{"CPU": 10.0}], wait_s=0.1)
    assert "waiting for the cluster to have room, for at most 0.1 s" in caplog.text
