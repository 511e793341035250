import io
from pathlib import Path

import numpy as np
import pytest
from corpus import exif, png, saved
from pictures import write
from PIL import Image

from selfie_cli.data import synthetic
from selfie_cli.data.examination import Examination, Oddity, inspect
from selfie_cli.data.images import FORMATS, open_image
from selfie_cli.data.sources import Files, Subset
from selfie_cli.talk import Talk

PICTURE = Image.fromarray(np.asarray(synthetic.draw(1, seed=5, size=48)[0][0]))


def opaque(value: int) -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(value)
    return image


FADED = Image.fromarray((np.asarray(PICTURE) // 64 + 100).astype(np.uint8))
TWO = {"save_all": True, "append_images": [PICTURE.rotate(90)]}
# Those that tests/commands/test_doctor.py plants are not among them.
CASES = {
    "plain.png": (saved(PICTURE, "PNG"), Oddity(0)),
    "plain.JPG": (saved(PICTURE, "JPEG"), Oddity(0)),
    "no-suffix": (saved(PICTURE, "PNG"), Oddity(0)),
    "grey-in-colour.png": (saved(PICTURE.convert("L").convert("RGB"), "PNG"), Oddity.GREY),
    "deep-colours.png": (png(np.arange(12, 36).reshape(2, 4, 3), 16, 2), Oddity.DEEP | Oddity.BLANK),
    "clear.png": (saved(opaque(200), "PNG"), Oddity.TRANSPARENT),
    "clear.webp": (saved(opaque(200), "WEBP", lossless=True), Oddity.TRANSPARENT),
    "opaque.png": (saved(opaque(255), "PNG"), Oddity(0)),
    "palette.gif": (saved(PICTURE.quantize(32), "GIF", transparency=1), Oddity.TRANSPARENT),
    "moving.png": (saved(PICTURE, "PNG", **TWO), Oddity.ANIMATED),
    "moving.webp": (saved(PICTURE, "WEBP", **TWO), Oddity.ANIMATED),
    "pages.tif": (saved(PICTURE, "TIFF", **TWO), Oddity.ANIMATED),
    "stereo.jpg": (saved(PICTURE, "MPO", **TWO), Oddity(0)),
    "nonsense.jpg": (saved(PICTURE, "JPEG", exif=exif(9)), Oddity(0)),
    "faded.png": (saved(FADED, "PNG"), Oddity.BLANK),
}


@pytest.mark.parametrize("name", CASES)
def test_oddities(name):
    data, expected = CASES[name]
    with open_image(io.BytesIO(data)) as image:
        _, (_, _, num_bytes, _, oddities) = inspect(image, size=32, name=name)
    assert (Oddity(oddities), num_bytes) == (expected, len(data))


@pytest.mark.parametrize(
    ("form", "turn", "size"), [("JPEG", 6, (20, 40)), ("TIFF", 6, (20, 40)), ("TIFF", 3, (40, 20))]
)
def test_sizes_are_those_of_the_upright_image(form, turn, size):
    data = saved(PICTURE.resize((40, 20)), form, exif=exif(turn))
    with open_image(io.BytesIO(data)) as image:
        _, record = inspect(image, size=16, name=f"a.{form}")
    assert record == (*size, len(data), FORMATS.index(form), int(Oddity.TURNED))


@pytest.mark.parametrize(("label", "untested"), [("images", []), ("cat", ["dog"])])
def test_a_test_part_without_classes_leaves_none_untested(label: str, untested: list[str]) -> None:
    """test/images/ holds no class; test/cat/ alone would."""
    files = Files(write(Path(), "cat.png", "dog.png", "1.png"))
    parts = {part: Subset(files, np.array(rows)) for part, rows in {"train": [0, 1], "test": [2]}.items()}
    found = Examination(parts, ["cat", "dog", label], size=8, workers=1, talk=Talk())
    found.look_at_classes()
    items = [item for each in found.remarks if each.kind == "untested classes" for item in each.items]
    assert [item.name for item in items] == untested
