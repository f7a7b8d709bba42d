"""Ids and names come from content."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fpe_core import EditParameters, LayersByRange
from pipeline.plan.ids import (
    EditContext,
    Occurrences,
    SourceKey,
    base_id,
    canonical_json,
    content_id,
    edit_id,
    file_stem,
    group_id,
    parameters_json,
    source_id,
    source_key_of_bytes,
    source_key_of_prompt,
    source_key_of_uri,
)

CONTEXT = EditContext(fingerprint="abc", fit="crop", algorithm_version="1")
KEY = source_key_of_uri("id-1", "a.png")


def base(**changes: object) -> bytes:
    values: dict[str, object] = {
        "key": KEY,
        "source_prompt": "a cat",
        "parameters": EditParameters(),
        "seed": None,
        "context": CONTEXT,
    }
    values |= changes
    return base_id(values.pop("key"), **values)  # type: ignore[arg-type]


def test_ids_do_not_change_between_releases() -> None:
    # Anchors: another value here means that every existing run folder would be computed again.
    assert content_id("edit", 1, "ä", None).hex() == "55ee1363d629adb6026ddd3a5732f4ef"
    assert edit_id(base(), "a dog").hex() == "fccb7a6326fdaacfc11cf3a3bbb56156"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.one_of(
        st.builds(source_key_of_uri, texts, texts),
        st.builds(source_key_of_bytes, texts, st.binary(max_size=4)),
        st.builds(source_key_of_prompt, texts, texts, st.integers(0, 2**63 - 1)),
    ),
    texts,
    st.none() | st.integers(0, 2**63 - 1),
    texts,
)
def test_ids_of_rows_are_content_ids(
    key: SourceKey, prompt: str, seed: int | None, negative: str
) -> None:
    """Their JSON is put together by hand, and is what an encoder would write."""
    parameters = EditParameters(negative_prompt=negative)
    made = base(key=key, source_prompt=prompt, seed=seed, parameters=parameters)
    written = parameters_json(parameters)
    assert made == content_id("base", list(key), prompt, written, seed, "abc", "1", "crop")
    shown = made.hex() if key[0] == "prompt" else list(key)
    assert source_id(key, made) == content_id("source", shown)


def test_everything_that_decides_an_image_is_in_its_id() -> None:
    ids = [
        edit_id(base(), "a dog"),
        edit_id(base(), "a cow"),
        edit_id(base(key=source_key_of_uri("id-2", "a.png")), "a dog"),
        edit_id(base(key=source_key_of_uri("id-1", "b.png")), "a dog"),
        edit_id(base(key=source_key_of_bytes("id-1", b"a.png")), "a dog"),
        edit_id(base(source_prompt=""), "a dog"),
        edit_id(base(parameters=EditParameters(steps=49)), "a dog"),
        edit_id(base(parameters=EditParameters(layers=LayersByRange(4, 14))), "a dog"),
        edit_id(base(parameters=EditParameters(guidance_interval=(0, 0.5))), "a dog"),
        edit_id(base(seed=0), "a dog"),
        edit_id(base(seed=1), "a dog"),
        edit_id(base(context=replace(CONTEXT, fingerprint="abd")), "a dog"),
        edit_id(base(context=replace(CONTEXT, fit="pad")), "a dog"),
        edit_id(base(context=replace(CONTEXT, algorithm_version="2")), "a dog"),
        edit_id(base(), "a dog", occurrence=1),
    ]
    assert len(set(ids)) == len(ids)
    assert {len(identity) for identity in ids} == {16}


def test_equal_parameters_are_equal_however_they_were_written() -> None:
    assert base(parameters=EditParameters(guidance_scale=7)) == base(
        parameters=EditParameters(guidance_scale=7.0)
    )


def test_a_real_source_is_the_same_whatever_is_done_to_it_and_a_synthetic_one_is_not() -> None:
    other = base(parameters=EditParameters(steps=10))
    assert source_id(KEY, base()) == source_id(KEY, other)
    prompt = source_key_of_prompt("", "a cat", 7)
    assert source_id(prompt, base(key=prompt)) != source_id(prompt, other)


def test_kinds_of_ids_do_not_meet() -> None:
    assert len({base(), edit_id(base(), ""), group_id(base()), source_id(KEY, base())}) == 4


parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)


@given(st.lists(parts, max_size=4), st.lists(parts, max_size=4))
def test_ids_are_equal_where_content_is_and_only_there(a: list[object], b: list[object]) -> None:
    same_content = canonical_json(a) == canonical_json(b)
    assert (content_id("x", *a) == content_id("x", *b)) == same_content


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
@example("a", "b/c", "a/b", "c")
@example('a","', "b", "a", '","b')
def test_no_two_sources_share_a_key_by_how_their_texts_meet(
    id_a: str, uri_a: str, id_b: str, uri_b: str
) -> None:
    a, b = source_key_of_uri(id_a, uri_a), source_key_of_uri(id_b, uri_b)
    assert (source_id(a, b"") == source_id(b, b"")) == ((id_a, uri_a) == (id_b, uri_b))


def test_nan_has_no_id() -> None:
    with pytest.raises(ValueError, match="JSON"):
        content_id("x", float("nan"))


@given(st.lists(st.sampled_from([b"a", b"b", b"c"])))
def test_occurrences_number_repetitions(identities: list[bytes]) -> None:
    counter = Occurrences()
    numbered = [(identity, counter.next(identity)) for identity in identities]
    assert len(set(numbered)) == len(numbered)
    for identity in set(identities):
        found = [number for other, number in numbered if other == identity]
        assert found == list(range(len(found)))
    assert len(counter) == len(set(identities))


hostile = st.one_of(
    st.text(),
    st.text("./\\ \0~-_%$:*?|<>\"'`\n", max_size=80),
    st.sampled_from(["..", "../../etc/passwd", "CON", "-rf", "a\u202egnp.exe", "x" * 1000]),
)


@given(hostile, hostile, hostile)
@example("", "s3://bucket/../..", "")
@example("_" * 5000 + "!", "", "")
def test_a_stem_is_harmless_whatever_it_is_made_of(row_id: str, path: str, prompt: str) -> None:
    stem = file_stem(row_id, path, prompt)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}", stem)
    assert "__" not in stem
    assert not stem.startswith("-")
    assert stem == file_stem(row_id, path, prompt)


@pytest.mark.parametrize(
    ("row_id", "path", "prompt", "stem"),
    [
        ("cat-7", "a/b.png", "a cat", "cat-7"),
        ("", "s3://bucket/a/b c.tar.gz", "", "b-c-tar"),
        ("", "http://host/photo.jpg?size=1#x", "", "photo"),
        ("", "a/b#1.png", "", "b-1"),
        ("", ".hidden", "", "hidden"),
        ("", "C:\\photos\\img_001.JPG", "", "img_001"),
        ("", "", "a red heart, on white", "a-red-heart-on-white"),
        ("", "画像.png", "", "source"),
        ("画像", "", "a cat", "a-cat"),
        ("", "", "", "source"),
        ("a__b", "", "", "a_b"),
    ],
)
def test_stems_that_people_recognise(row_id: str, path: str, prompt: str, stem: str) -> None:
    assert file_stem(row_id, path, prompt) == stem
