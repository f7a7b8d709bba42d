"""Environment variables for stores that are not text are refused by their name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.errors import StorageError
from pipeline.storage.clients import filesystem_of
from pipeline.storage.environment import check_environment


@pytest.fixture(autouse=True)
def check_again() -> Iterator[None]:
    check_environment.cache_clear()
    yield
    check_environment.cache_clear()


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "https_proxy", "GOOGLE_API_KEY"])
def test_a_value_that_is_not_utf8_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed before: 'utf-8' codec can't encode character, with no name."""
    monkeypatch.setenv(name, "secret\udcff")
    with pytest.raises(
        StorageError, match=f"variable {name} is not UTF-8: its character 7"
    ) as found:
        filesystem_of("s3://bucket/key", {})
    assert "secret" not in str(found.value)
    filesystem_of("/tmp", {})


def test_other_variables_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PS1", "\udcff")
    check_environment()
