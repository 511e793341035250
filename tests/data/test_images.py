"""From files to pixels: every image of the corpus, resizing, and what only looks like a file."""

import io
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import PICTURE, Entry, corpus, exif, png_file, saved
from PIL import Image, ImageFile, TiffImagePlugin
from running import bounded_memory

from selfie_cli.data import images
from selfie_cli.data.examination import inspect
from selfie_cli.data.folders import Folder
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.errors import UnreadableImage


def decoded(data: bytes, size: int, *, examined: bool = False) -> np.ndarray | str:
    """As training has it, or as `selfie doctor` has it; or why not."""
    try:
        with open_image(io.BytesIO(data)) as image:
            return inspect(image, size=size, name="any.jpg")[0] if examined else decode_square(image, size)
    except UnreadableImage as error:
        return str(error)


def wrong(entry: Entry) -> str | None:
    """Return the fault of an entry's decoded pixels, None if there is none."""
    side = 16 if entry.pixels is None else min(entry.pixels.shape[:2])
    found = decoded(entry.data, side)
    if isinstance(found, str):
        if entry.sure and (entry.pixels is not None or entry.reason not in found):
            return f"refused: {found}"
        return None if found and "\n" not in found else f"the reason is {found!r}"
    if entry.pixels is None:
        return "read" if entry.sure else None
    height, width, _ = entry.pixels.shape
    top, left = (height - side) // 2, (width - side) // 2
    loss = np.abs(found - entry.pixels[top : top + side, left : left + side].astype(int)).mean()
    return f"{loss:.1f} levels off" if loss > entry.loss else None


@pytest.mark.parametrize("kind", dict.fromkeys(entry.kind for entry in corpus()))
def test_right_pixels_or_a_reason_whoever_decodes(kind):
    """At the scales that a JPEG may be decoded at, and whatever is asked of the image on the way."""
    for entry in corpus():
        if entry.kind == kind:
            assert wrong(entry) is None, entry.name
            with bounded_memory(megabytes=100):
                found = [decoded(entry.data, 16), decoded(entry.data, 16, examined=True)]
                assert np.array_equal(*found), entry.name
                found += [decoded(entry.data, size) for size in (4, 64)]
            assert len({isinstance(each, str) for each in found}) == 1, entry.name


def test_nobody_waits_for_what_is_no_file():
    """Pipes and sockets are not listed by their own names, but links to them are, and refused."""
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
    Path("folder.jpg").mkdir()
    Path("circle").symlink_to(".")
    targets = {"itself": "itself.jpg", "nothing": "nothing", "pipe": "../pipe.jpg", "socket": "../socket.jpg"}
    Path("linked").mkdir()
    for name, target in {**targets, "zeros": "/dev/zero"}.items():
        Path(f"linked/{name}.jpg").symlink_to(target)
    with open("linked/huge.jpg", "wb") as file:
        file.truncate(2**40)  # takes no room
    reasons = {
        "linked/huge.jpg": "more than 1,073 MB",
        "linked/itself.jpg": "Too many levels of symbolic links",
        "linked/nothing.jpg": "No such file or directory",
        "linked/pipe.jpg": "not a file, but a pipe or a device",
        "linked/socket.jpg": "No such device or address",
        "linked/zeros.jpg": "not a file, but a pipe or a device",
    }
    assert Folder(".").names == [f"./{name}" for name in reasons]
    for name, reason in {**reasons, "pipe.jpg": ".", "socket.jpg": ".", "folder.jpg": "."}.items():
        with pytest.raises(UnreadableImage, match=reason):
            open_image(name)


def test_a_large_image_is_opened_without_a_warning_and_no_setting_of_pillow_is_changed(tmp_path: Path):
    (tmp_path / "large.png").write_bytes(png_file((10000, 10000), 8, 2, b""))  # under Pillow's error
    code = "import sys; from selfie_cli.data.images import open_image; print(open_image(sys.argv[1]).size)"
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("(10000, 10000)\n", "")
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (False, 2**30 // 4 // 3)
    assert TiffImagePlugin.READ_LIBTIFF is False


def photo(width: int, height: int) -> np.ndarray:
    """Edges and grain, as a photo has them: uint8 [height, width, 3]."""
    values = np.asarray(Image.fromarray(PICTURE).resize((width, height), Image.Resampling.NEAREST))
    return np.clip(values + np.random.default_rng(0).normal(0, 5, values.shape), 0, 255).astype(np.uint8)


def resized_centre(array: np.ndarray, size: int) -> np.ndarray:
    """The centre square in double precision."""
    side = min(array.shape[:2])
    top, left = ((length - side) // 2 for length in array.shape[:2])
    square = torch.tensor(array[top : top + side, left : left + side]).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(square, (size, size), mode="bicubic", antialias=True)
    return exact[0].permute(1, 2, 0).clamp(0, 255).numpy()


@pytest.mark.parametrize("size", [1, 33, 74, 256])
@pytest.mark.parametrize(("width", "height"), [(341, 256), (375, 500), (120, 90), (16, 16), (5, 300)])
def test_the_centre_square_is_resized_nearly_as_in_double_precision(width, height, size):
    array = photo(width, height)
    with open_image(io.BytesIO(saved(array, "PNG"))) as image:
        found = decode_square(image, size)
    assert (found.dtype, found.flags.writeable) == (np.uint8, True)
    error = np.abs(found - resized_centre(array, size))
    assert error.max() <= 4  # between its two passes it rounds and clips to whole levels
    assert error.mean() <= 0.5


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [64, 110, 256])
def test_a_large_jpeg_is_reduced_while_decoding_and_then_turned(size, orientation):
    array = photo(1400, 1100)
    with open_image(io.BytesIO(saved(array, "JPEG", quality=90, exif=exif(orientation)))) as image:
        found = decode_square(image, size).astype(float)
        assert 2 * size <= image.size[1] < 4 * size  # the smallest scale that has twice the side
    upright = np.rot90(array, -1).copy() if orientation == 6 else array
    error = found - resized_centre(upright, size)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30  # dB


def test_the_largest_are_decoded_one_at_a_time(monkeypatch):
    """Each takes a gigabyte or two, and a server has as many threads as cores."""
    inside, counts, flat = [], [], images._flat

    def counted(image):
        inside.append(image)
        time.sleep(0.05)
        counts.append(len(inside))
        inside.remove(image)
        return flat(image)

    monkeypatch.setattr(images, "LARGE", 64 * 64 - 1)
    monkeypatch.setattr(images, "_flat", counted)
    data = saved(Image.new("1", (64, 64)), "PNG")
    with ThreadPoolExecutor(4) as pool:
        assert all((found == 0).all() for found in pool.map(decoded, [data] * 4, [8] * 4))
    assert counts == [1] * 4
