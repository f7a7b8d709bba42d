"""`file:` URIs as other programs write them, wherever a job or a manifest may name a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceForbiddenError
from pipeline.job.job import ImagesSection
from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, RowReader
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.fetch import read_uri
from pipeline.storage.file_uris import path_of_file_uri, with_slashes
from pipeline.storage.folder import Folder, absolute_url
from tests.builders.work_rows import PARAMETERS

NAME = "my data/ä #1?.png"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.parent.mkdir()
    path.write_bytes(b"image")
    return path


def spellings(path: Path) -> list[str]:
    """Python's (RFC 8089), Hadoop's and Spark's, with the host, in capitals; and not encoded."""
    encoded = path.as_uri()
    assert encoded.startswith("file:///")
    assert "%20" in encoded
    paths = (encoded.removeprefix("file://"), str(path))
    starts = ("file://", "file:", "file://localhost", "FILE://", "File:", "file://LOCALHOST")
    return [f"{start}{text}" for start in starts for text in paths]


def test_every_spelling_is_the_same_file(image: Path) -> None:
    for uri in spellings(image):
        assert read_uri(uri) == b"image", uri
        assert absolute_url(uri) == str(image), uri
        folder = Folder.open(uri.removesuffix(uri.rpartition("/")[2]).rstrip("/"))
        assert folder.read(image.name) == b"image", uri


def test_a_name_with_a_percent_sign_comes_before_what_it_could_stand_for(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"blank")
    assert read_uri(f"file://{tmp_path}/a%20b.png") == b"blank"
    (tmp_path / "a%20b.png").write_bytes(b"percent")
    assert read_uri(f"file://{tmp_path}/a%20b.png") == b"percent"
    assert read_uri(f"file:{tmp_path}/a%2520b.png") == b"percent"
    (tmp_path / "\udce9.png").write_bytes(b"latin")
    assert read_uri(f"file://{tmp_path}/%E9.png") == b"latin"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/a/b", "/a/b"),
        ("file:///a/../b", "/b"),
        ("file:///a/%2e%2e/b", "/b"),
        ("file:///%00", "/%00"),
        ("file:///", "/"),
        ("file://localhost/a", "/a"),
        ("file://localhosts/a", None),
        ("file://nas/a", None),
        ("file:a", None),
        ("files:/a", None),
        ("/file:/a", None),
        ("s3://file:/a", None),
    ],
)
def test_what_is_a_file_uri(uri: str, path: str | None) -> None:
    assert path_of_file_uri(uri) == path


@pytest.mark.parametrize("uri", ["file://a", "file:a", "/file:/a", "s3://b/file:/a", "file:"])
def test_slashes_are_added_to_file_uris_only(uri: str) -> None:
    assert with_slashes(uri) == uri
    assert with_slashes("file:/a b%20") == "file:///a b%20"


def test_rules_hold_in_every_spelling(image: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    for rule in [str(image.parent), *(uri.rpartition("/")[0] for uri in spellings(image))]:
        (allowed,) = ImagesSection.model_validate({"allowed_sources": [rule]}).allowed_sources or ()
        rules = SourceRules((allowed,))
        for uri in spellings(image):
            assert read_uri(uri, rules=rules) == b"image"
            outside = [
                uri.rpartition("/")[0] + "/../secret.png",
                uri.rpartition("/")[0] + "/%2e%2e/secret.png",
                uri.rpartition("/")[0] + "%2F..%2Fsecret.png",
                f"file:{tmp_path}/secret.png",
                f"file://localhost{tmp_path}/%73ecret.png",
            ]
            for other in outside:
                assert rules.refusal(with_slashes(other)), other
                with pytest.raises(SourceForbiddenError):
                    read_uri(other, rules=rules)


def test_a_manifest_as_spark_writes_it(image: Path, tmp_path: Path) -> None:
    """`file:/...` and `file:///...`, encoded or not."""
    uris = spellings(image)
    table = pa.table({"image": uris, "target_prompt": ["x"] * len(uris)})
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = Manifest.open(f"file:{tmp_path}/m.parquet")
    assert manifest.files[0].base == str(tmp_path)
    (batch,) = manifest.batches()
    rows = list(RowReader(manifest, PARAMETERS, None).read(batch, Problems()))
    assert [read_uri(row.uri) for row in rows] == [b"image"] * len(uris)
    assert rows[0].uri_key == uris[0], "as before"
    assert rows[2].uri_key == uris[0], "two slashes more do not make another source"
