"""Fetching sources: byte limits that hold whatever a server says, redirects, secrets in URLs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stamina
from PIL import Image

from fpe_core import ImageTooLargeError
from pipeline.errors import ManifestError, SourceForbiddenError, SourceMissingError
from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, RowReader
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import read_uri
from tests.builders.work_rows import PARAMETERS, work_row, work_table
from tests.servers.stores import Store

FLOOD_CHUNK, FLOOD_CHUNKS = 1 << 16, 4096


@pytest.fixture(autouse=True)
def _no_waiting_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2):
        yield


class _Site(http.server.BaseHTTPRequestHandler):
    """Ten bytes, a flood without a length, a lie about one, and redirects. `sent` counts bytes."""

    sent = 0
    asked: list[str]
    files: dict[str, bytes]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/").replace("%3A", ":"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/flood":
            self.send_response(200)
            self.end_headers()
            self._flood()
        elif path == "/boast":
            self.send_response(200)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
        elif path in self.files:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.files[path])))
            self.end_headers()
            self.wfile.write(self.files[path])
        else:
            self.send_error(404 if path == "/nothing" else 500)

    def _flood(self) -> None:
        try:
            for _ in range(FLOOD_CHUNKS):
                self.wfile.write(bytes(FLOOD_CHUNK))
                type(self).sent += FLOOD_CHUNK
        except ConnectionError:
            pass  # that is what the test is about
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    _Site.sent, _Site.asked, _Site.files = 0, [], {"/open/ten": b"0123456789"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_limit_is_the_last_size_that_passes(store: Store) -> None:
    uri, options = store.put("ten", b"0123456789"), store.storage_options
    assert read_uri(uri, options=options, max_bytes=10) == b"0123456789"
    with pytest.raises(ImageTooLargeError, match=r"10 bytes.*allowed 9.*images\.max_bytes"):
        read_uri(uri, options=options, max_bytes=9)


def test_a_manifests_images_are_fetched_from_where_it_lies(
    store: Store, picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> None:
    """Relative to it, and each with its outcome."""
    images = {"day/0.png": png(picture(0)), "up/1 é#.png": png(picture(1)), "day/2.png": b"no"}
    for name, data in images.items():
        store.put(f"data/{name}", data)
    uris = ["0.png", "../up/1 é#.png", "2.png", "absent.png"]
    columns = {"image": uris, "target_prompt": ["x"] * 4}
    url = store.put_table("data/day/m.parquet", columns)
    manifest = Manifest.open(url, store.storage_options)
    problems = Problems()
    (batch,) = manifest.batches()
    sources = list(RowReader(manifest, PARAMETERS, None).read(batch, problems))
    settings = DecodeSettings(storage_options=store.storage_options)
    rows = [work_row(source.row, uri=source.uri) for source in sources]
    decoded = decode(work_table(rows), settings).to_pylist()
    assert [row["failure"] for row in decoded] == ["", "", "decode_failed", "source_missing"]
    assert [row["pixels"] for row in decoded[:2]] == [picture(n).tobytes() for n in (0, 1)]


def test_the_limit_holds_on_the_web_and_is_not_tried_again(site: str) -> None:
    assert read_uri(f"{site}/open/ten", max_bytes=10) == b"0123456789"
    for path in ("/open/ten", "/boast", "/flood"):
        _Site.asked.clear()
        with pytest.raises(ImageTooLargeError):
            read_uri(f"{site}{path}", max_bytes=9)
        assert _Site.asked == [path]


def test_a_flood_is_cut_off_and_not_read_to_its_end(site: str) -> None:
    with pytest.raises(ImageTooLargeError):
        read_uri(f"{site}/flood", max_bytes=1000)
    assert _Site.sent < FLOOD_CHUNK * FLOOD_CHUNKS / 4  # what the sockets hold, not the flood


def test_the_limit_costs_one_row_and_counts_for_the_manifests_own_images(site: str) -> None:
    rows = [work_row(0, uri=f"{site}/flood"), work_row(1, image_bytes=b"x" * 11)]
    result = decode(work_table(rows), DecodeSettings(max_bytes=10)).to_pylist()
    assert [row["failure"] for row in result] == ["image_too_large"] * 2


def test_redirects_are_followed_as_far_as_the_rules_go(site: str) -> None:
    assert read_uri(f"{site}/to//open/ten") == b"0123456789"
    assert read_uri(f"{site}/to/{site}/open/ten") == b"0123456789"
    assert read_uri(f"{site}/to//open/ten", rules=SourceRules((site,))) == b"0123456789"
    rules = SourceRules((f"{site}/to",))
    _Site.asked.clear()
    with pytest.raises(SourceForbiddenError, match=r"redirects to .*, and images\.allow"):
        read_uri(f"{site}/to//open/ten", rules=rules)
    with pytest.raises(SourceForbiddenError, match=r"redirects to a URL that is not http"):
        read_uri(f"{site}/to/file:///etc/passwd")
    assert [path[:4] for path in _Site.asked] == ["/to/"] * 2
    with pytest.raises(SourceMissingError, match="more than 10 redirects"):
        read_uri(f"{site}/to/" + "/to/" * 20)


@pytest.mark.parametrize("path", ["/nothing", "/broken", "/flood", "/to//broken"])
def test_no_message_holds_what_was_asked_for(site: str, path: str) -> None:
    uri = site.replace("http://", "http://me:SECRET@") + path + "?sig=SECRET&x=a SECRET"
    (row,) = decode(work_table([work_row(0, uri=uri)]), DecodeSettings(max_bytes=9)).to_pylist()
    assert row["failure"] in ("source_missing", "image_too_large")
    assert path.split("?")[0] in row["message"]
    assert "SECRET" not in row["message"]


def test_a_signed_manifest_is_read_and_its_signature_told_to_nobody(site: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": ["a.png"], "target_prompt": [""]}), sink)
    _Site.files["/data/m.parquet"] = sink.getvalue().to_pybytes()
    _Site.files["/data/bad.parquet"] = b"SECRET"
    manifest = Manifest.open(f"{site}/data/m.parquet?sig=SECRET/with/slashes")
    assert [(file.base, file.rows) for file in manifest.files] == [(f"{site}/data", 1)]
    with pytest.raises(ManifestError) as caught:
        Manifest.open(f"{site}/data/bad.parquet?sig=SECRET/with/slashes")
    assert "bad.parquet?..." in str(caught.value)
    assert "SECRET" not in str(caught.value)
