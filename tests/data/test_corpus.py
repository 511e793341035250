"""Every image of the corpus through everything that decodes; names, and what only looks like a file."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from selfie_cli.data.folders import Folder
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.data.inspection import inspect
from selfie_cli.errors import UnreadableImage
from tests.data.corpus import GREY, PICTURE, Entry, corpus, tiff, write_no_files

KINDS = dict.fromkeys(entry.kind for entry in corpus())


def decoded(data: bytes, size: int) -> np.ndarray | str:
    """As training has it, or why not."""
    try:
        with open_image(io.BytesIO(data)) as image:
            return decode_square(image, size)
    except UnreadableImage as error:
        return str(error)


def looked_at(data: bytes, size: int) -> np.ndarray | str:
    """As `selfie doctor` has it, or why not."""
    try:
        with open_image(io.BytesIO(data)) as image:
            return inspect(image, size=size, name="any.jpg")[0]
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
    expected = entry.pixels[top : top + side, left : left + side].astype(int)
    loss = np.abs(found - expected).mean()
    return f"{loss:.1f} levels off" if loss > entry.loss else None


@pytest.mark.parametrize("kind", KINDS)
def test_right_pixels_or_a_reason(kind):
    entries = [entry for entry in corpus() if entry.kind == kind]
    assert {entry.name: why for entry in entries if (why := wrong(entry))} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_all_who_decode_agree_on_what_is_bad(kind):
    """At the scales that a JPEG may be decoded at, and whatever is asked of the image on the way."""
    for entry in corpus():
        if entry.kind == kind:
            verdicts = [isinstance(decoded(entry.data, size), str) for size in (4, 16, 64)]
            seen, trained_on = looked_at(entry.data, 16), decoded(entry.data, 16)
            assert {*verdicts, isinstance(seen, str)} == {verdicts[0]}, entry.name
            assert np.array_equal(seen, trained_on), entry.name


def test_nobody_waits_for_what_is_no_file(tmp_path: Path):
    write_no_files(tmp_path)
    reasons = {}
    for name in list(Folder(str(tmp_path)).names):
        with pytest.raises(UnreadableImage) as raised:
            open_image(name)
        reasons[Path(name).name] = str(raised.value)
    assert reasons.pop("link-to-socket.jpg") == "No such device or address"
    assert reasons == {
        "link-not-but-huge.jpg": "more than 1,073 MB",
        "link-to-itself.jpg": "Too many levels of symbolic links",
        "link-to-nothing.jpg": "No such file or directory",
        "link-to-pipe.jpg": "not a file, but a pipe or a device",
        "link-to-zeros.jpg": "not a file, but a pipe or a device",
    }
    for name in ("pipe.jpg", "socket.jpg", "folder.jpg"):  # by their own names
        with pytest.raises(UnreadableImage):
            open_image(tmp_path / name)


def test_a_file_we_may_not_read(tmp_path: Path, monkeypatch):
    folder = tmp_path / "inside"
    folder.mkdir(mode=0o755)
    (folder / "secret.jpg").write_bytes(corpus()[0].data)
    (folder / "secret.jpg").chmod(0)
    monkeypatch.chdir(folder)
    me = os.geteuid()
    if me == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadableImage, match=r"^Permission denied$"):
            open_image("secret.jpg")
    finally:
        os.seteuid(me)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_tiff_has_its_upright_size(orientation):
    entry = next(each for each in corpus() if each.name == f"exif-{orientation}.tif")
    with open_image(io.BytesIO(entry.data)) as image:
        _, record = inspect(image, size=16, name=entry.name)
    assert record[:2] == entry.pixels.shape[1::-1]


def test_bands_are_refused_for_what_they_are():
    """As satellites' and microscopes' are: to read the first three of them would be to read another picture."""
    four = tiff(np.dstack([PICTURE, GREY]), extra=[0])
    assert decoded(four, 16) == "4 bands, of which 3 are known to be colours or alpha; save those alone"
