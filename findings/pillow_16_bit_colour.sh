#!/usr/bin/env bash
# pillow 13.0.0
#
# Behaviour: a PNG of 16 bits with colours or with alpha opens as an image of 8 bits. The lower 8 bits of
# each value are dropped, not rounded, without a warning, and no attribute of the image tells. Grey
# with alpha becomes RGBA. Only a grey image keeps its 16 bits.
# One would have guessed: the number of bits does not depend on the number of channels, or an error.
# Output seen:
#   1 channels: mode I;16, uint16, 4863 4608
#   2 channels: mode RGBA, uint8, 18 18
#   3 channels: mode RGB, uint8, 18 18
#   4 channels: mode RGBA, uint8, 18 18
#   attributes of the colour image that hold a 16: none
source "$(dirname "$0")/venv.sh"
install 'pillow==13.0.0' numpy
run <<'PYTHON'
import io
import struct
import sys
import warnings
import zlib

import numpy as np
from PIL import Image

warnings.simplefilter("error")
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(channels):
    """A PNG of two pixels, with the levels 0x12ff and 0x1200 in all channels."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, COLOUR_TYPES[channels], 0, 0, 0)
    row = b"\0" + b"\x12\xff" * channels + b"\x12\x00" * channels
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


found = {}
for channels in COLOUR_TYPES:
    image = Image.open(io.BytesIO(png(channels)))
    pixels = np.asarray(image).reshape(2, -1)
    found[channels] = image.mode, str(pixels.dtype), *pixels[:, 0].tolist()
    mode, dtype, *levels = found[channels]
    print(f"{channels} channels: mode {mode}, {dtype}, {' '.join(map(str, levels))}")
image = Image.open(io.BytesIO(png(3)))
told = [name for name, value in {**vars(image), **image.info}.items() if value == 16]
print(f"attributes of the colour image that hold a 16: {', '.join(told) or 'none'}")

expected = {
    1: ("I;16", "uint16", 4863, 4608),
    2: ("RGBA", "uint8", 18, 18),
    3: ("RGB", "uint8", 18, 18),
    4: ("RGBA", "uint8", 18, 18),
}
sys.exit(found != expected or bool(told))
PYTHON
