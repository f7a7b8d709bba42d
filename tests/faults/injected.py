"""The faults that tests caused, and what the run did about each; a table below the test results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tests.servers.faulty_s3 import Fault

WENT_ON = "went on by itself"
SAME_COMMAND = "stopped; the same command went on"
QUARANTINED = "the row failed, the others not"
RETRIED = "the edit failed; `fpe retry` made it"
injected: Counter[tuple[str, str, str]] = Counter()
"""How often, by point, kind and what came of it; only what really happened, and was survived."""


def survived(faults: Iterable[Fault], what_the_run_did: str) -> None:
    """Enters faults that happened, once all that a test wanted of the run has turned out true."""
    for fault in faults:
        injected[fault.point, fault.kind, what_the_run_did] += fault.fired


def lines() -> Iterator[str]:
    """The table: by point and by what the run did, which kinds of faults, how often if not once."""
    yield f"{'point':<18}{'what the run did':<44}faults"
    by_place: dict[tuple[str, str], list[str]] = {}
    for (point, kind, what), times in sorted(injected.items()):
        text = kind if times == 1 else f"{kind} x {times}"
        by_place.setdefault((point, what), []).append(text)
    for (point, what), kinds in by_place.items():
        yield f"{point:<18}{what:<44}{', '.join(kinds)}"
    distinct = {(point, kind) for point, kind, _ in injected}
    yield f"{len(distinct)} distinct faults, {injected.total()} in all"
