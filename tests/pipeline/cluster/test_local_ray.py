"""Where a local Ray puts its files: a folder with a short path, no token into a missing HOME."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from pipeline.cluster.local_ray import local_files, longest_folder
from pipeline.cluster.session import ray_session
from pipeline.errors import ResourceError

_VARIABLES = ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def chosen() -> dict[str, str]:
    """What the environment is in the context, of the variables that Ray reads."""
    before = dict(os.environ)
    with local_files():
        inside = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    assert dict(os.environ) == before
    return inside


def test_a_usable_folder_and_home_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert chosen() == {}
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert chosen() == {"TMPDIR": "/tmp"}
    assert (tmp_path / ".ray").is_dir()


def test_a_long_or_unusable_tmpdir_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Failed before, with exit code 70: a Unix socket's path has at most 107 bytes (unix(7))."""
    long = "/tmp/" + "é" * ((longest_folder() - 5) // 2 + 1)  # by bytes, not by characters
    assert len(long) <= longest_folder() < len(os.fsencode(long))
    for folder in (long, "/dev/null/folder"):
        monkeypatch.setenv("TMPDIR", folder)
        assert chosen() == {"TMPDIR": folder, "RAY_TMPDIR": "/tmp"}
        assert folder in caplog.text


@pytest.mark.parametrize("folder", ["/tmp/" + "x" * 107, "/dev/null/folder"])
def test_a_folder_that_was_named_for_ray_is_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ResourceError, match=r"Set RAY_TMPDIR to a folder .* of at most"):
        chosen()


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home"])
def test_without_a_home_the_token_stays_in_the_environment(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert len(chosen()["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere")
    assert chosen() == {"RAY_AUTH_TOKEN_PATH": "/somewhere"}


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        # ray 2.60, _private/node.py
        (Exception("The current node timed out during startup. This could"), "is overloaded"),
        (RuntimeError("Failed to start GCS.  Last connection error: None"), "is overloaded"),
        (OSError(28, "No space left on device", "/tmp/ray/session"), "cannot be written"),
        (ray.exceptions.AuthenticationError("no token found"), "RAY_AUTH_TOKEN_PATH"),
        (ValueError("num_cpus must be positive"), "no Ray at resources.ray_address=null"),
    ],
)
def test_an_error_of_ray_at_its_start_is_no_defect_of_this_program(
    error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests share a Ray
    with pytest.raises(ResourceError, match=advice), ray_session(None):
        pass
