"""Measures what decoding a block of large JPEGs takes: a program of its own.

    python -m tests.builders.decode_memory SIDE_PX COUNT

Prints the bytes by which the process grew at its peak.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pipeline.read.decode import DecodeSettings, decode
from tests.builders.work_rows import work_row, work_table
from tests.faults.peak_memory import peak_memory


def main() -> None:
    """Entry point."""
    side_px, count = int(sys.argv[1]), int(sys.argv[2])
    gradient = Image.linear_gradient("L").resize((side_px, side_px))
    sink = io.BytesIO()
    Image.merge("RGB", [gradient, gradient.rotate(90), gradient]).save(sink, "JPEG", quality=90)
    del gradient
    with TemporaryDirectory() as folder:
        file = Path(folder) / "large.jpg"
        file.write_bytes(sink.getvalue())
        block = work_table([work_row(number, uri=str(file)) for number in range(count)])
        with peak_memory() as growth:
            decoded = decode(block, DecodeSettings())
    assert decoded["failure"].to_pylist() == [""] * count, decoded["message"].to_pylist()
    sys.stdout.write(str(growth[0]))


if __name__ == "__main__":
    main()
