"""What is sent to web servers, byte for byte, and through which proxy."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stamina

from pipeline.errors import SourceForbiddenError, SourceMissingError
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with stamina.set_testing(True, attempts=2):
        yield


class _Listener(socketserver.ThreadingTCPServer):
    """Answers every request with its `answer`, or redirects; notes the requests as they came."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.asked: list[bytes] = []
        self.heads: list[bytes] = []
        self.redirects: list[bytes] = []
        self.status = b"200 OK"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: _Listener

    def handle(self) -> None:
        line = self.rfile.readline()
        head = line
        while (field := self.rfile.readline()).strip():
            head += field
        self.server.asked.append(line.rsplit(b" ", 1)[0])
        self.server.heads.append(head)
        status, extra = self.server.status, b""
        if self.server.redirects:
            status, extra = b"302 Found", b"Location: " + self.server.redirects.pop(0) + b"\r\n"
        self.wfile.write(
            b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\nConnection: close\r\n" + extra
        )
        self.wfile.write(b"\r\n" if line.startswith(b"HEAD") else b"\r\nimage")


@contextmanager
def listening() -> Iterator[_Listener]:
    with _Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site() -> Iterator[_Listener]:
    with listening() as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[_Listener]:
    with listening() as server:
        yield server


VERBATIM = [
    "/a%2Bb%2Fc%40d%20e%7E%27.png?sig=a%2Bb%2Fc%3D&p=x%20y+z&q=%7E",
    "/a.png?response-content-type=image%2Fpng&Expires=9&Signature=a~b-c_",
    "/it%27s.png?Expires=9",
    "/a+b.png?a+b=c+d",
    "/a;b=1/c;d.png?e;f",
    "/a.png?",
    "/a.png?&&=&x",
    "/a%2f%2F%c3%A9.png?%e9",
    "/a/../b/./c//d.png",
    "/100%.png?%zz",
    "/a|b\"<c>`{d}^[e]\\.png?f=[1]|{2}'(3)*!",
    "/?x=http://other/%3F?y",
]
"""Request targets that aiohttp 3.14 and yarl 1.25 change if they may (all but the third, the fourth
and the last)."""


@pytest.mark.parametrize("target", VERBATIM)
def test_a_url_is_sent_as_it_is_written(site: _Listener, target: str) -> None:
    assert read_uri(f"http://{site.address}{target}") == b"image"
    assert site.asked == [f"GET {target}".encode()]


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("", "/"),
        ("?x=1", "/?x=1"),
        ("/a.png?x#y?z", "/a.png?x"),
        ("/a.png?#y", "/a.png?"),
        ("/é b.png?ü=日 本", "/%C3%A9%20b.png?%C3%BC=%E6%97%A5%20%E6%9C%AC"),
        ("/e\u0301.png", "/e%CC%81.png"),
        ("/a\tb\r\nX: y.png", "/a%09b%0D%0AX:%20y.png"),
    ],
)
def test_what_cannot_be_sent_is_encoded_and_nothing_else(
    site: _Listener, target: str, sent: str
) -> None:
    assert read_uri(f"http://{site.address}{target}") == b"image"
    assert site.asked == [f"GET {sent}".encode()]


@pytest.mark.parametrize("target", VERBATIM)
def test_a_redirect_is_followed_as_it_is_written(site: _Listener, target: str) -> None:
    here = f"http://{site.address}"
    site.redirects = [f"{here}{target}".encode(), target.encode(), target.encode()]
    assert read_uri(f"{here}/start?a=%2F") == b"image"
    assert site.asked == [b"GET /start?a=%2F", *[f"GET {target}".encode()] * 3]


def test_redirects_relative_to_what_was_asked_and_in_raw_bytes(site: _Listener) -> None:
    site.redirects = [b"c.png?x=%2f", b"?y=%2f", "/\u00e9.png".encode(), b"/\xe9.png"]
    assert read_uri(f"http://{site.address}/a/b.png?sig=x/y") == b"image"
    assert [line.removeprefix(b"GET ") for line in site.asked] == [
        b"/a/b.png?sig=x/y",
        b"/a/c.png?x=%2f",
        b"/a/c.png?y=%2f",
        b"/%C3%A9.png",
        b"/%E9.png",
    ]


def test_a_file_read_as_a_store_is_asked_for_as_it_is_written(site: _Listener) -> None:
    """A manifest, for example."""
    site.redirects = [b"/b%2Fc.parquet?sig=%2B%7E"]
    name = "m%2Bn.parquet?sig=a%2Fb%7E+c"
    assert Folder.open(f"http://{site.address}/a%40b").read(name) == b"image"
    assert site.asked == [f"GET /a%40b/{name}".encode(), b"GET /b%2Fc.parquet?sig=%2B%7E"]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_the_proxy_of_the_environment_is_used(
    proxy: _Listener, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, f"http://{proxy.address}")
    uri = "http://images.example.test/a%2Fb.png?sig=%2B"
    assert read_uri(uri, rules=SourceRules(("http://images.example.test/",))) == b"image"
    assert Folder.open("http://images.example.test").read("m.parquet") == b"image"
    asked = [b"GET " + uri.encode(), b"GET http://images.example.test/m.parquet"]
    assert proxy.asked == asked


def test_a_store_is_asked_through_the_proxy_too(
    proxy: _Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    options = {"endpoint_url": "http://s3.example.test", "anon": True}
    assert Folder.open("s3://bucket/a", options).read("b.png") == b"image"
    assert proxy.asked[-1] == b"GET http://s3.example.test/bucket/a/b.png"


def test_a_proxys_password_goes_to_the_proxy_and_into_no_message(
    proxy: _Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:SECRET@{proxy.address}")
    assert read_uri("http://images.example.test/a.png") == b"image"
    assert b"Proxy-Authorization: Basic bWU6U0VDUkVU" in proxy.heads[0]
    assert b"\r\nAuthorization" not in proxy.heads[0]
    proxy.status = b"407 Proxy Authentication Required"
    with pytest.raises(SourceMissingError, match="407 Proxy Authentication") as caught:
        read_uri("http://images.example.test/a.png")
    assert "SECRET" not in str(caught.value)
    proxy.shutdown()
    proxy.server_close()
    with pytest.raises(SourceMissingError) as caught:
        read_uri("http://images.example.test/a.png")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_proxy_of_https_is_asked_for_a_tunnel(
    proxy: _Listener, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, f"me:SECRET@{proxy.address}")  # curl and pip take it without http://
    proxy.status = b"407 Proxy Authentication Required"
    with pytest.raises(SourceMissingError, match="407") as caught:
        read_uri("https://images.example.test/a.png?sig=SECRET")
    assert proxy.asked == [b"CONNECT images.example.test:443"]
    assert b"Proxy-Authorization: Basic bWU6U0VDUkVU" in proxy.heads[0]
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "excluded"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", ".test, 127.0.0.1"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("127.0.0.1", "*"),
        ("localhost", "localhost:{port}"),
    ],
)
def test_no_proxy_is_obeyed(
    site: _Listener, proxy: _Listener, monkeypatch: pytest.MonkeyPatch, host: str, excluded: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    port = site.server_address[1]
    monkeypatch.setenv("NO_PROXY", excluded.format(port=port))
    assert read_uri(f"http://{host}:{port}/a.png") == b"image"
    assert (site.asked, proxy.asked) == ([b"GET /a.png"], [])


def test_every_hop_has_the_proxy_that_is_meant_for_it(
    site: _Listener, proxy: _Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site.redirects = [b"http://images.example.test/a.png"]
    assert read_uri(f"http://{site.address}/start") == b"image"
    assert (site.asked, proxy.asked) == (
        [b"GET /start"],
        [b"GET http://images.example.test/a.png"],
    )


def test_rules_hold_behind_a_proxy(proxy: _Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are about names, so it does not matter who looks the name up."""
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    rules = SourceRules(("http://images.example.test/open",))
    for place in ("http://other.example.test/open/a.png", "http://images.example.test/a.png"):
        with pytest.raises(SourceForbiddenError, match=r"images\.allowed_sources"):
            read_uri(place, rules=rules)
    assert proxy.asked == []
    for place in (b"http://169.254.169.254/latest", b"/closed", b"//other.example.test/open/a"):
        proxy.redirects = [place]
        with pytest.raises(SourceForbiddenError, match=r"redirects to .*images\.allowed_sources"):
            read_uri("http://images.example.test/open/a.png", rules=rules)
    assert proxy.asked == [b"GET http://images.example.test/open/a.png"] * 3


def test_a_proxy_of_another_kind_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://me:SECRET@127.0.0.1:9")
    with pytest.raises(SourceMissingError, match=r"socks5h://\S*127.*NO_PROXY") as caught:
        read_uri("http://images.example.test/a.png")
    assert "SECRET" not in str(caught.value)


def test_no_password_of_netrc_is_sent(
    site: _Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert read_uri(f"http://{site.address}/a.png") == b"image"
    assert b"uthorization" not in site.heads[0]
