"""No message, outcome, file name or config.yaml holds the secret of a URL."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import ManifestError, SourceMissingError
from pipeline.ledger.outcome import short_message
from pipeline.plan.ids import file_stem
from pipeline.redact import is_redacted, redact, redact_url, without_query

SIGNED = "https://host/a/cat.png?X-Amz-Signature=SECRET&x=/SECRET/s.SECRET"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SIGNED, "https://host/a/cat.png?..."),
        ("HTTPS://me:SECRET@host/x#SECRET", "HTTPS://...@host/x#..."),
        ("https://SECRET@host/x", "https://...@host/x"),
        ("http://[::1]:80/a?SECRET", "http://[::1]:80/a?..."),
        ("abfs://box@account/x.png?sv=1&sig=SECRET", "abfs://box@account/x.png?..."),
        ("sftp://me:SECRET@host/run", "sftp://...@host/run"),
        (
            "zip://a.png::https://me:SECRET@host/x.zip?s=SECRET",
            "zip://a.png::https://...@host/x.zip?...",
        ),
    ],
)
def test_what_is_hidden(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert is_redacted(redact_url(url))
    assert "SECRET" not in redact(f"reading {url}: not found (url='{url}'), twice")
    assert "SECRET" not in without_query(url)


def test_what_was_hidden_before_is_not_hidden_again() -> None:
    once = redact(f"reading {SIGNED}: not found ({SIGNED})")
    assert once == "reading https://host/a/cat.png?...: not found (https://host/a/cat.png?...)"
    assert redact(redact(once)) == once
    assert "SECRET" not in redact("https://host/a?...SECRET https://host/a?...,SECRET")


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/#1?.png",
        "s3://bucket/a@b:c.png",
        "abfs://box@account/x.png",
        "sftp://me@host/run",
        "/data/a?b=c.png",
        "https://host/a%3Fb.png",
        "no URL at all?",
    ],
)
def test_what_is_no_secret_stays(url: str) -> None:
    assert redact_url(url) == url
    assert redact(f"{url}: not found") == f"{url}: not found"
    assert not is_redacted(url)


def test_errors_and_outcomes_hide_it_whoever_writes_them() -> None:
    error = ManifestError(f"{SIGNED} is damaged", [f"row 3: {SIGNED}"])
    for shown in (error, pickle.loads(pickle.dumps(error)), SourceMissingError(f"{SIGNED}: gone")):
        assert "SECRET" not in repr(shown) + str(shown)
    assert "SECRET" not in error.headline + error.problems[0]
    assert "SECRET" not in short_message(f"the server says 404 for {SIGNED}")


def test_nothing_of_a_manifest_steers_the_terminal() -> None:
    hostile = "\x1b]0;mine\x07 \x1b[2J\r\x9bK \u202egnp.exe\u2028"
    for shown in (short_message(hostile), str(ManifestError(hostile, [hostile]))):
        assert "\ufffd" in shown
        assert not any(mark in shown for mark in "\x1b\x07\r\x9b\u202e\u2028")
    assert str(ManifestError("a", ["b\té 日本 🦊"])) == "a\n  b\té 日本 🦊"


@pytest.mark.parametrize("url", [SIGNED, SIGNED.upper(), SIGNED.replace("https", "abfs")])
def test_file_names_hide_it(url: str) -> None:
    assert file_stem("", url, "").lower() == "cat"
