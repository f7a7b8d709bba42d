"""How the web is asked: for the URL as it is written, through the proxy that the environment names.

A signature covers the bytes of a URL. aiohttp would decode and encode a URL as it likes, and then
the signature does not fit any more. So a URL is sent as it is given, here and after a redirect.

Proxies are those of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case. aiohttp's own
`trust_env` is not used: it would also send the passwords in ~/.netrc.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pipeline.errors import StorageError
from pipeline.redact import redact_url

if TYPE_CHECKING:
    import aiohttp
    import yarl

_PROXY_SCHEMES = ("http://", "https://")


def request_url(url: str) -> yarl.URL:
    """An http(s) URL as aiohttp has to be given it, to send it byte for byte.

    Only what cannot be part of a request is changed: spaces, control characters and characters
    beyond ASCII are percent-encoded (as UTF-8), a host in another script becomes ASCII (IDNA), and
    a fragment is left out. Raises ValueError for a URL without a host, or with an invalid port.
    """
    import yarl

    scheme, _, rest = url.partition("://")
    authority, target = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # matches any text
    if not authority.isascii():
        authority = yarl.URL(f"{scheme}://{authority}").raw_authority
    target = target.partition("#")[0]
    if not target.startswith("/"):
        target = f"/{target}"
    # The query is passed as part of the path: yarl drops the ? of an empty query.
    return yarl.URL.build(
        scheme=scheme.lower(), authority=authority, path=_sendable(target), encoded=True
    )


def _sendable(target: str) -> str:
    def encoded(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))

    return re.sub(r"[^\x21-\x7e]+", encoded, target)


def redirect_target(url: str, location: str) -> str:
    """The URL that a redirect from `url` leads to; `location` is kept as it is written."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        return location
    scheme, authority = re.match(r"([^:]*)://([^/?#]*)", url).groups()  # type: ignore[union-attr]  # it was just asked
    if location.startswith("//"):
        return f"{scheme}:{location}"
    if location.startswith("/"):
        return f"{scheme}://{authority}{location}"
    return urljoin(url, location)


def proxy_of(url: str) -> str | None:
    """The proxy for a URL by this process's environment; None: it is asked directly.

    Raises StorageError for a proxy that speaks neither HTTP nor HTTPS.
    """
    from requests.utils import get_environ_proxies, select_proxy  # NO_PROXY with networks too

    proxy: str | None = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.lower().startswith(_PROXY_SCHEMES):
        raise StorageError(
            f"the environment names the proxy {redact_url(proxy)}, and only proxies at http:// and "
            "https:// can be used: set HTTP_PROXY and HTTPS_PROXY to one, or exclude the host with "
            "NO_PROXY"
        )
    return proxy


class WebSession:
    """An aiohttp session that asks as this module describes."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def get(self, url: str | yarl.URL, **options: Any) -> Any:
        return self._session.get(request_url(str(url)), proxy=proxy_of(str(url)), **options)

    def head(self, url: str | yarl.URL, **options: Any) -> Any:
        return self._session.head(request_url(str(url)), proxy=proxy_of(str(url)), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


async def web_session(**options: Any) -> WebSession:
    """A new session, for fsspec's `get_client`; `options` are aiohttp's."""
    import aiohttp  # many jobs never read from the web

    return WebSession(aiohttp.ClientSession(**options))
