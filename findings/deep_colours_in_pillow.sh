#!/usr/bin/env bash
# Two valid kinds of deep images that Pillow 13.0.0 opens without a word and decodes to other pixels.
#
# 1. JPEG 2000 in RGB with more than 8 bits a sample (12 here, as satellites and cinema have them). One would guess that
#    white stays white. Pillow rounds up when it shifts to 8 bits: 4095 becomes 256, which is kept as 0. White is black.
#    Seen: (0, 0, 0) for samples 4095, 4095, 4095; and (63, 63, 63) for 1000, 1000, 1000, which is right.
# 2. A big-endian TIFF of 32-bit floats with Deflate (or LZW, PackBits, Zstandard). One would guess the values that were
#    written. libtiff hands them over in the machine's order of bytes, and Pillow swaps them once more: 0.5 becomes
#    8.828180325246348e-44. The same file without compression, or little-endian, is right.
#
# Exits with 0 as long as both are seen, else with 1. Needs python3.11 or newer and PyPI.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0 numpy==2.4.6 tifffile==2026.3.3 imagecodecs==2026.3.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import imagecodecs
import numpy
import PIL.Image
import tifffile

samples = numpy.full((4, 4, 3), 4095, "u2")
samples[2:] = 1000
deep = imagecodecs.jpeg2k_encode(samples, level=0, bitspersample=12, codecformat="jp2", resolutions=1)
assert (imagecodecs.jpeg2k_decode(deep) == samples).all(), "the file itself is right"
with PIL.Image.open(io.BytesIO(deep)) as image:
    white, dark = image.getpixel((0, 0)), image.getpixel((0, 3))
print("JPEG 2000: 4095 of 12 bits is", white, "and 1000 is", dark)

found = {}
for order in "<>":
    for compression in (None, "zlib"):
        sink = io.BytesIO()
        half = numpy.full((4, 4), 0.5, f"{order}f4")
        tifffile.imwrite(sink, half, photometric="minisblack", byteorder=order, compression=compression)
        sink.seek(0)
        assert (tifffile.imread(sink) == 0.5).all(), "the file itself is right"
        with PIL.Image.open(sink) as image:
            found[order, compression] = image.getpixel((0, 0))
print("TIFF: 0.5 is", found)

right = [value for key, value in found.items() if key != (">", "zlib")]
is_seen = white == (0, 0, 0) and dark == (63, 63, 63) and right == [0.5] * 3 and found[">", "zlib"] != 0.5
sys.exit(0 if is_seen else 1)
PYTHON
