"""A page read with the standard library's parser, and runs to make pages of."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.ledger.outcome import OUTCOME_SCHEMA, EditKey, EditOutcome
from pipeline.storage.folder import Folder
from pipeline.write.metadata import MetadataLayout
from tests.builders.judged_run import accepted, failed, rejected

HOSTILE = (
    "not there: <script>window.hacked = 1</script>\"'><img src=x onerror='window.hacked = 1'>"
    + "/folder" * 40
)


def one_of_each(number: int, key: EditKey) -> EditOutcome:
    """Four accepted with rising scores, one rejected, one failed with a hostile message."""
    if number == 4:
        return rejected(
            number, key, RejectReason.NO_CHANGE, changed_share=0.01, directional_similarity=0.9
        )
    if number == 5:
        return failed(key, message=HOSTILE)
    return accepted(number, key, changed_share=0.1, directional_similarity=0.6 + 0.1 * number)


@dataclass
class Parsed(HTMLParser):
    """Every tag with its attributes, in order; and the text of each kind of tag."""

    page: bytes
    tags: list[tuple[str, Mapping[str, str | None]]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self.feed(self.page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        self.texts[tag] = self.texts.get(tag, "") + data

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def all(self, name: str) -> list[Mapping[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def tiles(self) -> list[Mapping[str, str | None]]:
        return [attributes for attributes in self.all("li") if attributes.get("class") == "tile"]

    def values(self, attribute: str) -> list[str]:
        return [
            str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes
        ]

    def outside(self) -> list[str]:
        """Whatever a browser would fetch from somewhere else."""
        links = [
            url
            for name in ("src", "href", "srcset", "action", "poster", "data")
            for url in self.values(name)
            if not re.match(r"data:|#|\./", url)
        ]
        styles = self.texts.get("style", "") + " ".join(self.values("style"))
        return links + re.findall(r"@import|url\([^)]*\)|https?://\S+", styles)

    def accessibility(self) -> list[str]:
        """What would be in the way of a keyboard or a screen reader."""
        ids = Counter(self.values("id"))
        found = [f"id {name} is there {count} times" for name, count in ids.items() if count > 1]
        found += [f"img without alt: {i}" for i in self.all("img") if not i.get("alt")]
        for name in self.values("aria-labelledby"):
            found += [f"nothing is called {name}"] if name not in ids else []
        for url in self.values("href"):
            is_dead = url.startswith("#") and url[1:] not in ids
            found += [f"{url} leads nowhere"] if is_dead else []
        if any("onclick" in attributes for _, attributes in self.tags):
            found.append("onclick")
        if any(str(value) not in ("0", "-1") for value in self.values("tabindex")):
            found.append("an order of focus of its own")
        return found


def write_large_run(folder: Folder, edits: int, pictures: int) -> None:
    """A judged run of many edits whose files are a few pictures of noise, the worst to compress."""
    noise = np.random.default_rng(0)
    for number in range(pictures):
        sink = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (160, 160, 3), np.uint8)).save(sink, "PNG")
        folder.write_new(f"part-a/edited/{number}.png", sink.getvalue())
    columns = _outcome_columns(edits, pictures)
    none = [None] * edits
    table = pa.table({f.name: pa.array(columns.get(f.name, none), f.type) for f in OUTCOME_SCHEMA})
    folder.write_new(".ledger/outcomes-00000000.parquet", _parquet(table))
    is_accepted = [outcome == "accepted" for outcome in columns["outcome"]]
    layout = MetadataLayout(("colour", "shape"), judged=True)
    described = {
        "edit_id": [each.hex() for each in columns["edit_id"]],
        "source_id": [each.hex() for each in columns["source_id"]],
        "id": [f"picture-{n // 5:06}" for n in range(edits)],
        "source_prompt": ["a photo of a thing on a table"] * edits,
        "target_prompt": columns["target_prompt"],
        "colour": [f"colour {n % 200}" for n in range(edits)],
        "shape": [f"shape {n % 7}" for n in range(edits)],
    }
    metadata = pa.table(
        [pa.array(described.get(f.name, [None] * edits), f.type) for f in layout.schema],
        schema=layout.schema,
    )
    folder.write_new("part-a/metadata.parquet", _parquet(metadata.filter(pa.array(is_accepted))))
    rules = {
        f"type {n}": [
            {"score": "changed_share", "at_least": 0.1, "reason": "no_change"},
            {"score": "structure_distance", "at_most": 0.8, "reason": "structure_lost"},
        ]
        for n in range(40)
    }
    prompts = {"labels": {"colour": ["x"], "shape": ["y"]}}
    config = {"prompts": prompts, "judge": {"rules": rules}}
    folder.write_new("config.yaml", yaml.safe_dump(config).encode())


def _outcome_columns(edits: int, pictures: int) -> dict[str, Any]:
    """40 types; of ten edits seven are accepted, two rejected and one failed."""
    noise = np.random.default_rng(1)
    numbers = range(edits)
    outcomes = ["accepted"] * 7 + ["rejected"] * 2 + ["failed"]
    reasons = [""] * 7 + ["no_change", "structure_lost", "decode_failed"]
    scores = {
        item.name: noise.random(edits) for item in OUTCOME_SCHEMA if item.type == pa.float64()
    }
    return {
        **scores,
        "edit_id": [n.to_bytes(16) for n in numbers],
        "group_id": [(n // 5).to_bytes(16) for n in numbers],
        "source_id": [(n // 5).to_bytes(16) for n in numbers],
        "row": list(numbers),
        "part": ["part-a" if n % 10 < 7 else "" for n in numbers],
        "outcome": [outcomes[n % 10] for n in numbers],
        "reason": [reasons[n % 10] for n in numbers],
        "message": ["" if n % 10 < 7 else f"what was said of edit {n} " * 10 for n in numbers],
        "edited_file_name": [f"part-a/edited/{n % pictures}.png" for n in numbers],
        "source_file_name": [f"part-a/edited/{n // 5 % pictures}.png" for n in numbers],
        "target_prompt": [f"a photo of thing {n} on a table, " + "in snow " * 20 for n in numbers],
        "edit_type": [f"type {n // 10 % 40}" for n in numbers],
    }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
