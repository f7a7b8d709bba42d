"""Sets of the hub, in their schemas: Parquet as the hub has it, Arrow as `datasets` saves it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.plan.plan import make_plan
from tests.jobs.manifest_from.conftest import Make
from tests.jobs.manifest_from.test_pie_bench import RUNS, decoded, mask_by_hand

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file: Path, rows: list[dict[str, Any]], images: tuple[str, ...]) -> None:
    """A Parquet file whose columns of these names are images (bytes in the rows)."""
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in images:
            cells = [None if each is None else {"bytes": each, "path": None} for each in values]
            columns[name] = pa.array(cells, IMAGE)
        else:
            columns[name] = pa.array(values)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


@pytest.fixture
def jpeg(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    def encode(number: int, size: int = 64) -> bytes:
        data = io.BytesIO()
        picture(number, size, size).save(data, "JPEG")
        return data.getvalue()

    return encode


def plus_plus(image: bytes | None, **changed: Any) -> dict[str, Any]:
    return {
        "image": image,
        "id": "111000000000",
        "source_prompt": "a [red] cup",
        "target_prompt": "a [blue] cup",
        "edit_action": "{'blue': {'position': 1, 'edit_type': 6, 'action': 'red'}}",
        "aspect_mapping": "{'cup': ['blue']}",
        "blended_words": '["red,blue"]',
        "mask": " ".join(map(str, RUNS)),
    } | changed


def test_pie_bench_plus_plus(make: Make, tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    folder, image = tmp_path / "pp", jpeg(1, 512)
    write(
        folder / "1_change_object_80/V1-00000-of-00001.parquet",
        [
            plus_plus(image),
            plus_plus(image, id="two", blended_words='["red,blue", "cup,mug"]'),
            plus_plus(image, id="odd", blended_words="red blue", mask="a b"),
            plus_plus(None, id="none"),
        ],
        ("image",),
    )
    write(
        folder / "9_change_style_80/V1-00000-of-00001.parquet",
        [plus_plus(image, id="style", blended_words="[]")],
        ("image",),
    )
    write(
        folder / "2_other/V1-00000-of-00001.parquet",
        [plus_plus(image, id="elsewhere")],
        ("image",),
    )
    made = make("pie-bench-pp", folder)
    elsewhere = made.row("elsewhere")
    assert elsewhere["edit_type"] is None
    assert elsewhere["problem"].startswith("the type is not known: ")
    row = made.row("111000000000")
    assert row["image"]["bytes"] == image
    assert (row["source_prompt"], row["target_prompt"]) == ("a red cup", "a blue cup")
    assert (row["blend_words"], row["edit_type"]) == (["red", "blue"], "change_object")
    assert np.array_equal(decoded(row["edit_mask"]), mask_by_hand(RUNS, frame=True))
    two = made.row("two")
    assert (two["blend_words"], two["problem"]) == (None, None)
    assert two["blended_words"] == '["red,blue", "cup,mug"]'
    assert made.row("odd")["problem"] == (
        "blended_words 'red blue' are not pairs of words; "
        "the mask is not a list of starts and lengths"
    )
    assert [each["id"] for each in made.left_out] == ["none"]
    assert made.row("style")["edit_type"] == "change_style"
    assert made.row("style")["blend_words"] is None
    assert "instruction" not in made.table.column_names


def turn(number: int, jpeg: Callable[..., bytes], **changed: Any) -> dict[str, Any]:
    return {
        "img_id": "139306",
        "turn_index": number,
        "source_img": jpeg(number),
        "mask_img": transparent(128),
        "instruction": "add a hat",
        "target_img": jpeg(number + 10),
    } | changed


def transparent(size: int) -> bytes:
    """A white picture whose upper left quarter is transparent, as MagicBrush draws masks."""
    values = np.full((size, size, 4), 255, np.uint8)
    values[: size // 2, : size // 2, 3] = 0
    return png_of(values)


def png_of(values: np.ndarray[Any, Any]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def quarter(size: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2, : size // 2] = 255
    return mask


IMAGES_OF_TURNS = ("source_img", "mask_img", "target_img")


def test_magicbrush_of_the_hub(
    make: Make, tmp_path: Path, jpeg: Callable[..., bytes], tiny_checkpoint: Path
) -> None:
    """A mask is what is transparent, in the picture's size; the answer is the reference."""
    photo = png_of(np.full((64, 64, 3), 90, np.uint8))
    write(
        tmp_path / "mb/data/dev-00000-of-00004-384b.parquet",
        [
            turn(1, jpeg),
            turn(2, jpeg, mask_img=png_of(quarter(64))),
            turn(3, jpeg, mask_img=photo),
            turn(3, jpeg, instruction="again"),
            turn(4, jpeg, mask_img=None, target_img=None),
        ],
        IMAGES_OF_TURNS,
    )
    made = make("magicbrush", tmp_path / "mb")
    first = made.row("139306-1")
    assert np.array_equal(decoded(first["edit_mask"]), quarter(64))
    assert first["reference"]["bytes"] == jpeg(11)
    assert (first["img_id"], first["turn_index"], first["split"]) == ("139306", 1, "dev")
    assert np.array_equal(decoded(made.row("139306-2")["edit_mask"]), quarter(64))
    third = next(row for row in made.rows if row["id"] == "139306-3")
    assert third["edit_mask"] is None
    assert third["problem"] == "the mask is a picture without transparency, not black and white"
    (again,) = made.left_out
    assert again["problem"] == "an earlier entry has the id 139306-3 too"
    assert made.row("139306-4")["problem"] == (
        "the entry has no bytes in target_img; the entry has no bytes in mask_img"
    )
    assert "target_prompt" not in made.table.column_names, "the set has no captions"
    assert made.printed["editors"] == dict.fromkeys(made.printed["editors"], 0) | {
        "instruct_pix2pix": 4
    }
    opened = datasets.load_dataset("parquet", data_files=made.printed["manifest"], split="train")
    assert opened[0]["image"].size == opened[0]["reference"].size == (64, 64)


def test_magicbrush_of_the_zip(make: Make, tmp_path: Path, save: Callable[..., Path]) -> None:
    images = tmp_path / "mb/images/327"
    for name in ("327-input.png", "327-output1.png"):
        save(images / name)
    (images / "327-mask1.png").write_bytes(transparent(64))
    names = [("327-input.png", "327-output1.png", 1), ("327-output1.png", "327-output2.png", 2)]
    turns = [
        {"input": a, "output": b, "mask": f"327-mask{n}.png", "instruction": f"step {n}"}
        for a, b, n in names
    ]
    captions = {"327": {"327-input.png": "a cat", "327-output1.png": "a cat with a hat"}}
    for name, value in (("edit_turns", turns), ("global_descriptions", captions)):
        (tmp_path / f"mb/{name}.json").write_text(json.dumps(value), encoding="utf-8")
    made = make("magicbrush", tmp_path / "mb")
    first, second = made.rows
    assert first["image"] == "mb/images/327/327-input.png"
    assert first["reference"] == "mb/images/327/327-output1.png"
    assert (first["source_prompt"], first["target_prompt"]) == ("a cat", "a cat with a hat")
    assert np.array_equal(decoded(first["edit_mask"]), quarter(64))
    assert (second["id"], second["target_prompt"]) == ("327-2", None)
    assert second["problem"].count("there is no picture 327/327-") == 2, "answer and mask"
    Path(made.printed["manifest"]).unlink()
    embedded = make("magicbrush", tmp_path / "mb", "--embed")
    assert embedded.rows[0]["image"]["bytes"] == (images / "327-input.png").read_bytes()
    assert embedded.rows[0]["reference"]["path"] == "mb/images/327/327-output1.png"
    assert embedded.rows[1]["reference"] == {
        "bytes": None,
        "path": "mb/images/327/327-output2.png",
    }


def emu(number: int, split: str, image: bytes) -> dict[str, Any]:
    return {
        "instruction": "make it night",
        "image": image,
        "task": "background",
        "split": split,
        "idx": number,
        "hash": f"{number:04x}",
        "input_caption": "a street by day",
        "output_caption": "a street by night",
    }


def test_emu_edit(
    make: Make, tmp_path: Path, jpeg: Callable[..., bytes], tiny_checkpoint: Path
) -> None:
    for split in ("validation", "test"):
        file = tmp_path / f"emu/data/{split}-00000-of-00002-640e.parquet"
        write(file, [emu(number, split, jpeg(number)) for number in range(130)], ("image",))
    made = make("emu-edit", tmp_path / "emu", "--split", "test")
    assert len(made.rows) == 130
    row = made.row("test-background-129")
    assert row["image"]["bytes"] == jpeg(129)
    assert (row["source_prompt"], row["target_prompt"]) == ("a street by day", "a street by night")
    assert (row["edit_type"], row["split"], row["hash"]) == ("background", "test", "0081")
    assert pq.ParquetFile(made.printed["manifest"]).metadata.num_row_groups == 2
    assert made.printed["editors"]["p2p"] == made.printed["editors"]["instruct_pix2pix"] == 130
    job = {
        "manifest": made.printed["manifest"],
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint)},
    }
    assert make_plan(Job.model_validate(job), write=False).edits_total == 130


def test_gedit_bench_as_datasets_saved_it(
    make: Make,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
    refusal: Callable[..., str],
) -> None:
    rows = {
        "task_type": ["background_change", "text_change"],
        "key": ["aa", "bb"],
        "instruction": ["make it night", "把文字改成"],
        "instruction_language": ["en", "cn"],
        "input_image": [picture(0, 32, 32), picture(1, 32, 32)],
        "input_image_raw": [picture(0), picture(1)],
        "Intersection_exist": [True, False],
    }
    features = datasets.Features(
        {
            **dict.fromkeys(list(rows)[:4], datasets.Value("string")),
            **dict.fromkeys(("input_image", "input_image_raw"), datasets.Image()),
            "Intersection_exist": datasets.Value("bool"),
        }
    )
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    saved.save_to_disk(tmp_path / "gedit")
    made = make("gedit-bench", tmp_path / "gedit")
    row = made.row("text_change-cn-bb")
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (64, 64), "the raw picture"
    assert (row["instruction"], row["edit_type"]) == ("把文字改成", "text_change")
    assert (row["instruction_language"], row["Intersection_exist"]) == ("cn", False)
    assert made.printed["edit_types"] == {"background_change": 1, "text_change": 1}
    Path(made.printed["manifest"]).unlink()
    saved["train"].save_to_disk(tmp_path / "one")
    assert len(make("gedit-bench", tmp_path / "one").rows) == 2
    assert "has no split 'train'; there are files without one" in refusal(
        "gedit-bench", tmp_path / "one", "--split", "train"
    )


def test_a_table_of_something_else_is_refused_with_both_lists_of_columns(
    refusal: Callable[..., str], tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    assert "it has no .parquet file, and no .arrow file" in refusal("emu-edit", tmp_path)
    write(tmp_path / "a-00000-of-00001.parquet", [{"image": jpeg(0), "idx": "x"}], ("image",))
    message = refusal("emu-edit", tmp_path)
    assert "it needs the columns instruction (text), image (image), task (text)" in message
    assert "instruction, task, split, idx, hash, input_caption, output_caption is not" in message
    assert "It has image (struct<bytes: binary, path: string>), idx (string)" in message
    assert "has no split 'dev'; there are a" in refusal("emu-edit", tmp_path, "--split", "dev")
    (tmp_path / "a-00000-of-00001.parquet").write_bytes(b"PAR1 but not really")
    assert "cannot be read" in refusal("emu-edit", tmp_path)


def test_a_hub_id_is_looked_for_on_the_hub(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the hub's client refuses, and the message says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal("emu-edit", "facebook/emu_edit_test_set")
    assert "'facebook/emu_edit_test_set' is not a local folder, and could not be downloaded" in (
        message
    )
    assert "there is no nowhere; on the hub emu-edit is facebook/emu_edit_test_set" in refusal(
        "emu-edit", "nowhere"
    )
    assert "there is no some/folder" in refusal("pie-bench", "some/folder")
