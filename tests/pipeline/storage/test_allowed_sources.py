"""Where sources may live: what is inside a rule, and every way to get outside of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import SourceForbiddenError, SourceMissingError
from pipeline.job.job import ImagesSection
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import read_uri

RULES = SourceRules(("s3://bucket/pictures/", "https://host/open", "memory://shop", "gs://"))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/pictures/a.png",
        "s3a://bucket/pictures/b/é #1?.png",
        "S3://bucket/pictures/a.png",
        "https://host/open/a.png?token=1",
        "HTTPS://HOST:443/open/a.png",
        "https://host/%6fpen/a%20b.png",
        "memory://shop/a.png",
        "gcs://any/thing.png",
    ],
)
def test_what_is_allowed(url: str) -> None:
    assert RULES.refusal(url) == ""
    RULES.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "/etc/\0/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "s3://bucket/picturesque/a.png",
        "s3://bucket/pictures/../secret.png",
        "s3://bucket/pictures/%2e%2e/secret.png",
        "s3://bucket//pictures/a.png",
        "s3:///bucket/pictures/a.png",
        "s3://Bucket/pictures/a.png",
        "s3://other/pictures/a.png",
        "s3://bucket/pictures/a::file:///etc/passwd",
        "http://host/open/a.png",
        "https://host:444/open/a.png",
        "https://host.evil/open/a.png",
        "https://host@evil/open/a.png",
        "https://evil\\@host/open/a.png",
        "https://evil#@host/open/a.png",
        "https://evil?@host/open/a.png",
        "https://host/open/../secret",
        "https://host/open/%2E%2e/secret",
        "https://host/open/%252e%252e%252fsecret",
        "https://host/open/..%2fsecret",
        "https://host/open/..%5csecret",
        "https://host/open%2fa.png",
        "https://host/open/%" + "25" * 9 + "2e",
        "https://host/open/\n/a.png",
        "https://[::1/open/a.png",
        "https://host:port/open/a.png",
        "simplecache::file:///etc/passwd",
        "simplecache::s3://bucket/pictures/a.png",
        "zip://a.png::s3://bucket/pictures/a.zip",
        "reference://a::https://host/open/refs.json",
        "data://bucket/pictures",
    ],
)
def test_what_is_refused_says_which_rule(url: str) -> None:
    assert RULES.refusal(url)
    if "\0" in url:
        return  # no such file can be: reading it is source_missing in any job
    with pytest.raises(SourceForbiddenError, match=r"images\.allowed_sources|layer") as caught:
        read_uri(url, rules=RULES)
    assert caught.value.code == "source_forbidden"


def test_without_rules_only_layers_are_refused(tmp_path: Path) -> None:
    anywhere = SourceRules()
    assert anywhere.refusal("/etc/passwd") == anywhere.refusal("s3://b/../x::y") == ""
    assert anywhere.refusal("https://host/a::cached") == ""
    for url in ("simplecache::https://host/a", "zip://a::filecache::s3://b/c", "reference://x"):
        assert "layer" in anywhere.refusal(url)
        with pytest.raises(SourceForbiddenError, match="name the file itself"):
            read_uri(url)


def test_no_rule_at_all_leaves_the_manifest_alone() -> None:
    nowhere = SourceRules(())
    assert nowhere.refusal("/a.png").endswith("allows only images in the manifest")
    assert nowhere.refusal("https://host/a.png")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """open/a.png may be read; secret.png lies beside, and ways lead from one to the other."""
    (tmp_path / "open" / "deep").mkdir(parents=True)
    (tmp_path / "opener").mkdir()
    for name in ("open/a.png", "open/deep/b::c #1%2e.png", "opener/x.png", "secret.png"):
        (tmp_path / name).write_bytes(b"image")
    (tmp_path / "open" / "link.png").symlink_to("../secret.png")
    (tmp_path / "open" / "way").symlink_to("..")
    (tmp_path / "open" / "loop").symlink_to("loop")
    (tmp_path / "door").symlink_to("open")
    return tmp_path


@pytest.mark.parametrize("rule", ["open", "open/", "door", "way/../open"])
def test_local_files_inside_are_read(house: Path, rule: str) -> None:
    rules = SourceRules((f"{house}/{rule}",))
    for name in ("open/a.png", "door/a.png", "opener/../open/a.png", "open/deep/b::c #1%2e.png"):
        assert rules.refusal(f"{house}/{name}") == ""
        assert read_uri(name, str(house), rules=rules) == b"image"
        assert read_uri(f"file://{house}/{name}", rules=rules) == b"image"
    assert read_uri("open/way/open/a.png", str(house), rules=rules) == b"image"
    with pytest.raises(SourceMissingError, match="not found"):
        read_uri("open/nothing.png", str(house), rules=rules)
    with pytest.raises(SourceMissingError):
        read_uri("open/loop", str(house), rules=rules)


@pytest.mark.parametrize(
    "name",
    [
        "secret.png",
        "opener/x.png",
        "open/../secret.png",
        "open/way/secret.png",
        "open/link.png",
        "door/link.png",
        "nothing.png",
    ],
)
def test_local_files_outside_are_not(house: Path, name: str) -> None:
    rules = SourceRules((f"file://{house}/open", "https://host"))
    for uri in (f"{house}/{name}", f"file://{house}/{name}", f"local://{house}/{name}"):
        with pytest.raises(SourceForbiddenError, match=r"allows only file:///.*, https://host"):
            read_uri(uri, rules=rules)
    is_file_link = name.endswith("link.png")  # found out where it is read, not when it is planned
    assert bool(rules.refusal(f"{house}/{name}")) != is_file_link


def test_one_file_can_be_a_rule(house: Path) -> None:
    rules = SourceRules((f"{house}/open/a.png",))
    assert read_uri(f"{house}/open/a.png", rules=rules) == b"image"
    assert rules.refusal(f"{house}/open/a.png.bak")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("pictures", "is relative.*write an absolute path"),
        ("~/pictures", "is relative"),
        ("", "is relative"),
        ("s3://bucket/a/../b", r"holds \. or \.\."),
        ("simplecache::s3://bucket", "chains file systems"),
        ("https://host/a?token=1", "query"),
        ("https://me:hunter2@host/a", "holds a password"),
    ],
)
def test_rules_that_are_none(rule: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        ImagesSection.model_validate({"allowed_sources": [rule]})
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])


def test_a_job_lists_them() -> None:
    rules = ["/data", "s3://bucket", "https://"]
    section = ImagesSection.model_validate({"allowed_sources": rules})
    assert section.allowed_sources == tuple(rules)
    assert section.model_dump(mode="json")["allowed_sources"] == rules
