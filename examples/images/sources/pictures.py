"""Pictures in files, decoded with all their channels and all their bits."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torch.torch_version import TorchVersion
from torchvision.io import ImageReadMode, decode_image

from examples.images.reading import reading
from examples.images.run_errors import SetupError

Channels = Literal["grey", "grey_alpha", "colour", "colour_alpha"]

CHANNELS: dict[Channels, int] = {"grey": 1, "grey_alpha": 2, "colour": 3, "colour_alpha": 4}
"""The number of channels of each kind of picture."""

BITS_PER_SAMPLE = 258
"""The tag of a TIFF file that holds the bits of each channel."""

BIT_DEPTH = 24
"""The place of the byte in a PNG file that holds the bits of each channel."""

READS_DEEP_PNG = "0.20"
"""The first version of torchvision that reads PNG files of 16 bits."""

EIGHT_BITS = {"L", "LA", "RGB", "RGBA"}
SIXTEEN_BITS = {"I;16", "I;16B", "I;16L"}


def read_picture(path: Path) -> Tensor:
    """Read a picture as it is: uint8 or uint16, shape `(C, H, W)`, turned as its file says.

    Palettes become colours, and a transparent colour becomes an alpha channel.

    Raises:
        SetupError: For a file that is damaged, has several pictures, other colours than grey or
            RGB, or more bits than can be read.
    """
    with reading("data.source", path):
        content = path.read_bytes()
        picture = Image.open(io.BytesIO(content))
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise _refusal(path, f"{picture.n_frames} pictures", "save them in a file each")
        picture = _without_palette(path, picture)
        if picture.mode not in EIGHT_BITS | SIXTEEN_BITS:
            raise _refusal(path, f"pixels of the mode {picture.mode}", "save it as grey or RGB")
        if picture.format == "PNG":  # Pillow reduces colours of 16 bits to 8
            if content[BIT_DEPTH] > 8 and TorchVersion(torchvision.__version__) < READS_DEEP_PNG:
                remedy = f"install torchvision {READS_DEEP_PNG} or newer, or save it with 8 bits"
                raise _refusal(path, f"{content[BIT_DEPTH]} bits", remedy)
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_image(buffer, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
        deepest = max(getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
        if picture.mode in EIGHT_BITS and deepest > 8:
            raise _refusal(path, f"channels of {deepest} bits in a TIFF file", "save it as PNG")
        array = np.asarray(ImageOps.exif_transpose(picture))
        array = array.astype(np.uint16 if picture.mode in SIXTEEN_BITS else np.uint8)
        return torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1).copy())


def _without_palette(path: Path, picture: Image.Image) -> Image.Image:
    """Expand palettes, single bits and transparent colours; return other pictures unchanged."""
    transparent = "transparency" in picture.info
    if picture.mode in SIXTEEN_BITS and transparent:
        raise _refusal(path, "a transparent colour and 16 bits", "save it with an alpha channel")
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if transparent or picture.mode == "PA" else "RGB")
    if picture.mode in ("1", "L") and transparent:
        return picture.convert("LA")
    if picture.mode == "RGB" and transparent:
        return picture.convert("RGBA")
    return picture.convert("L") if picture.mode == "1" else picture


def _refusal(path: Path, found: str, remedy: str) -> SetupError:
    return SetupError(f"data.source: {path} has {found}; {remedy}")


def check_picture(path: Path, picture: Tensor, channels: Channels, bins: int) -> None:
    """Raise a `SetupError` unless a picture has the given channels and bits.

    Args:
        path: The file, for the message.
        picture: The picture, as `read_picture` returns it.
        channels: Its kind.
        bins: The number of grey levels: 256 for uint8, 65,536 for uint16.
    """
    names = {number: name for name, number in CHANNELS.items()}
    found = names[len(picture)]
    if found != channels:
        raise SetupError(
            f"data.source: {path} is of kind {found}, but channels is {channels}. Set "
            f"data.source.init_args.channels to {found} if all pictures are so, or convert the "
            "file"
        )
    levels = 2**16 if picture.dtype == torch.uint16 else 2**8
    if levels != bins:
        raise SetupError(
            f"data.source: {path} has {levels} grey levels, but bins is {bins}. Set "
            f"data.source.init_args.bins to {levels} if all pictures have as many, or convert the "
            "file. The source FewerBits reduces 16 bits to 8"
        )
