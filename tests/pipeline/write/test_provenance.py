"""The provenance in a generated image, read with Pillow, by hand, and with `read_provenance`."""

from __future__ import annotations

import io
import json
import struct
import xml.dom.minidom
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fpe_core import ALGORITHM_VERSION, EditParameters, ImageDecodeError, checkpoint_fingerprint
from fpe_core.image.colour import srgb_profile
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.read.decode import DecodeSettings, decode
from pipeline.read.group import Group
from pipeline.write.image_format import ImageFormat
from pipeline.write.provenance import (
    FPE_NAMESPACE,
    MAX_PROMPT_CHARS,
    DigitalSourceType,
    edit_packet,
    read_provenance,
    synthetic_source_packet,
    xmp_packet,
)
from tests.builders.colour_profiles import DISPLAY_P3, rgb_profile, srgb_curve
from tests.builders.work_rows import PARAMETERS, work_row, work_table

COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
NAMESPACE = "urn:free-prompt-editing:provenance:1/"
FINGERPRINT = "0123abcd"
FORMATS = [ImageFormat("png"), ImageFormat("jpeg", 90), ImageFormat("webp", 90)]
ALL_CHARACTERS = st.text(st.characters(exclude_categories=()), max_size=60)
"""Controls, lone surrogates and what XML does not allow at all among them."""

each_format = pytest.mark.parametrize("image_format", FORMATS, ids=lambda known: known.name)


def group_of(
    target: str = "a red cat",
    *,
    source_prompt: str = "",
    negative_prompt: str = "",
    seed: int | None = None,
    message: str = "",
) -> Group:
    """A source with one edit: real without a seed, else synthetic."""
    parameters = EditParameters(steps=7, negative_prompt=negative_prompt)
    image_bytes = b"" if seed is None else None
    row = work_row(
        3,
        image_bytes=image_bytes,
        targets=(target,),
        source_prompt=source_prompt,
        seed=seed,
        parameters=parameters,
    )
    size = parameters.width_px * parameters.height_px * 3
    decoded = {"pixels": None if seed is not None else bytes(size), "fit": "", "failure": ""}
    return Group.from_row(0, row | decoded | {"message": message})


def packet_of(group: Group) -> bytes:
    return edit_packet(group, group.edits[0].key, group.parameters, FINGERPRINT)


def small() -> Image.Image:
    return Image.new("RGB", (8, 8), (10, 200, 90))


def found_by_hand(data: bytes, kind: str) -> bytes:
    """The packet by the rules of the container, without any library."""
    return {"png": _in_png, "jpeg": _in_jpeg, "webp": _in_webp}[kind](data)


def _in_png(data: bytes) -> bytes:
    place, packets = 8, []
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        assert checksum == zlib.crc32(name + body)
        if name == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            assert keyword == b"XML:com.adobe.xmp"
            assert rest[:4] == bytes(4), "not compressed, no language, no translated keyword"
            packets.append(rest[4:])
        place += 12 + length
    (packet,) = packets
    return packet


def _in_jpeg(data: bytes) -> bytes:
    place, packets = 2, []
    while data[place + 1] != 0xDA:
        marker, length = struct.unpack_from(">HH", data, place)
        body = data[place + 4 : place + 2 + length]
        if marker == 0xFFE1:
            header, packet = body.split(b"\0", 1)
            assert header == b"http://ns.adobe.com/xap/1.0/"
            packets.append(packet)
        place += 2 + length
    (packet,) = packets
    return packet


def _in_webp(data: bytes) -> bytes:
    place, chunks = 12, {}
    while place < len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        chunks[name] = data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    assert chunks[b"VP8X"][0] & 0b100, "the header announces XMP"
    assert b"EXIF" not in chunks
    return chunks[b"XMP "]


def read_by_dom(packet: bytes) -> tuple[str, dict[str, Any]]:
    """(DigitalSourceType, our JSON) by an XML parser that knows nothing of ours."""
    document = xml.dom.minidom.parseString(packet)
    (instruction, _, last) = document.childNodes
    assert 'id="W5M0MpCehiHzreSzNTczkc9d"' in instruction.data
    assert last.data == 'end="r"'
    (source_type,) = document.getElementsByTagNameNS(IPTC_EXTENSION, "DigitalSourceType")
    (about,) = {source_type.parentNode.getAttribute("rdf:about")}
    assert about == ""
    (ours,) = document.getElementsByTagNameNS(NAMESPACE, "Generation")
    return source_type.firstChild.data, json.loads(ours.firstChild.data)


@each_format
def test_the_packet_is_where_each_format_wants_it(image_format: ImageFormat) -> None:
    group = group_of('a <red> & "blue" cat\'s 猫 😺\n')
    packet = packet_of(group)
    data = image_format.encode(small(), packet)
    assert found_by_hand(data, image_format.name) == packet
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["xmp"] == packet
    source_type, generation = read_by_dom(packet)
    assert source_type == COMPOSITE
    assert generation == {
        "kind": "edit",
        "edit_id": group.edits[0].key.edit_id.hex(),
        "source_id": group.source_id.hex(),
        "source_prompt": "",
        "target_prompt": 'a <red> & "blue" cat\'s 猫 😺\n',
        "seed": None,
        "parameters": group.parameters.to_dict(),
        "checkpoint_fingerprint": FINGERPRINT,
        "algorithm": "Free-Prompt-Editing, arXiv 2403.03431",
        "algorithm_version": ALGORITHM_VERSION,
    }
    assert read_provenance(data) == generation | {"digital_source_type": COMPOSITE}


def test_what_came_from_a_model_alone_says_so() -> None:
    group = group_of("a cat", source_prompt="a dog", seed=11)
    edit_type, edit = read_by_dom(packet_of(group))
    source_type, source = read_by_dom(synthetic_source_packet(group, FINGERPRINT))
    assert edit_type == source_type == TRAINED
    assert (source["kind"], source["source_prompt"], source["seed"]) == (
        "synthetic_source",
        "a dog",
        11,
    )
    assert {"edit_id", "target_prompt"} & set(source) == set()
    assert edit["edit_id"] == group.edits[0].key.edit_id.hex()


@settings(max_examples=60, deadline=None)
@given(target=ALL_CHARACTERS, source=ALL_CHARACTERS, negative=ALL_CHARACTERS)
def test_any_text_comes_back_as_it_was(target: str, source: str, negative: str) -> None:
    values = {
        "target_prompt": target,
        "source_prompt": source,
        "parameters": {"negative_prompt": negative},
    }
    packet = xmp_packet(DigitalSourceType.EDITED_BY_MODEL, values)
    assert read_by_dom(packet) == (COMPOSITE, values)
    for image_format in FORMATS:
        data = image_format.encode(small(), packet)
        assert read_provenance(data) == values | {"digital_source_type": COMPOSITE}


@pytest.mark.parametrize("character", ["\N{CAT FACE}", "\x00", "&", "\ud800", '"', "a"])
def test_prompts_of_any_length_fit_into_a_jpeg(character: str) -> None:
    prompt = character * 100_000
    group = group_of(
        prompt,
        source_prompt=prompt[:MAX_PROMPT_CHARS],
        negative_prompt=prompt[: MAX_PROMPT_CHARS + 1],
        message=character * 500,
    )
    packet = packet_of(group)
    assert len(packet) <= 65_502
    data = ImageFormat("jpeg").encode(small(), packet)
    assert found_by_hand(data, "jpeg") == packet
    found = read_provenance(data)
    assert found["target_prompt"] == character * (MAX_PROMPT_CHARS - 1) + "…"
    assert found["source_prompt"] == character * MAX_PROMPT_CHARS
    assert found["parameters"]["negative_prompt"] == found["target_prompt"]
    assert found["shortened"] == {
        "target_prompt": 100_000,
        "negative_prompt": MAX_PROMPT_CHARS + 1,
    }


@each_format
def test_the_same_picture_says_srgb_and_nothing_it_was_not_told(
    image_format: ImageFormat, picture: Callable[..., Image.Image]
) -> None:
    clean, burdened = picture(2), picture(2)
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    burdened.info = {"comment": b"a secret", "icc_profile": b"a secret", "xmp": b"a secret"}
    burdened.info |= {"exif": exif.tobytes(), "dpi": (7, 7), "srgb": 3}
    plain, packet = image_format.encode(clean), packet_of(group_of())
    assert image_format.encode(burdened) == plain
    assert burdened.info["comment"] == b"a secret", "the caller's picture is as it was"
    assert read_provenance(plain) == {}
    marked = image_format.encode(clean, packet)
    assert marked == image_format.encode(burdened, packet)
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(marked)) as two:
        assert np.array_equal(np.asarray(one), np.asarray(two))
        for image in (one, two):
            if image_format.name == "png":
                assert image.info["srgb"] == 0
            else:
                assert image.info["icc_profile"] == srgb_profile()


def photo_of_a_phone(picture: Image.Image, kind: str = "JPEG") -> bytes:
    """A photo in Display P3, with a place, a comment and XMP of its own; EXIF in a JPEG's APP1, a
    PNG's eXIf chunk, a WebP's EXIF chunk."""
    exif = Image.Exif()
    exif[0x010F] = "A Secret Phone"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 31.0, 12.0)
    sink = io.BytesIO()
    wide = rgb_profile(DISPLAY_P3, srgb_curve(), "Display P3")
    texts: dict[str, Any] = {"comment": b"a secret comment", "xmp": b"<secret/>"}
    if kind == "PNG":
        texts = {"pnginfo": PngImagePlugin.PngInfo()}
        texts["pnginfo"].add_text("Comment", "a secret comment")
    picture.save(sink, kind, quality=95, exif=exif, icc_profile=wide, **texts)
    return sink.getvalue()


@pytest.fixture
def editing(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[str], EditSettings]:
    def make(folder: str) -> EditSettings:
        return EditSettings(
            output=str(tmp_path / folder),
            checkpoint=str(tiny_checkpoint),
            checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
            device="cpu",
            image_format=ImageFormat("jpeg"),
        )

    return make


def files_of(settings: EditSettings) -> dict[str, bytes]:
    """The images of the one part: kind/name to bytes."""
    paths = Path(settings.output).glob("part-*/*/*")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def assert_says_nothing_of_the_photo(data: bytes) -> None:
    for secret in (b"Exif", b"EXIF", b"eXIf", b"GPS", b"ecret"):
        assert secret not in data
    with Image.open(io.BytesIO(data)) as image:
        assert dict(image.getexif()) == {}


@each_format
def test_where_a_photo_was_taken_is_in_no_file(
    image_format: ImageFormat,
    editing: Callable[[str], EditSettings],
    picture: Callable[..., Image.Image],
) -> None:
    """Neither in edits nor in copies of sources, whatever kind of file the photo is."""
    photos = [photo_of_a_phone(picture(n), kind) for n, kind in enumerate(("JPEG", "PNG", "WEBP"))]
    for photo in photos:
        with Image.open(io.BytesIO(photo)) as image:
            assert image.getexif().get_ifd(0x8825)[1] == "N"
        assert b"ecret" in photo
    rows = [work_row(n, image_bytes=photo, targets=("a cat",)) for n, photo in enumerate(photos)]
    settings = replace(editing("run"), image_format=image_format)
    outcomes = EditActor(settings)(decode(work_table(rows), DecodeSettings())).to_pylist()
    assert [outcome["outcome"] for outcome in outcomes] == ["accepted"] * 3
    files = files_of(settings)
    assert len(files) == 6
    for data in files.values():
        assert_says_nothing_of_the_photo(data)


def test_what_an_actor_writes(
    editing: Callable[[str], EditSettings], picture: Callable[..., Image.Image]
) -> None:
    rows = [
        work_row(0, image_bytes=photo_of_a_phone(picture(0)), targets=("a red cat", "a blue dog")),
        work_row(1, source_prompt="a photo of a dog", seed=11, targets=("a cat",)),
    ]
    settings = editing("run")
    block = decode(work_table(rows), DecodeSettings())
    outcomes = EditActor(settings)(block).to_pylist()
    assert [outcome["outcome"] for outcome in outcomes] == ["accepted"] * 3
    note = "colours converted from Display P3 to sRGB"
    assert [outcome["message"] for outcome in outcomes] == [note, note, ""]

    files = files_of(settings)
    for data in files.values():
        assert_says_nothing_of_the_photo(data)
    found = {name: read_provenance(data) for name, data in files.items()}
    assert len(found) == 5
    (fitted,) = (name for name, said in found.items() if not said)
    assert fitted.startswith("source/picture-0__"), "it was not generated"
    (synthetic,) = (name for name in found if name.startswith("source/picture-1__"))
    assert found[synthetic]["digital_source_type"] == TRAINED
    assert found[synthetic]["source_id"] in synthetic
    for outcome, source_type in zip(outcomes, [COMPOSITE, COMPOSITE, TRAINED], strict=True):
        said = found[outcome["edited_file_name"].partition("/")[2]]
        assert said["digital_source_type"] == source_type
        assert said["edit_id"] == outcome["edit_id"].hex()
        assert said["target_prompt"] == outcome["target_prompt"]
        assert said["parameters"] == PARAMETERS.to_dict()
        assert said["checkpoint_fingerprint"] == settings.checkpoint_fingerprint
        assert said.get("source_colours", "") == outcome["message"]

    again = editing("again")
    EditActor(again)(block)
    assert files_of(again) == files


def with_xmp(text: str) -> bytes:
    return ImageFormat("png").encode(small(), text.encode())


def description(inner: str, attributes: str = "") -> str:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:i="{IPTC_EXTENSION}"'
        ' xmlns:f="urn:free-prompt-editing:provenance:1"'
        ' xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<r:RDF><r:Description r:about="" {attributes}>{inner}</r:Description></r:RDF></x:xmpmeta>'
    )


def test_what_others_wrote_is_read_or_passed_over() -> None:
    """The type as an element or an attribute; XMP of other things; XMP that is none."""
    expected = {"digital_source_type": TRAINED}
    as_element = description(f"<i:DigitalSourceType> {TRAINED}\n</i:DigitalSourceType>")
    as_attribute = description("", f'i:DigitalSourceType="{TRAINED}"')
    assert read_provenance(with_xmp(as_element)) == expected
    assert read_provenance(with_xmp(as_attribute)) == expected
    assert read_provenance(with_xmp(as_element + "\0\0")) == expected
    for nothing in (
        description(""),
        description("<f:Generation>[1]</f:Generation>"),
        description("<f:Generation>{no</f:Generation>"),
        description(f"<f:Generation>{'[' * 100_000}</f:Generation>"),
        as_element[:-3],
        "no XML",
        '<?xml version="1.0" encoding="klingon"?>' + as_element,
    ):
        assert read_provenance(with_xmp(nothing)) == {}


GENERATION = '{"edit_id":"ab","target_prompt":"a cat"}'


@pytest.mark.parametrize("end", ["", "/", "#"])
def test_every_spelling_of_the_namespace_is_read(end: str) -> None:
    """Without an end, as files were written up to 0.2.0; and with one, as Exiv2 ends it then."""
    packet = description(f"<f:Generation>{GENERATION}</f:Generation>")
    spelled = packet.replace("provenance:1", f"provenance:1{end}")
    assert read_provenance(with_xmp(spelled)) == json.loads(GENERATION)


def test_what_exiv2_writes_again_is_read() -> None:
    """An old file after `exiv2 -M "set Xmp.dc.title hello"`, by Exiv2 0.27.6 and 0.28.8."""
    attribute = GENERATION.replace('"', "&quot;")
    rewritten = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:iptcExt="{IPTC_EXTENSION}"
    xmlns:fpe="urn:free-prompt-editing:provenance:1/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   iptcExt:DigitalSourceType="{COMPOSITE}"
   fpe:Generation="{attribute}">
   <dc:title>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">hello</rdf:li>
    </rdf:Alt>
   </dc:title>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
    expected = json.loads(GENERATION) | {"digital_source_type": COMPOSITE}
    assert read_provenance(with_xmp(rewritten)) == expected


def test_a_namespace_that_exiv2_leaves_as_it_is() -> None:
    assert FPE_NAMESPACE == NAMESPACE
    assert FPE_NAMESPACE.endswith(("/", "#"))


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("\nxmp\n{length:8}\n{digits}\n", True),  # as ImageMagick 6.9.11 makes a PNG of a JPEG
        ("\nxmp\n{length:8}\nno digits\n", False),
        ("xmp", False),
    ],
)
def test_a_png_that_imagemagick_made_is_read(text: str, is_read: bool) -> None:
    packet = xmp_packet(DigitalSourceType.EDITED_BY_MODEL, json.loads(GENERATION))
    digits = "\n".join(packet.hex()[n : n + 72] for n in range(0, 2 * len(packet), 72))
    chunks = PngImagePlugin.PngInfo()
    profile = text.format(length=len(packet), digits=digits)
    chunks.add_text("Raw profile type xmp", profile, zip=True)
    sink = io.BytesIO()
    small().save(sink, "PNG", pnginfo=chunks)
    expected = json.loads(GENERATION) | {"digital_source_type": COMPOSITE}
    assert read_provenance(sink.getvalue()) == (expected if is_read else {})


def test_xmp_with_entities_is_not_read() -> None:
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "'
        + TRAINED
        + '">]>'
        + description("<i:DigitalSourceType>&a;</i:DigitalSourceType>")
    )
    assert read_provenance(with_xmp(bomb)) == {}


@pytest.mark.parametrize("data", [b"", b"no picture", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(ImageDecodeError, match="PNG, JPEG, WEBP"):
        read_provenance(data)
