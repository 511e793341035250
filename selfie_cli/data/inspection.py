"""Facts and oddities of image files: every file of a source is decoded once.

N images    S side of the stored square, in pixels
"""

import enum
import io
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.duplicates import NUM_BYTES, Marks, marks_of
from selfie_cli.data.images import (
    DECODER_ERRORS,
    EXTENSIONS,
    FORMATS,
    SUFFIXES,
    decode_square,
    is_transparent,
    orientation,
)
from selfie_cli.data.sources import Source
from selfie_cli.data.threads import in_chunks
from selfie_cli.errors import UnreadableImage
from selfie_cli.talk import Talk

BLANK = 4  # largest range of levels, of 255, of an image that shows nothing


class Oddity(enum.IntFlag):
    """Properties of images that are read, but perhaps not as their owner expects."""

    GREY = enum.auto()
    DEEP = enum.auto()
    CMYK = enum.auto()
    TRANSPARENT = enum.auto()
    ANIMATED = enum.auto()
    TURNED = enum.auto()
    MISNAMED = enum.auto()
    BLANK = enum.auto()


RECORD = np.dtype([("width", "i4"), ("height", "i4"), ("bytes", "i8"), ("format", "i1"), ("oddities", "u2")])
"""Facts of one file: size of the upright image in pixels; length in bytes, 0 for pixels without a file; position of the
format in `FORMATS`, -1 for none; oddities."""


@dataclass(frozen=True, eq=False)
class Inspected:
    """Facts of the N images of a source.

    records: RECORD [N]; marks: of N images; both are zero for unreadable images. bad: the reasons for unreadable
    images, by position, ascending. seconds: the time that reading, decoding and resizing took.
    """

    records: NDArray[np.void]
    marks: Marks
    bad: dict[int, str]
    seconds: float


def inspect_all(source: Source, *, size: int, workers: int, talk: Talk) -> Inspected:
    """Decode every image of `source` to S = `size`, as training would; keep 70 bytes of facts per image."""
    count = len(source)
    records, bad = np.zeros(count, RECORD), dict[int, str]()
    marks = Marks(np.zeros(count, np.int64), np.zeros((count, NUM_BYTES), np.uint8))

    def look_at(chunk: range, _: threading.Event) -> dict[int, str]:
        pixels = np.empty((len(chunk), size, size, 3), np.uint8)
        unreadable, read = dict[int, str](), list[int]()
        for index in chunk:
            name = source.names[index]
            try:
                with source.open(index) as image:
                    pixels[len(read)], records[index] = inspect(image, size=size, name=name)
                read.append(index)
            except UnreadableImage as error:
                lost = os.path.islink(name) and not os.path.exists(name)
                unreadable[index] = f"a link to {os.readlink(name)}, which is not there" if lost else str(error)
        found = marks_of(torch.from_numpy(pixels[: len(read)]))
        marks.exact[read], marks.perceptual[read] = found.exact, found.perceptual
        return unreadable

    def note(chunk: range, unreadable: dict[int, str]) -> str:
        bad.update(unreadable)
        return f"{len(bad)} unreadable" if bad else ""

    begun = time.perf_counter()
    in_chunks(count, look_at, note, what="checking images", workers=workers, talk=talk)
    return Inspected(records, marks, bad, time.perf_counter() - begun)


def inspect(image: Image.Image, *, size: int, name: str) -> tuple[NDArray[np.uint8], tuple[int, int, int, int, int]]:
    """Return what `decode_square` makes of an image, uint8 [S, S, 3], and its RECORD. Raise UnreadableImage."""
    width, height = image.size
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    file = getattr(image, "fp", None)
    num_bytes = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else 0
    odd = Oddity(0)
    # Pillow reads 16-bit colours as 8-bit RGB; only the layout of the data tells.
    if image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        odd |= Oddity.DEEP
    if image.mode == "CMYK":
        odd |= Oddity.CMYK
    if image.format != "MPO" and _is_animated(image):  # an MPO's second image is a preview, or for the other eye
        odd |= Oddity.ANIMATED
    suffix = os.path.splitext(name)[1].lower()
    if kind and suffix in EXTENSIONS and suffix not in SUFFIXES[kind]:
        odd |= Oddity.MISNAMED
    turned = orientation(image) if image.format == "TIFF" else 1  # others are asked once they are decoded
    pixels = decode_square(image, size)
    if image.format != "TIFF" and (turned := orientation(image)) in range(5, 9):
        width, height = height, width
    if turned in range(2, 9):
        odd |= Oddity.TURNED
    alpha = image.getchannel("A").getextrema() if "A" in image.getbands() else None
    if is_transparent(image) and (alpha is None or alpha[0] != 255):
        odd |= Oddity.TRANSPARENT
    if all(int(channel.max()) - int(channel.min()) <= BLANK for channel in np.moveaxis(pixels, 2, 0)):
        odd |= Oddity.BLANK
    elif np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2]):
        odd |= Oddity.GREY
    return pixels, (width, height, num_bytes, FORMATS.index(kind) if kind else -1, int(odd))


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODER_ERRORS:  # there are more frames, and the next one is damaged
        return True
