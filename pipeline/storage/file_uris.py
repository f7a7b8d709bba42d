"""`file:` URIs, in the forms in which other programs write them (RFC 8089, appendix B).

    file:///data/a%20b.png             Python's Path.as_uri, browsers
    file:/data/a b.png                 Java, Hadoop and Spark
    file://localhost/data/a%20b.png    the host may be named

Whether such a URI is percent-encoded cannot be seen from it: fsspec, for one, does not encode. So a
file that has the path as it is written comes first; if there is none, the path is decoded.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_to_bytes

_SCHEME = "file:"
_FILE_URI = re.compile(r"file:(?://(?:localhost)?(/.*)|(/(?!/).*))", re.IGNORECASE | re.DOTALL)


def with_slashes(uri: str) -> str:
    """`file:/path` as `file:///path`, so that every URI has `://`; other texts are not changed."""
    # Planning asks this four times a row, so without a pattern.
    path = uri[len(_SCHEME) :]
    is_it = path[:1] == "/" and path[1:2] != "/" and uri[: len(_SCHEME)].lower() == _SCHEME
    return f"file://{path}" if is_it else uri


def path_of_file_uri(uri: str) -> str | None:
    """The absolute local path of a `file:` URI; None for anything else, and for another host."""
    found = _FILE_URI.fullmatch(uri)
    if found is None:
        return None
    path = found[1] or found[2]
    if "%" in path and not os.path.lexists(path):
        decoded = os.fsdecode(unquote_to_bytes(path))
        path = path if "\0" in decoded else decoded
    return os.path.abspath(path)  # noqa: PTH100  # text in, text out
