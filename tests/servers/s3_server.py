"""A real S3 server for tests: `rclone serve s3` over a temporary folder, on a port of its own.

    def test_something(s3_server: S3Server) -> None:
        Folder.open(s3_server.url("run"), s3_server.storage_options)

One server and one bucket serve all tests, and each module has a prefix of its own in it. Tests that
run on several stores ask for `store` instead, see `stores`. The server ignores `If-None-Match`, as
some S3 servers do; AWS does not.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session
import pytest

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "test-access-key", "test-secret-key", "test-session-token"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
}
ENVIRONMENT = {
    **CREDENTIALS,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a client must find in its environment; the server takes any session token."""
BUCKET = "bucket"
_numbers = itertools.count()


def write_profile(folder: Path, name: str) -> dict[str, str]:
    """Puts the credentials into files as the AWS CLI has them, under a profile.

    Returns the environment that names the files, and no credentials.
    """
    keys = "".join(f"{key.lower()} = {value}\n" for key, value in CREDENTIALS.items())
    (folder / "credentials").write_text(f"[{name}]\n{keys}")
    (folder / "config").write_text(f"[profile {name}]\nregion = us-east-1\n")
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_CONFIG_FILE": str(folder / "config"),
    }


@dataclass(frozen=True)
class S3Server:
    """A running server. Its credentials are in the environment, as a job wants them."""

    endpoint_url: str
    root: Path
    prefix: str = ""

    @property
    def storage_options(self) -> dict[str, Any]:
        """For `Job.storage_options`: everything but the credentials."""
        return {"endpoint_url": self.endpoint_url}

    def url(self, path: str) -> str:
        """The URL of a path below the prefix."""
        return f"s3://{BUCKET}/{self.prefix}{path}"

    def file(self, path: str) -> Path:
        """Where the server keeps the object at a path below the prefix.

        To read; what is written there the server may see minutes later. See `put`.
        """
        return self.root / BUCKET / f"{self.prefix}{path}"

    def put(self, path: str, data: bytes) -> None:
        """Puts an object there, by a client of its own."""
        client = _client(self.endpoint_url)
        client.put_object(Bucket=BUCKET, Key=f"{self.prefix}{path}", Body=data)

    def content_type(self, path: str) -> str:
        """That of the object at a path below the prefix, as the server answers a HEAD."""
        client = _client(self.endpoint_url)
        answer = client.head_object(Bucket=BUCKET, Key=f"{self.prefix}{path}")
        return str(answer["ContentType"])

    def presigned_url(self, path: str) -> str:
        """A link that opens one object in a browser for an hour, and nothing else."""
        where = {"Bucket": BUCKET, "Key": f"{self.prefix}{path}"}
        client = _client(self.endpoint_url)
        return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=3600))

    def with_fresh_prefix(self) -> S3Server:
        """The same server, seen from a prefix that nobody else has."""
        return replace(self, prefix=f"{next(_numbers):04d}/")


@functools.cache
def _client(endpoint_url: str) -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        # The server gives an object's checksum with a piece of it as well, which then does not fit.
        config=botocore.config.Config(
            request_checksum_calculation="when_required", signature_version="s3v4"
        ),
    )


@pytest.fixture(scope="module")
def s3_server(s3_process: S3Server) -> S3Server:
    """An S3 server that looks empty."""
    return s3_process.with_fresh_prefix()


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The one server of a test run. Its credentials are in the environment from then on."""
    root = tmp_path_factory.mktemp("s3")
    (root / BUCKET).mkdir()
    command = [
        str(Path(sys.executable).parent / "rclone"),
        *("serve", "s3", "--config", "", "--addr", "127.0.0.1:0"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off", str(root)),
    ]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
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
