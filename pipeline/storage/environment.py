"""Refuses environment variables for stores whose values are not text."""

from __future__ import annotations

import functools
import os

from pipeline.errors import StorageError

_OF_STORES = ("AWS_", "AZURE_", "GOOGLE_", "GCLOUD_")


@functools.cache
def check_environment() -> None:
    """Raises StorageError for a credential, endpoint or proxy that is not UTF-8.

    The clients would fail in the middle of a request, with the place of a byte and no name.
    """
    for name, value in os.environ.items():
        if not (name.startswith(_OF_STORES) or name.lower().endswith("_proxy")):
            continue
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise StorageError(
                f"the environment variable {name} is not UTF-8: its character {error.start + 1} is "
                "no text; set it again"
            ) from None
