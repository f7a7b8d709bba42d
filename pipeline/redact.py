"""Makes text from a manifest safe to show: no secrets in URLs, no control characters.

A secret is the password before a host, or a query, which often is a signature. Every error message,
every outcome, file names and config.yaml go through here. The work list (`.plan/`) keeps URLs as
they are in the manifest, because they are needed to fetch the sources.
"""

from __future__ import annotations

import re

_HIDDEN = "..."
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\s]*)@")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_URL_IN_TEXT = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s?#]*[?#]\.\.\.|\S+?)(?=[:,;.)\]'\"]*(?:\s|$))"
)
"""A URL that was redacted before is found with its dots, so that they do not grow."""


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_text(text: str) -> str:
    """`redact`, with U+FFFD in place of control characters, of marks that change the direction of
    text, and of halves of surrogate pairs, which cannot be encoded. New lines and tabs stay.
    """
    return _CONTROL.sub("\ufffd", redact(text))


def redact(text: str) -> str:
    """The text with `redact_url` applied to every URL in it; a URL ends at white space."""
    return _URL_IN_TEXT.sub(lambda found: redact_url(found[0]), text) if "://" in text else text


def redact_url(url: str) -> str:
    """One URL with `...` in place of its query, and of its user part if that is a secret.

    The container of `abfs://container@account/` and a user without a password are not secrets. A
    path that is not a URL is returned unchanged.
    """
    bare, query = _cut(url)
    return f"{bare}{query[0]}{_HIDDEN}" if query else bare


def without_query(url: str) -> str:
    """One URL without its secrets, and with its query left out entirely."""
    return _cut(url)[0]


def is_redacted(url: str) -> bool:
    """Whether `redact_url` hid a part of this URL, so that it cannot be opened any more."""
    return "://" in url and (url.endswith((f"?{_HIDDEN}", f"#{_HIDDEN}")) or f"{_HIDDEN}@" in url)


def _cut(url: str) -> tuple[str, str]:
    """(the URL with its user part hidden, its query or fragment with the ? or #)."""
    if "://" not in url:
        return url, ""
    url = _USER.sub(_without_password, url)
    is_web = _WEB.search(url)
    mark = re.search(r"[?#]" if is_web else r"\?(?=.*=)", url, re.DOTALL)
    return (url[: mark.start()], url[mark.start() :]) if mark else (url, "")


def _without_password(found: re.Match[str]) -> str:
    is_web = found[1].lower() in ("http", "https")
    return f"{found[1]}://{_HIDDEN}@" if is_web or ":" in found[2] else found[0]
