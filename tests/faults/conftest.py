"""What the fault tests share: a store that breaks what it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.faulty_s3 import FaultyS3
from tests.servers.s3_server import S3Server, s3_server  # noqa: F401


@pytest.fixture
def faulty_s3(s3_server: S3Server) -> Iterator[FaultyS3]:  # noqa: F811
    """The module's S3 server with a proxy before it that can break what goes through."""
    with FaultyS3(s3_server) as proxy:
        yield proxy
