#!/usr/bin/env bash
# An image that a metadata.parquet holds is silently lost when `datasets` loads a folder of images.
#
# One would guess: metadata.parquet next to images may have columns of its own, and one that datasets.Image describes
# (bytes inside of the Parquet file, the feature in its schema metadata, as datasets itself writes it) loads as an image.
# Loading the same Parquet file alone does exactly that.
#
# Seen with datasets 5.2.0, pyarrow 26.0.1: load_dataset of the folder gives None for every row of that column, without
# an error or a warning. The loader takes every Image feature for one that it made of a column <name>_file_name, and
# replaces the value by that (missing) column's.
#
# Output:
#   alone:  [(8, 8), (8, 8)]
#   folder: [None, None]
#
# Exits with 1 if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1 pillow
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import io
import pathlib

import datasets
import pyarrow.parquet as pq
from PIL import Image

datasets.disable_progress_bars()
folder = pathlib.Path("folder")
folder.mkdir()
data = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(data, "PNG")
for number in range(2):
    (folder / f"{number}.png").write_bytes(data.getvalue())
features = datasets.Features({"file_name": datasets.Value("string"), "depth": datasets.Image()})
rows = {"file_name": ["0.png", "1.png"], "depth": [{"bytes": data.getvalue(), "path": None}] * 2}
made = datasets.Dataset.from_dict(rows, features=features)
made.to_parquet("folder/metadata.parquet")
assert pq.read_table("folder/metadata.parquet")["depth"][0]["bytes"].as_py() == data.getvalue()


def sizes(dataset: datasets.Dataset) -> list:
    return [image and image.size for image in dataset["depth"]]


alone = datasets.load_dataset("parquet", data_files="folder/metadata.parquet", split="train")
print("alone: ", sizes(alone))
loaded = datasets.load_dataset("folder", split="train")
print("folder:", sizes(loaded))
raise SystemExit(sizes(alone) != [(8, 8)] * 2 or sizes(loaded) != [None, None])
PYTHON
