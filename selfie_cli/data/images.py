"""Decoding of images, from a path or bytes to pixels: a fixed list of formats, one RGB result, one error."""

import contextlib
import io
import logging
import math
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from selfie_cli.errors import UnreadableImage, one_line

# Importing a plugin registers it. All are imported here, so that decoding threads never race to import one.
PLUGINS = [
    (JpegImagePlugin.JpegImageFile, ".jpg .jpeg .jpe .jfif .mpo"),  # this plugin also opens MPO, which phones write
    (PngImagePlugin.PngImageFile, ".png .apng"),
    (WebPImagePlugin.WebPImageFile, ".webp"),
    (GifImagePlugin.GifImageFile, ".gif"),
    (BmpImagePlugin.BmpImageFile, ".bmp"),
    (TiffImagePlugin.TiffImageFile, ".tif .tiff"),
    (PpmImagePlugin.PpmImageFile, ".ppm .pgm .pbm .pnm"),
]
if features.check("avif"):
    from PIL import AvifImagePlugin

    PLUGINS.append((AvifImagePlugin.AvifImageFile, ".avif"))

FORMATS = tuple(str(plugin.format) for plugin, _ in PLUGINS)
"""Formats that are opened, whatever the suffix says. None of these starts another program, as EPS would."""
EXTENSIONS = frozenset(" ".join(suffixes for _, suffixes in PLUGINS).split())
"""Suffixes of files that are picked up from folders and shards, in lower case."""
SUFFIXES = {str(plugin.format): frozenset(suffixes.split()) for plugin, suffixes in PLUGINS}
"""Suffixes of each format."""

DECODING = "4"
"""Version of `decode_square`: cached pixels of other versions are not used."""

# Errors that Pillow's decoders are known to raise on damaged or malicious files.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(EOFError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, ImageCms.PyCMSError),
)
MOST_BYTES = 2**30
"""Largest file that is read, in bytes: 179 Mpx of 16-bit colours, uncompressed."""
ORIENTATION = 0x0112  # the EXIF tag
LARGE = 2**25
"""Pixels above which images are decoded one at a time: the largest take 2 GB each, and there may be 64 threads."""
_one_large = threading.Lock()
BANDS, EXTRA_SAMPLES, PHOTOMETRIC = 0x0115, 0x0152, 0x0106  # TIFF tags
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's warnings about large images and odd metadata name no file, so a user with a million images cannot act.
warnings.filterwarnings("ignore", module=r"PIL[.]")
logging.getLogger("PIL").addHandler(logging.NullHandler())


CONTENTS = (
    (rb"version https://git-lfs\.", "a Git LFS pointer in place of the file: fetch it with git lfs pull"),
    (rb"PAR1", "a parquet file, not an image in a known format"),
    (rb".{257}ustar", "a tar file, not an image in a known format"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive: unpack it"),
    (rb"\s*<(!doctype|html)", "a web page, not an image in a known format: the download has failed"),
    (rb".{4}ftyp(hei|hev|mif|msf)", "HEIC, which is not read: convert it to JPEG or PNG"),
    (rb".{4}ftypavif", "AVIF, which this Pillow cannot read: convert it to JPEG or PNG"),
    (rb".{4}(ftyp|moov)|\x1a\x45\xdf\xa3", "a film, not an image in a known format"),
    (rb"[\t\n\r\x20-\x7e]+\Z", "text, not an image in a known format (a list of paths is given as .txt or on stdin)"),
)
"""First bytes of files that are mistaken for images, each with a description of the file."""


def what_is(head: bytes) -> str:
    """Describe contents that begin with `head` and are no image in a known format."""
    known = (text for pattern, text in CONTENTS if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    return next(known, f"not an image in a known format ({', '.join(FORMATS)})")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from None
    except MemoryError:
        raise UnreadableImage("too large for the memory of this machine") from None
    except DECODER_ERRORS as error:
        raise UnreadableImage(one_line(error)) from error


def read_file(file: str | os.PathLike[str]) -> bytes:
    """Read all bytes of a file: faster for small files than reading on demand, and no handle stays open.

    Raises UnreadableImage if the file is missing, too large, or a pipe or device (opening one could block for ever).
    """
    with _readable(), open(file, "rb", buffering=0, opener=_without_waiting) as opened:
        known = os.fstat(opened.fileno())
        if not stat.S_ISREG(known.st_mode):
            raise UnreadableImage("not a file, but a pipe or a device")
        if known.st_size > MOST_BYTES:
            raise UnreadableImage(f"more than {MOST_BYTES // 10**6:,} MB")
        return opened.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer; no effect on files


def open_image(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Read the header of an image; its pixels are decoded on demand.

    Raises UnreadableImage as `read_file` does, and if it is empty, damaged, of no known format, or over 179 Mpx.
    """
    with _readable():
        if isinstance(file, str | os.PathLike):
            file = io.BytesIO(read_file(file))
        if not file.seek(0, os.SEEK_END):
            raise UnreadableImage("empty file")
        try:
            return Image.open(file, formats=FORMATS)  # it goes back to the start first
        except UnidentifiedImageError:
            file.seek(0)
            raise UnreadableImage(what_is(file.read(512))) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame, upright, in mode RGB: 16-bit grey is scaled to 8 bits, transparent pixels become white.

    Raises UnreadableImage if the data are damaged, are numbers without a defined range (float, wide integers), or have
    more bands than colours and alpha.
    """
    with _readable():
        tags = getattr(image, "tag_v2", {})
        bands, known = tags.get(BANDS, 1), len(image.getbands())
        if image.mode == "RGBA" and tags and EXTRA_SAMPLES not in tags:  # Pillow takes the last band for alpha
            known -= 1
        if bands > known:  # Pillow drops others that a TIFF does not declare as alpha
            raise UnreadableImage(f"{bands} bands, of which {known} are known to be colours or alpha; save those alone")
        image.load()
        rgb = _flat(image)
        method = UPRIGHT.get(orientation(image))
        return rgb if method is None else rgb.transpose(method)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image: 1 is upright, see `UPRIGHT`. Pillow has already turned a TIFF.

    Before decoding, this call would make Pillow decode a PNG and turn its damaged parts black.
    """
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except DECODER_ERRORS:  # damaged metadata are no reason to lose sound pixels
        return 1


def _flat(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("32-bit float pixels have no defined range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not is_transparent(image):
        return image.convert("RGB")
    alpha = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(alpha, mask=alpha.getchannel("A"))
    return white


def is_transparent(image: Image.Image) -> bool:
    """Whether a decoded image has alpha or a transparent colour. A BMP whose alpha is 0 everywhere has none."""
    empty = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    return image.has_transparency_data and not empty


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey (modes I;16*, or I within their range) to L, or to LA if one value is transparent."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("integer pixels beyond 16 bits have no defined range; save it with 8 or 16 bits")
    whiteness = values
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # white is zero, which Pillow handles only at 8 bits
        whiteness = 65535 - values
    grey = Image.fromarray(((whiteness + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def decode_square(image: Image.Image, size: int, interpolation: str = "bicubic") -> NDArray[np.uint8]:
    """Return the centre square of an opened image as a new uint8 array `[size, size, 3]`, resized with antialiasing.

    torch resizes, 4 to 5 times as fast as Pillow and to the same integers, since their bicubic weights are equal. A
    JPEG is decoded at the smallest DCT scale that keeps the short side at twice `size` or more. A short side of `size`
    would be a tenth to a fifth faster, but the result about 10 dB further from that of the full decode.

    Raises UnreadableImage as `to_rgb` does.
    """
    with _readable(), contextlib.ExitStack() as stack:
        if min(image.size) >= 4 * size:  # else, half would be less than twice `size`
            image.draft(None, (2 * size, 2 * size))
        if math.prod(image.size) > LARGE:
            stack.enter_context(_one_large)
        pixels = np.asarray(to_rgb(image))  # [H, W, 3], read-only
        height, width, _ = pixels.shape
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        square = pixels[top : top + side, left : left + side].copy()  # the filter must not see pixels outside
        return square if side == size else _resized(square, size, interpolation)


def _resized(square: NDArray[np.uint8], size: int, interpolation: str) -> NDArray[np.uint8]:
    """Resize `[H, H, 3]` to `[size, size, 3]`, in integers; channels-last input needs no copy."""
    image = torch.from_numpy(square).permute(2, 0, 1)[None]  # [1, 3, H, H]
    resized = torch.nn.functional.interpolate(image, (size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
