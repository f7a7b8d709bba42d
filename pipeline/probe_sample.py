"""Some of a job's own sources and edits, read as a run would read them, for a probe."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator
from dataclasses import dataclass

import pyarrow as pa

from fpe_core import EditParameters
from pipeline.decode import decode
from pipeline.errors import ProbeError
from pipeline.group import Group
from pipeline.group_shape import GroupShape
from pipeline.intent import Intent
from pipeline.manifest_row import Problems
from pipeline.plan import shape_of
from pipeline.work_list import work_schema, work_table
from pipeline.worker_settings import decode_settings

_MOST_UNREADABLE = 64


@dataclass(frozen=True)
class Sample:
    """Decoded groups of one shape with equal parameters; `fetch_s`: what each took."""

    groups: tuple[Group, ...]
    fetch_s: float


def sample_groups(intent: Intent, done: Container[bytes], shape: GroupShape, count: int) -> Sample:
    """The first `count` groups of a shape that can be read, without what is `done`; fewer where
    there are no more.

    Raises ProbeError where none can be read.
    """
    settings = decode_settings(intent.job)
    found: list[Group] = []
    tried, seconds, failure = 0, 0.0, "the manifest has changed since it was planned"
    for table in _tables_of(intent, done, shape, count):
        began = time.perf_counter()
        rows = decode(table, settings).to_pylist()
        seconds += time.perf_counter() - began
        tried += len(rows)
        groups = [Group.from_row(place, row) for place, row in enumerate(rows)]
        failure = next((group.message for group in groups if group.failure), failure)
        found += [group for group in groups if not group.failure]
        if len(found) >= count or tried >= count + _MOST_UNREADABLE:
            break
    if not found:
        raise ProbeError(
            f"no source to measure with: of the first {tried} none can be read ({failure})"
        )
    return Sample(tuple(found[:count]), seconds / tried)


def _tables_of(
    intent: Intent, done: Container[bytes], shape: GroupShape, count: int
) -> Iterator[pa.Table]:
    """Work rows of a shape with equal parameters, `count` at a time."""
    schema = work_schema(pa.schema([]))
    parameters: EditParameters | None = None
    waiting: list[pa.Table] = []
    for groups, carried in intent.groups(Problems()):
        for group in groups:
            left = sum(identity not in done for identity, _ in group.edits)
            if not left or shape_of(intent, group, left) != shape:
                continue
            parameters = parameters or group.source.parameters
            if group.source.parameters == parameters:
                waiting.append(work_table([group], carried, done, schema))
            if len(waiting) == count:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
