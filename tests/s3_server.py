"""A real S3 server for tests: `rclone serve s3` over a temporary folder, on a port of its own.

    from tests.s3_server import S3Server, s3_server  # noqa: F401

    def test_something(s3_server: S3Server) -> None:
        Folder.open(s3_server.url("run"), s3_server.storage_options)

The server ignores `If-None-Match`, as some S3 servers do; AWS does not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
BUCKET = "bucket"


@dataclass(frozen=True)
class S3Server:
    """A running server. Its credentials are in the environment, as a job wants them."""

    endpoint_url: str
    root: Path

    @property
    def storage_options(self) -> dict[str, Any]:
        """For `Job.storage_options`: everything but the credentials."""
        return {"endpoint_url": self.endpoint_url}

    def url(self, path: str) -> str:
        """The URL of a path in the bucket."""
        return f"s3://{BUCKET}/{path}"

    def file(self, path: str) -> Path:
        """Where the server keeps the object at a path in the bucket."""
        return self.root / BUCKET / path


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    root = tmp_path_factory.mktemp("s3")
    (root / BUCKET).mkdir()
    command = [
        str(Path(sys.executable).parent / "rclone"),
        *("serve", "s3", "--config", "", "--addr", "127.0.0.1:0"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off", str(root)),
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            rest_of_log = threading.Thread(target=deque, args=(server.stderr, 0))
            try:
                endpoint_url = _endpoint(server.stderr)
                rest_of_log.start()  # a pipe that nobody reads would stop the server
                yield S3Server(endpoint_url, root)
            finally:
                server.terminate()
                if rest_of_log.ident is not None:
                    rest_of_log.join()


def _endpoint(log: Iterable[str]) -> str:
    """Reads the server's log up to the line that says where it listens."""
    lines = []
    for line in log:
        lines.append(line)
        found = re.search(r"Starting s3 server on \[(http://[\d.:]+)/\]", line)
        if found:
            return found[1]
    raise RuntimeError("rclone did not start:\n" + "".join(lines))
