"""What the fault tests tried, by kind, below the results of the tests."""

from __future__ import annotations

import pytest

from tests.faults.fuzz import tried


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not tried:
        return
    terminalreporter.section("hostile cases, each with an outcome")
    for kind, count in [*tried.items(), ("total", tried.total())]:
        terminalreporter.write_line(f"{kind:<20}{count:>9,}")
