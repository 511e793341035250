import io
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from selfie_cli.data import images
from selfie_cli.data.images import decode_square, open_image, to_rgb
from selfie_cli.errors import UnreadableImage
from tests.data.corpus import chunk

RNG = np.random.default_rng(0)
PICTURE = np.zeros((24, 40, 3), np.uint8)  # a different colour in every quarter: no symmetry
PICTURE[:12, :20], PICTURE[:12, 20:], PICTURE[12:, :20], PICTURE[12:, 20:] = (200, 0, 0), (0, 200, 0), (0, 0, 200), 250


def encoded(image: Image.Image, format: str, **options) -> io.BytesIO:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data


def pixels(data: io.BytesIO) -> np.ndarray:
    with open_image(data) as image:
        rgb = to_rgb(image)
        assert rgb.mode == "RGB"
        return np.asarray(rgb).astype(int)


def png(width: int, height: int, data: bytes = b"", depth: int = 8, before: bytes = b"") -> io.BytesIO:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b""))


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_large_jpeg_is_reduced_while_decoding_and_then_turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(PICTURE).resize((1000, 600), Image.Resampling.NEAREST)
    data = encoded(large, "JPEG", exif=exif, quality=95)
    with open_image(data) as image:
        square = decode_square(image, 32)
        assert image.size == (125, 75)  # an eighth: the smallest scale with a short side of 2 x 32 or more
    upright = ImageOps.exif_transpose(Image.open(data)).convert("RGB")
    fair = ImageOps.fit(upright, (32, 32), Image.Resampling.BICUBIC)
    assert np.abs(square.astype(int) - np.asarray(fair)).mean() < 3


def tagged(data: io.BytesIO, tag: int, value: int, *, new: tuple[int, int]) -> io.BytesIO:
    """A little-endian TIFF with another number, or value, of one of its tags."""
    entry, other = (struct.pack("<HHIH", each, 3, 1, of_it) for each, of_it in ((tag, value), new))
    assert data.getvalue().count(entry) == 1
    return io.BytesIO(data.getvalue().replace(entry, other))


def test_white_may_be_zero():
    """At 16 bits as at 8, where Pillow turns it."""
    values = np.array([[0, 257], [25700, 65535]], np.uint16)
    for image in (Image.fromarray(values), Image.fromarray((values // 257).astype(np.uint8))):
        found = pixels(tagged(encoded(image, "TIFF"), 262, 1, new=(262, 0)))
        assert found[..., 0].tolist() == [[255, 254], [155, 0]]


@pytest.mark.parametrize(("alpha", "shown"), [((0, 0), [10, 200]), ((0, 255), [255, 200])])
def test_a_bmp_whose_alpha_is_zero_everywhere_has_none(alpha, shown):
    header = struct.pack("<IiiHHIIiiII4I", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    body = bytes([10, 10, 10, alpha[0], 200, 200, 200, alpha[1]])
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header.ljust(108, b"\0") + body
    assert pixels(io.BytesIO(data))[0, :, 0].tolist() == shown


def test_sixteen_bit_grey_with_a_transparent_value():
    values = np.array([[1000, 2000]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    np.testing.assert_array_equal(pixels(data)[0, :, 0], [255, 8])


def test_lab_and_ycbcr_in_a_tiff():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.new("RGB", (8, 8), (200, 30, 40)), *profiles, outputMode="LAB")
    assert np.abs(pixels(encoded(lab, "TIFF")) - [200, 30, 40]).max() < 8

    ycbcr = encoded(Image.new("RGB", (8, 8), (200, 30, 40)).convert("YCbCr"), "TIFF")
    if int(PIL.__version__.partition(".")[0]) < 13:  # which read four bytes a pixel where there are three
        with pytest.raises(UnreadableImage, match="truncated"):
            pixels(ycbcr)
    else:
        assert np.abs(pixels(ycbcr) - [200, 30, 40]).max() < 4


@pytest.mark.parametrize(("image", "options"), [
    (Image.fromarray(np.array([[7, 9]], np.uint8)), {"transparency": 7}),
    (Image.fromarray(np.array([[[7, 7, 7], [9, 9, 9]]], np.uint8)), {"transparency": (7, 7, 7)}),
    (Image.fromarray(np.array([[[7, 7, 7], [9, 9, 9]]], np.uint8)).quantize(2), {"transparency": None}),
    (Image.fromarray(np.array([[[7, 7, 7], [9, 9, 9]]], np.uint8)).quantize(2), {"transparency": b"bytes"}),
])  # fmt: skip
def test_a_transparent_colour_shows_white(image, options):
    if image.mode == "P":
        index = image.getpixel((0, 0))
        whole = options["transparency"] is None
        options = {"transparency": index if whole else bytes(0 if entry == index else 255 for entry in range(2))}
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", **options))[0, :, 0], [255, 9])


def test_sixteen_bit_rgb_png_with_a_transparent_colour_is_readable():
    row = b"\0" + struct.pack(">6H", 65535, 0, 0, 0x8000, 0x8000, 0x8000)
    data = png(2, 1, row, depth=16, before=chunk(b"tRNS", struct.pack(">3H", 65535, 0, 0)))
    np.testing.assert_array_equal(pixels(data)[0], [[255, 255, 255], [128, 128, 128]])


def test_empty_missing_and_foreign_files(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match="empty file"):
        open_image(tmp_path / "empty.jpg")
    with pytest.raises(UnreadableImage, match="empty file"):
        open_image(io.BytesIO())
    with pytest.raises(UnreadableImage, match="No such file"):
        open_image(str(tmp_path / "absent.jpg"))
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(UnreadableImage, match="known format"):
        open_image(tmp_path / "text.jpg")
    with pytest.raises(UnreadableImage):
        open_image(tmp_path)


def test_a_large_image_is_opened_without_a_warning(tmp_path: Path):
    (tmp_path / "large.png").write_bytes(png(10000, 10000).getvalue())  # over Pillow's warning, under its error
    code = "import sys; from selfie_cli.data.images import open_image; print(open_image(sys.argv[1]).size)"
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("(10000, 10000)\n", "")


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (16, 16), (5, 300), (1, 1)])
@pytest.mark.parametrize("size", [1, 16, 33])
def test_the_centre_square_is_cut_and_resized(shape, size):
    array = RNG.integers(0, 256, (*shape, 3), np.uint8)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    centre = Image.fromarray(array[top : top + side, left : left + side])
    with open_image(encoded(Image.fromarray(array), "PNG")) as image:
        found = decode_square(image, size)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    expected = np.asarray(centre.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected).max() <= 6  # two steps instead of one


def test_no_setting_of_pillow_is_changed():
    from PIL import ImageFile

    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (False, 2**30 // 4 // 3)
    assert TiffImagePlugin.READ_LIBTIFF is False


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes, edges and grain, as a photo has them: float64 [height, width, 3] of 0 to 255."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(generator.uniform(3, 90) * (rows * a + columns * b)) for a, b in generator.normal(size=(9, 2))]
    values = np.stack([sum(waves[channel::3]) * 35 + 120 for channel in range(3)], axis=2)
    values += 60 * ((rows - 0.4) ** 2 + (columns - 0.5) ** 2 < 0.05)[..., None]
    return np.clip(values + generator.normal(0, 5, values.shape), 0, 255)


@pytest.mark.parametrize("size", [32, 74, 110, 256])
@pytest.mark.parametrize(("width", "height"), [(341, 256), (500, 375), (120, 90)])
def test_resizing_is_close_to_double_precision(width, height, size):
    pixels = photo(width, height).astype(np.uint8)
    left = (width - height) // 2
    exact = torch.from_numpy(pixels[:, left : left + height]).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(exact, (size, size), mode="bicubic", antialias=True)
    expected = exact[0].permute(1, 2, 0).clamp(0, 255).numpy()
    with open_image(encoded(Image.fromarray(pixels), "PNG")) as image:
        found = decode_square(image, size)
    assert np.abs(found - expected).max() <= 4  # between its two passes it rounds and clips to whole levels
    assert np.abs(found - expected).mean() <= 0.35
    square = Image.fromarray(pixels[:, left : left + height])
    pillows = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - pillows).max() <= 1


@pytest.mark.parametrize("size", [64, 110, 256])
def test_a_reduced_jpeg_is_close_to_the_full_decode(size):
    data = encoded(Image.fromarray(photo(1400, 1100).astype(np.uint8)), "JPEG", quality=90)
    with open_image(data) as image:
        found = decode_square(image, size).astype(float)
        assert image.size < (1400, 1100)
    full = np.asarray(Image.open(data).convert("RGB"))[:, 150:1250]
    exact = torch.from_numpy(full.copy()).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.interpolate(exact, (size, size), mode="bicubic", antialias=True)
    error = found - exact[0].permute(1, 2, 0).clamp(0, 255).numpy()
    assert 10 * np.log10(255**2 / (error**2).mean()) > 35  # dB


@pytest.mark.parametrize(("side", "at_once"), [(64, 4), (5800, 1)])
def test_the_largest_are_decoded_one_at_a_time(side, at_once, monkeypatch):
    """Each takes a gigabyte or two, and a server has as many threads as cores."""
    data = encoded(Image.new("1", (side, side)), "PNG").getvalue()
    meeting, most, inside = threading.Barrier(4), 0, []
    flat_of = images._flat

    def flat(image):
        nonlocal most
        inside.append(image)
        if at_once > 1:
            meeting.wait(30)  # all four are here
        most = max(most, len(inside))
        found = flat_of(image)
        inside.remove(image)
        return found

    monkeypatch.setattr(images, "_flat", flat)

    def decode(_):
        with open_image(io.BytesIO(data)) as image:
            return decode_square(image, 8)

    with ThreadPoolExecutor(4) as pool:
        assert all((found == 0).all() for found in pool.map(decode, range(4)))
    assert most == at_once
