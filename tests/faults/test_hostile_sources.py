"""URIs of a manifest by somebody else: what is read lies where the job allows it, or is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fpe_core import ImageTooLargeError
from pipeline.errors import RowError
from pipeline.ledger.outcome import FailureCode
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder, resolve_uri
from tests.builders.hostile_texts import hostile_text
from tests.faults.fuzz import cases

OPEN, SECRET, LARGE = b"open", b"secret", b"large" * 100
SCHEMES = (
    *(
        "",
        "",
        "",
        "file://",
        "file://",
        "FILE://",
        "local://",
        "memory://",
        "memory://",
        "MEMORY://",
    ),
    *("file:", "file://localhost", "s3://bucket/", "http://127.0.0.1:9/", "ftp://127.0.0.1:9/"),
    *("simplecache::", "simplecache::file://", "filecache::memory://", "blockcache::file://"),
    *(
        "zip://a.png::",
        "tar://a::file://",
        "reference://",
        "reference://a::file://",
        "dir::file://",
    ),
    *("cached::", "git://", "data:", "data://", "::", "file://a::file://", "nowhere://"),
)
NAMES = (
    *(
        "open",
        "open",
        "open",
        "secret.png",
        "large.png",
        "a.png",
        "a.png",
        "deep",
        "way",
        "link.png",
    ),
    *(
        "..",
        "..",
        ".",
        "",
        "%2e%2e",
        "%252e%252e",
        "..%2f",
        "..\\",
        "opened",
        "loop",
        "door",
        "shop",
    ),
    *("\0", "x" * 300, "é", "a::b", "a.png?x=1", "a.png#y", "file:", "~", "$HOME", "*.png", " "),
)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Path]:
    """open/ may be read; secret.png and opened/ lie beside it, and there are ways out and in."""
    house = tmp_path / "house"
    shop = Folder.open("memory://shop")
    for folder, content in (("open", OPEN), ("open/deep", OPEN), ("opened", SECRET), ("", SECRET)):
        (house / folder).mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "a::b", "secret.png", "large.png"):
            data = LARGE if name == "large.png" else content
            (house / folder / name).write_bytes(data)
            shop.replace(f"{folder}/{name}".lstrip("/"), data)
    (house / "open" / "link.png").symlink_to("../secret.png")
    (house / "open" / "way").symlink_to("..")
    (house / "open" / "loop").symlink_to("loop")
    (house / "door").symlink_to("open")
    yield house
    shop.fs.rm("/shop", recursive=True)


def hostile_uri(house: Path, chance: np.random.Generator) -> str:
    scheme = SCHEMES[int(chance.integers(len(SCHEMES)))]
    start = ("", f"{house}", f"{house}/open", "shop", "shop/open", "/etc/passwd")
    names = [NAMES[i] for i in chance.integers(len(NAMES), size=int(chance.integers(0, 6)))]
    if chance.random() < 0.1:
        names.append(hostile_text(chance))
    uri = scheme + "/".join([start[int(chance.integers(len(start)))], *names])
    return uri + ("", "", "", "/", "::file:///etc/passwd")[int(chance.integers(5))]


def test_no_uri_leads_out_of_where_sources_may_live(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = house.parent / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))  # where a layer would keep copies
    monkeypatch.chdir(house)
    rules = SourceRules((f"{house}/open", "memory://shop/open"))
    before = sorted(house.rglob("*"))
    bases = (str(house), f"{house}/open", "memory://shop/open", "s3://bucket", "")
    seen = set()
    for number, chance in cases("source URI"):
        uri, base = hostile_uri(house, chance), bases[int(chance.integers(len(bases)))]
        looked_ahead = rules.refusal(resolve_uri(uri, base))
        try:
            data = read_uri(uri, base, rules=rules, max_bytes=100)
        except (RowError, ImageTooLargeError) as error:
            seen.add(FailureCode(error.code))
            continue
        assert data == OPEN, (number, uri, base)
        assert looked_ahead == "", (number, uri, base)
        seen.add("read")
    assert seen == {
        "read",
        FailureCode.SOURCE_FORBIDDEN,
        FailureCode.SOURCE_MISSING,
        FailureCode.IMAGE_TOO_LARGE,
    }
    assert sorted(house.rglob("*")) == before
    assert list(scratch.iterdir()) == []
