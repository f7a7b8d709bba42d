"""What the fault tests tried and caused, by kind, in tables below the results of the tests.

Tests may run in several processes: each worker hands its counts over when it ends.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults import fuzz, injected


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: what it counted goes to the process that prints."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tried"] = dict(fuzz.tried)
        faults = injected.injected.items()
        output["injected"] = [[*map(str, fault), times] for fault, times in faults]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended."""
    output = getattr(node, "workeroutput", {})
    fuzz.tried.update(output.get("tried", {}))
    for point, kind, what, times in output.get("injected", []):
        injected.injected[point, kind, what] += times


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if fuzz.tried:
        terminalreporter.section("hostile cases, each with an outcome")
        for kind, count in [*fuzz.tried.items(), ("total", fuzz.tried.total())]:
            terminalreporter.write_line(f"{kind:<20}{count:>9,}")
    if injected.injected:
        terminalreporter.section("injected faults, each survived")
        for line in injected.lines():
            terminalreporter.write_line(line)
