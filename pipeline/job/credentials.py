"""Refuses credentials in job files, because a job is stored with its output, as config.yaml.

Credentials come from the environment of every node, or from the standard files of the store's
client (~/.aws, the files that AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name, and so on).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.redact import is_redacted, redact_url

_WORDS = {"auth", "cookie", "key", "pass", "pat", "pwd", "sas"}
"""Words that mark an option as a secret if they are a whole word of its name."""
_PARTS = (
    "accesskey",
    "accountkey",
    "apikey",
    "authorization",
    "bearer",
    "connectionstring",
    "credential",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "sharedkey",
    "storagekey",
    "token",
)
"""Texts that mark an option as a secret anywhere in its name, ignoring case, - and _."""
_SAFE_VALUES = {"anon", "google_default", "cache", "cloud"}
"""Values of gcsfs' option `token` that are not secrets."""
_SECRET_VALUE = re.compile(
    r"\b(AccountKey|SharedAccessSignature|SharedAccessKey)=|[?&](sig|X-Amz-Signature)=|\bBearer\s|"
    r"BEGIN [A-Z ]*PRIVATE KEY|\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    re.IGNORECASE,
)


def refuse_credentials(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that is a credential by its name or value, at any depth.

    The message has the name of the option, and not its value.
    """
    for path, name, value in _leaves(options, ""):
        if (_names_a_secret(name) and value not in _SAFE_VALUES) or _holds_a_secret(value):
            raise ValueError(
                f"{path} looks like a credential, and a job file is stored with its output: "
                "remove it and set the environment on every node (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
                "AZURE_STORAGE_CONNECTION_STRING, ...)"
            )


def refuse_credentials_in_url(url: str) -> None:
    """Raises ValueError for a URL with a password."""
    if _has_password(url):
        raise ValueError(
            f"{redact_url(url)} holds a password, and a job file is stored with its output: "
            "set it in the environment of every node"
        )


def checked_model(source: str) -> str:
    """The source of a model. Raises ValueError for a URL with a password or a query."""
    refuse_credentials_in_url(source)
    if redact_url(source) != source:
        raise ValueError(
            "has a query, which may be a signature, and a job file is stored with its output; give "
            "the URL without it, and set credentials in the environment of every node"
        )
    return source


def _leaves(value: object, path: str, name: str = "") -> Iterator[tuple[str, str, object]]:
    """Every innermost value, with its path and the nearest name above it.

    Named mappings and lists are yielded too, so that `credentials: {...}` is refused whatever it
    contains.
    """
    if name or not isinstance(value, Mapping | list | tuple):
        yield path, name, value if isinstance(value, str) else ""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]", "")


def _names_a_secret(name: str) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Za-z][a-z0-9]*|[A-Z]+", name)}
    words |= set(re.split(r"[^a-z0-9]+", name.lower()))
    squashed = re.sub(r"[^a-z0-9]", "", name.lower())
    if "kms" in squashed:  # the id of a key in a key management service, not a secret
        return False
    return bool(words & _WORDS) or any(part in squashed for part in _PARTS)


def _holds_a_secret(value: object) -> bool:
    return isinstance(value, str) and (bool(_SECRET_VALUE.search(value)) or _has_password(value))


def _has_password(url: str) -> bool:
    return "@" in url and is_redacted(redact_url(url).split("?")[0])
