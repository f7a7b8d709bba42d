"""The client of a store: by default it sends a request once, and always has a time limit.

Retries are done, and counted, by `requests` alone. What the clients do themselves:

- S3 (s3fs): one attempt; botocore's retries and s3fs's own loop are off. Connecting takes at most
  CONNECT_TIMEOUT_S, and a server may be silent for READ_TIMEOUT_S. A job can set other values with
  `storage_options: {config_kwargs: {connect_timeout, read_timeout, retries}}`, which are botocore's
  options; retries by botocore are below our loop and are not counted. Checksums of answers are not
  compared, unless the options say so (`response_checksum_validation: when_supported`): some servers
  (rclone 1.75) send that of the whole object with a piece of it, which then counts as damaged.
- the web (fsspec on aiohttp): one attempt. The same limits, and WEB_ANSWER_TIMEOUT_S for a whole
  answer, so that a slow server does not block a worker. `web` says what is sent, and where to.
- GCS and Azure (gcsfs, adlfs): they retry on their own, with no simple option to turn that off, and
  have their own time limits. Their retries are below our loop and are not counted.
- all clients on aiohttp: a request is sent a second time, uncounted, if a connection that was kept
  alive turns out to be broken.
- chained URLs (`simplecache::s3://`): the defaults of their clients.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage.environment import check_environment
from pipeline.storage.file_uris import path_of_file_uri
from pipeline.storage.web import web_session

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
WEB_ANSWER_TIMEOUT_S = 300.0
_S3 = ("s3", "s3a")
_HADOOPS_S3 = ("s3n",)
"""Schemes by which Hadoop and Spark name S3, and s3fs does not; s3a is known to both."""
_GCS = ("gs", "gcs")
_AZURE = ("abfs", "az", "abfss")
_WEB = ("http", "https")
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".htm": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
}
"""The content types of the files of run folders and reports, as registered with IANA.

Python's own table (`mimetypes`) has half of these, and depends on the machine.
"""


def filesystem_of(url: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the URL's path in it. Raises StorageError.

    `options` are passed to object stores only. A job has one set of options, while its manifest,
    sources and output may be on different file systems, and those of local disks and of web servers
    reject options that they do not know.
    """
    if "\0" in url:
        raise StorageError(f"{url!r} holds a NUL character")
    if "://" not in url:  # a path may hold "::" or "#", which are more than characters in a URL
        return LocalFileSystem(), os.path.abspath(url)  # noqa: PTH100  # text in, text out
    path = path_of_file_uri(url)
    if path is not None:
        return LocalFileSystem(), path
    protocol = url.split("://", 1)[0]
    if protocol in _HADOOPS_S3:
        protocol, url = "s3", f"s3://{url.split('://', 1)[1]}"
    if protocol in ("file", "local"):
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(url))
    check_environment()
    try:
        if protocol in _WEB:  # fsspec would split the URL at the "::" of an IPv6 host
            web = fsspec.filesystem(
                protocol, client_kwargs=_web_options(), get_client=web_session, encoded=True
            )
            return web, url
        fs, path = fsspec.core.url_to_fs(url, **_options_of(protocol, options))
    except ValueError as error:
        raise StorageError(f"{url}: {error}; is the protocol spelt right?") from error
    except ImportError as error:
        raise StorageError(f"{url}: {error} (see the extras s3, gcs and azure)") from error
    except TypeError as error:
        raise StorageError(f"{url}: storage_options do not fit {protocol}: {error}") from error
    if protocol in _S3:
        fs.retries = 1  # s3fs's own loop; an attribute, since there is no option
    return fs, path


def uncached_options(fs: fsspec.AbstractFileSystem) -> dict[str, Any]:
    """Arguments of `fs.open` with which every read is a request for the bytes that are read.

    The clients of stores read ahead by themselves, s3fs 50 MB, and throw that away when the next
    read is somewhere else.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    known = (*_S3, *_GCS, *_AZURE, *_WEB)
    return {"cache_type": "none"} if any(name in known for name in protocols) else {}


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is S3."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return any(name in _S3 for name in protocols)


def content_type_options(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """Arguments of `fs.pipe_file` that make the store keep the content type of a file.

    Without one, stores report octet-stream, and a browser downloads a page instead of showing it.
    {} if the file system has no content types (local disks, memory), and for file extensions that
    are not in CONTENT_TYPES.
    """
    content_type = CONTENT_TYPES.get(posixpath.splitext(path)[1].lower())
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if content_type is None:
        return {}
    if is_s3(fs):
        return {"ContentType": content_type}
    if any(name in _GCS for name in protocols):
        return {"content_type": content_type}
    if any(name in _AZURE for name in protocols):
        from azure.storage.blob import ContentSettings  # comes with adlfs

        return {"content_settings": ContentSettings(content_type=content_type)}
    return {}


def _options_of(protocol: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The job's options for a store, over our defaults."""
    if protocol == "memory":
        return {}
    if protocol in _S3:
        return _s3_options(options)
    if protocol in _GCS:  # the other clients look for the environment's proxy by themselves
        return {"session_kwargs": {"trust_env": True}, **options}
    return options


def _s3_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The job's options over our defaults. A deep copy, because botocore writes into `retries`."""
    from botocore.config import Config  # comes with s3fs

    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {"total_max_attempts": 1},
    }
    if "response_checksum_validation" in Config.OPTION_DEFAULTS:  # from 1.36 on
        defaults["response_checksum_validation"] = "when_required"
    config = defaults | copy.deepcopy(dict(options.get("config_kwargs") or {}))
    return {**options, "config_kwargs": config}


def _web_options() -> dict[str, Any]:
    import aiohttp  # many jobs never read from the web

    limits = aiohttp.ClientTimeout(
        total=WEB_ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
    )
    return {"timeout": limits, "requote_redirect_url": False}
