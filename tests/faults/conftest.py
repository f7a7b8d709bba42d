"""What the fault tests tried and caused, by kind, below the results of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import injected
from tests.faults.faulty_s3 import FaultyS3
from tests.faults.fuzz import tried
from tests.s3_server import S3Server, s3_server  # noqa: F401


@pytest.fixture
def faulty_s3(s3_server: S3Server) -> Iterator[FaultyS3]:  # noqa: F811
    """The module's S3 server with a proxy before it that can break what goes through."""
    with FaultyS3(s3_server) as proxy:
        yield proxy


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        terminalreporter.section("hostile cases, each with an outcome")
        for kind, count in [*tried.items(), ("total", tried.total())]:
            terminalreporter.write_line(f"{kind:<20}{count:>9,}")
    if injected.injected:
        terminalreporter.section("injected faults, each survived")
        for line in injected.lines():
            terminalreporter.write_line(line)
