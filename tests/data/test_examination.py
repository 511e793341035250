import io
from pathlib import Path

import numpy as np
import pytest
from corpus import corpus, exif, png, saved
from pictures import write
from PIL import Image

from selfie_cli.data import synthetic
from selfie_cli.data.examination import FACTS, ODD, Examination, inspect
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
    "plain.png": (saved(PICTURE, "PNG"), []),
    "plain.JPG": (saved(PICTURE, "JPEG"), []),
    "no-suffix": (saved(PICTURE, "PNG"), []),
    "grey-in-colour.png": (saved(PICTURE.convert("L").convert("RGB"), "PNG"), ["grey"]),
    "deep-colours.png": (png(np.arange(12, 36).reshape(2, 4, 3), 16, 2), ["blank", "16 bits"]),
    "clear.png": (saved(opaque(200), "PNG"), ["transparent"]),
    "opaque.png": (saved(opaque(255), "PNG"), []),
    "palette.gif": (saved(PICTURE.quantize(32), "GIF", transparency=1), ["transparent"]),
    "moving.png": (saved(PICTURE, "PNG", **TWO), ["several frames"]),
    "pages.tif": (saved(PICTURE, "TIFF", **TWO), ["several frames"]),
    "stereo.jpg": (saved(PICTURE, "MPO", **TWO), []),
    "nonsense.jpg": (saved(PICTURE, "JPEG", exif=exif(9)), []),
    "faded.png": (saved(FADED, "PNG"), ["blank"]),
}


def odd(record):
    return [oddity for oddity, found in zip(ODD, record[len(FACTS) :], strict=True) if found]


@pytest.mark.parametrize("name", CASES)
def test_oddities(name):
    data, expected = CASES[name]
    with open_image(io.BytesIO(data)) as image:
        _, record = inspect(image, size=32, name=name)
    assert (odd(record), record[2]) == (expected, len(data))


def test_sizes_are_those_of_the_upright_image():
    for entry in (each for each in corpus() if each.kind == "exif"):
        with open_image(io.BytesIO(entry.data)) as image:
            form, (_, record) = image.format, inspect(image, size=16, name=entry.name)
        assert (record[:2], FORMATS[record[3]]) == (entry.pixels.shape[1::-1], form), entry.name
        turned = entry.name.startswith(tuple(f"exif-{orientation}" for orientation in range(2, 9)))
        assert odd(record) == ["turned by EXIF"] * turned, entry.name


@pytest.mark.parametrize(("label", "untested"), [("images", []), ("cat", ["dog"])])
def test_a_test_part_without_classes_leaves_none_untested(label: str, untested: list[str]) -> None:
    """test/images/ holds no class; test/cat/ alone would."""
    files = Files(write(Path(), "cat.png", "dog.png", "1.png"))
    parts = {part: Subset(files, np.array(rows)) for part, rows in {"train": [0, 1], "test": [2]}.items()}
    found = Examination(parts, ["cat", "dog", label], size=8, workers=1, talk=Talk())
    found.look_at_classes()
    items = [item for each in found.remarks if each.kind == "untested classes" for item in each.items]
    assert [item.name for item in items] == untested
