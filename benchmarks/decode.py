"""Time decoding on one core, from a JPEG file to square uint8 pixels.

    python benchmarks/decode.py PHOTOS

PHOTOS is a folder of photos at any depth. They are decoded as they are, and as mosaics of four (512 px, about the size
of ImageNet's). The limit is decoding the whole picture with libjpeg-turbo, without resizing, through torchvision or
Pillow, whichever is faster. A decoder can exceed it by skipping detail that a small target does not need.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from PIL import Image

from selfie_cli.data.images import decode_square, open_image

Way = Callable[[list[str], int], None]


def ours(paths: list[str], size: int) -> None:
    for path in paths:
        with open_image(path) as image:
            decode_square(image, size)


def pillow(paths: list[str], size: int) -> None:
    """The usual code: decode, cut the centre square, resize."""
    for path in paths:
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            square.resize((size, size), Image.Resampling.BILINEAR).tobytes()


def pillow_alone(paths: list[str], size: int) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.load()


def with_torchvision() -> dict[str, Way]:
    """torchvision's decoder, if this version still has it."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
    except ImportError:
        return {}
    from torchvision.transforms.v2 import functional

    def alone(paths: list[str], size: int) -> None:
        for path in paths:
            decode_jpeg(read_file(path), ImageReadMode.RGB)

    def resized(paths: list[str], size: int) -> None:
        for path in paths:
            pixels = decode_jpeg(read_file(path), ImageReadMode.RGB)
            pixels = functional.center_crop(pixels, [min(pixels.shape[1:])] * 2)
            functional.resize(pixels, [size, size], antialias=True)

    return {"torchvision": resized, "torchvision, decoding alone": alone}


def main() -> None:
    warnings.simplefilter("ignore")  # torchvision warns that its decoder is deprecated
    parser = measure.parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=300)
    a = parser.parse_args()
    lines = measure.Lines("decode", a.results)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    photos = measure.linked(a.photos, a.work / f"photos-{a.images}", a.images)
    mosaics = measure.mosaics(a.photos, a.work / f"mosaics-{a.images}", a.images)
    ways: dict[str, Way] = {"selfie": ours, "Pillow": pillow, "Pillow, decoding alone": pillow_alone}
    ways |= with_torchvision()
    for kind, folder, size in (("photos", photos, 224), ("mosaics of 512 px", mosaics, 256)):
        paths = [str(path) for path in measure.images_below(folder)]

        def rate(way: Way, paths: list[str] = paths, size: int = size) -> float:
            begun = time.perf_counter()
            way(paths, size)
            return len(paths) / (time.perf_counter() - begun)

        found = measure.turns(a.rounds, {name: lambda way=way: rate(way) for name, way in ways.items()})
        alone = {name: statistics.median(rates) for name, rates in found.items() if name.endswith("alone")}
        bound = max(alone, key=lambda name: alone[name])
        for name, rates in found.items():
            peer = measure.against("Pillow", rates, found["Pillow"]) if name == "selfie" else {}
            row = f"{kind}: {name}" + ("" if name in alone else f", to {size} px")
            lines.add(row, rates, "images/s", limit=alone[bound], bound=bound, **peer)


if __name__ == "__main__":
    main()
