"""Editing actors of several kinds, in a stage of Ray Data, whose actors are all alike.

The stage's actors are deputies, which take no resources. Each starts one editing actor with the
resources of its kind, and hands it the blocks that it gets. Deputies pull blocks, so a faster kind
processes more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from pipeline.cluster.actor_kinds import ActorKind, kind_of_actor
from pipeline.cluster.workers import RayEditActor
from pipeline.edit.model_sharing import BLOCKS_AT_A_TIME
from pipeline.edit.settings import EditSettings
from pipeline.supervision.client import SupervisorClient

_MOST_TRIES = 20
"""How often Ray retries a block whose actor or machine died. Rows are quarantined long before."""


class EditDeputy:
    """Stands for one editing actor, which ends with it. If the actor dies, Ray starts it again.

    If Ray does not, because its model or device cannot be used, the deputy ends too: Ray Data gives
    it no more blocks, and those that it has are lost to the next pass.
    """

    def __init__(
        self,
        settings: EditSettings,
        supervisor: SupervisorClient,
        kinds: Sequence[ActorKind],
        pool: int,
    ) -> None:
        """Returns when the actor has a machine and its model: before, it can take no block.

        `pool`: another number for each pool of actors in a run.
        """
        me = str(ray.get_runtime_context().get_actor_id())
        kind = kind_of_actor(kinds, supervisor.number_in(pool, me))
        editing: Any = ray.remote(RayEditActor).options(
            **kind.remote_args(),
            max_restarts=-1,
            max_task_retries=_MOST_TRIES,
            max_concurrency=BLOCKS_AT_A_TIME,
            scheduling_strategy="SPREAD",
        )
        self._actor = editing.remote(settings, supervisor, kinds)
        ray.get(self._actor.is_ready.remote())

    def __call__(self, packed: pa.Table) -> pa.Table:
        """The outcomes of a block; see `RayEditActor`."""
        try:
            return ray.get(self._actor.edit_block.remote(packed))
        except ray.exceptions.ActorDiedError:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]
