"""The provenance of a generated image: an XMP packet inside its file, and how to read it.

Every edited image and every synthetic source contains

    Iptc4xmpExt:DigitalSourceType   how it was made, as a term of the IPTC (an edit of a real
                                    image: compositeWithTrainedAlgorithmicMedia; an edit of a
                                    synthetic source, and the source: trainedAlgorithmicMedia)
    fpe:Generation                  one JSON object with all that is needed to make it again

The fitted copy of a real source contains neither. The JSON's keys: kind ("edit" or
"synthetic_source"), edit_id (edits only), source_id, source_prompt, target_prompt (edits only),
seed (null for real sources), parameters, checkpoint_fingerprint, algorithm, algorithm_version;
source_colours if a source's colours were converted or its profile was ignored; shortened if a
prompt was.

The JSON is ASCII: control characters, other scripts and lone surrogates are written as \\uXXXX, so
any text is read back unchanged. Prompts of more than MAX_PROMPT_CHARS characters are cut and end in
"…", and `shortened` has their full lengths by name: a JPEG holds at most 65,502 bytes of XMP in one
segment, and a character can take twelve. All formats contain the same packet; `metadata.parquet`
has every prompt in full. The packet has no time, host or path, so the same edit has the same bytes.

Specifications: IPTC Photo Metadata Standard 2025.1 (DigitalSourceType; vocabulary
http://cv.iptc.org/newscodes/digitalsourcetype/), ISO 16684-1 and Adobe's XMP specification part 3.
"""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ET
from enum import StrEnum
from typing import Any

from PIL import Image

from fpe_core import ALGORITHM_VERSION, EditParameters, ImageDecodeError
from pipeline.ledger.outcome import EditKey
from pipeline.read.group import Group

MAX_PROMPT_CHARS = 1000
"""The most characters of a prompt in the JSON. A text encoder reads about 77 tokens, which is
less."""

FPE_NAMESPACE = "urn:free-prompt-editing:provenance:1/"
"""Ends in "/" as Exiv2 wants it: to a namespace that ends in neither "/" nor "#" it adds one when
it writes the file again (seen in 0.27.6 and 0.28.8)."""
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF_NAMESPACE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP_NAMESPACE = "adobe:ns:meta/"
_PREFIXES = {
    "x": _XMP_NAMESPACE,
    "rdf": _RDF_NAMESPACE,
    "Iptc4xmpExt": IPTC_NAMESPACE,
    "fpe": FPE_NAMESPACE,
}
_SOURCE_TYPE = f"{{{IPTC_NAMESPACE}}}DigitalSourceType"
_GENERATIONS = tuple(f"{{{FPE_NAMESPACE.rstrip('/')}{end}}}Generation" for end in ("/", "#", ""))
"""Up to version 0.2.0 the namespace was written without an end."""
_DESCRIPTION = f"{{{_RDF_NAMESPACE}}}Description"
_FORMATS = ("PNG", "JPEG", "WEBP")
_RAW_PROFILE = "Raw profile type xmp"
_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"


class DigitalSourceType(StrEnum):
    """How an image was made: terms of the IPTC's vocabulary, as URIs."""

    EDITED_BY_MODEL = f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia"
    MADE_BY_MODEL = f"{_VOCABULARY}trainedAlgorithmicMedia"


def edit_packet(
    group: Group, key: EditKey, parameters: EditParameters, checkpoint_fingerprint: str
) -> bytes:
    """The XMP packet of an edited image; `parameters`: those with which it was made."""
    generation: dict[str, Any] = {
        "kind": "edit",
        "edit_id": key.edit_id.hex(),
        "target_prompt": key.target_prompt,
    }
    edit = next((each for each in group.edits if each.key.edit_id == key.edit_id), None)
    if edit is not None and edit.blend_words is not None:
        generation["blend_words"] = list(edit.blend_words)
    if edit is not None and edit.region_prompts is not None:
        generation["region_prompts"] = edit.region_prompts._asdict()
    if group.message:
        generation["source_colours"] = group.message
    is_synthetic = group.image is None
    return xmp_packet(
        DigitalSourceType.MADE_BY_MODEL if is_synthetic else DigitalSourceType.EDITED_BY_MODEL,
        generation | _of_group(group, parameters, checkpoint_fingerprint),
    )


def synthetic_source_packet(group: Group, checkpoint_fingerprint: str) -> bytes:
    """The XMP packet of a source that was generated."""
    generation = {"kind": "synthetic_source"} | _of_group(
        group, group.parameters, checkpoint_fingerprint
    )
    return xmp_packet(DigitalSourceType.MADE_BY_MODEL, generation)


def _of_group(
    group: Group, parameters: EditParameters, checkpoint_fingerprint: str
) -> dict[str, Any]:
    return {
        "source_id": group.source_id.hex(),
        "source_prompt": group.source_prompt,
        "seed": group.seed,
        "parameters": parameters.to_dict(),
        "checkpoint_fingerprint": checkpoint_fingerprint,
        "algorithm": algorithm_of(parameters),
        "algorithm_version": ALGORITHM_VERSION,
    }


def algorithm_of(parameters: EditParameters) -> str:
    """The method and its paper, as in the JSON."""
    if parameters.editor is None:
        return "Free-Prompt-Editing, arXiv 2403.03431"
    return f"{parameters.method.name}: {parameters.method.paper}"


def method_text(parameters: EditParameters) -> str:
    """The method and its paper, as a sentence has them."""
    if parameters.editor is None:
        return "Free-Prompt-Editing (arXiv 2403.03431)"
    return f"`{parameters.method.name}`, {parameters.method.paper},"


def xmp_packet(source_type: DigitalSourceType, generation: dict[str, Any]) -> bytes:
    """A packet with these two properties, in UTF-8; equal values give equal bytes.

    Prompts in `generation` are shortened as the module's docstring describes.
    """
    text = json.dumps(_with_short_prompts(generation), sort_keys=True, separators=(",", ":"))
    root = ET.Element("x:xmpmeta", {f"xmlns:{p}": uri for p, uri in _PREFIXES.items()})
    description = ET.SubElement(
        ET.SubElement(root, "rdf:RDF"), "rdf:Description", {"rdf:about": ""}
    )
    ET.SubElement(description, "Iptc4xmpExt:DigitalSourceType").text = source_type
    ET.SubElement(description, "fpe:Generation").text = text
    # "r": read-only. A packet that may be edited in place needs white space as padding.
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'{ET.tostring(root, encoding="unicode")}\n<?xpacket end="r"?>'
    ).encode()


def _with_short_prompts(generation: dict[str, Any]) -> dict[str, Any]:
    shortened: dict[str, int] = {}

    def short(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(key, item) for key, item in value.items()}
        if name.endswith("_prompt") and len(value) > MAX_PROMPT_CHARS:
            shortened[name] = len(value)
            return value[: MAX_PROMPT_CHARS - 1] + "…"
        return value

    result: dict[str, Any] = short("", generation)
    return {**result, "shortened": shortened} if shortened else result


def read_provenance(data: bytes) -> dict[str, Any]:
    """Reads the provenance from the bytes of a PNG, JPEG or WebP file.

    Returns the keys of the JSON (see the module's docstring) and `digital_source_type`, the URI.
    For a file without provenance, or whose XMP is not well-formed, returns {}; for a file of
    another program that has only a DigitalSourceType, only that. Anybody can write anything into a
    file, so this is a label and not a proof.

    Raises:
        ImageDecodeError: not an image in one of these formats. Pixels are not decoded.
    """
    packet = _find_packet(data)
    if not packet:
        return {}
    try:
        parser = ET.XMLParser(target=_WithoutDoctype())  # noqa: S314 - and so without entities
        parser.feed(packet.strip(b"\0"))
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError):  # LookupError: an unknown encoding
        return {}
    found: dict[str, Any] = {}
    for description in root.iter(_DESCRIPTION):
        for name in _GENERATIONS:
            found |= _read_json(_property(description, name))
        if source_type := _property(description, _SOURCE_TYPE):
            found["digital_source_type"] = source_type
    return found


class _WithoutDoctype(ET.TreeBuilder):
    """Refuses a document type: XMP has none, and its entities could expand to gigabytes."""

    def doctype(self, *_: str) -> None:
        raise ValueError("a document type in XMP")


def _find_packet(data: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            packet = image.info.get("xmp") or _hexadecimal(image.info.get(_RAW_PROFILE))
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ImageDecodeError(
            f"not an image in one of the formats {', '.join(_FORMATS)}: {error}"
        ) from error
    return packet if isinstance(packet, bytes) else b""


def _hexadecimal(text: Any) -> bytes:
    """The packet in a text chunk of a PNG, as ImageMagick and GraphicsMagick write it: the name and
    the number of bytes, each on a line, and then the bytes as hexadecimal digits."""
    with contextlib.suppress(ValueError, LookupError, AttributeError, TypeError):
        return bytes.fromhex(text.split("\n", 3)[3])
    return b""


def _property(description: ET.Element, name: str) -> str:
    """A simple property, which RDF writes as an element or as an attribute."""
    text = description.get(name) or description.findtext(name) or ""
    return text.strip()


def _read_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
