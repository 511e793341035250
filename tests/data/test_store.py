import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from selfie_cli.data import store as store_module
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.data.sources import Array, Files, Subset
from selfie_cli.data.store import BadFile, load_bad, read_store, report_bad, storage_size
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk

BAD = [0, 40, 41, 99]


@pytest.fixture
def source(tmp_path: Path) -> Files:
    """100 images whose first pixel is their number; the BAD ones are no images."""
    names = [str(tmp_path / f"{index:03d}.png") for index in range(100)]
    for index, name in enumerate(names):
        Image.new("RGB", (12, 10), (index, 0, 255)).save(name)
        if index in BAD:
            Path(name).write_bytes(b"no image" * (index > 0))
    return Files(names)


def read(source, size=8, workers=2, max_bad=1.0, talk=None, memory=None):
    return read_store(source, size=size, workers=workers, max_bad=max_bad, talk=talk or Talk(), memory=memory)


@pytest.mark.parametrize("memory", [None, 1])
def test_rows_stay_aligned_with_the_source(source, memory):
    store = read(source, memory=memory)
    assert store.pixels.dtype == torch.uint8
    assert store.pixels.shape == (96, 8, 8, 3)
    assert store.kept.tolist() == [index for index in range(100) if index not in BAD]
    assert store.pixels[:, 0, 0, 0].tolist() == store.kept.tolist()
    assert [bad.name for bad in store.bad] == [source.names[index] for index in BAD]
    assert store.bad[0] == BadFile(source.names[0], "empty file")
    batch = store.take(torch.tensor([95, 0, 0]))
    assert batch[:, 0, 0, 0].tolist() == [98, 1, 1]
    batch.zero_()
    assert store.pixels[0, 0, 0, 0] == 1


def test_pixels_are_those_of_decode_square(source):
    with open_image(source.names[7]) as image:
        np.testing.assert_array_equal(read(source).pixels[6].numpy(), decode_square(image, 8))


def test_too_many_unreadable_images_stop_the_reading(source):
    with pytest.raises(DataError) as caught:
        read(source, max_bad=0.02)
    message = str(caught.value)
    assert all(source.names[index] in message for index in BAD[:3])
    assert "empty file" in message
    assert "2.0%" in message
    assert "--max-bad" in message
    read(source, max_bad=0.04)


def test_reading_stops_as_soon_as_the_share_cannot_be_kept(tmp_path):
    opened = []

    class Counting(Files):
        def open(self, index):
            opened.append(index)
            return super().open(index)

    with pytest.raises(DataError, match="unreadable"):
        read(Counting([str(tmp_path / f"{index}.jpg") for index in range(20000)]), max_bad=0.001)
    assert len(opened) < 20000


def test_nothing_readable_or_nothing_at_all(source):
    with pytest.raises(DataError, match="none of the 4 images is readable"):
        read(Subset(source, np.array(BAD)))
    chosen = Subset(source, np.array(BAD))
    store = read_store(chosen, size=8, workers=2, max_bad=1, talk=Talk(), none_is_fine=True)
    assert (len(store), len(store.pixels), len(store.bad)) == (0, 0, 4)
    with pytest.raises(DataError, match="no images"):
        read(Files([]))


def test_progress_is_told(source):
    told = []

    class Tracking(Talk):
        def track(self, what, total):
            told.append((what, total))
            return contextlib.nullcontext(lambda done, note: told.append((done, note)))

    read(source, talk=Tracking())
    assert told[0] == ("reading images", 100)
    assert told[-1] == (100, "4 unreadable")


def test_decoded_pixels_are_taken_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8).transpose(0, 2, 3, 1)
    array = Array(pixels, list("abcde"))
    np.testing.assert_array_equal(read(array).pixels.numpy(), pixels)
    subset = read(Subset(array, np.array([3, 1])))
    np.testing.assert_array_equal(subset.pixels.numpy(), pixels[[3, 1]])
    assert subset.kept.tolist() == [0, 1]
    assert read(array, size=4).pixels.shape == (5, 4, 4, 3)
    pixels.flags.writeable = False
    read(Array(np.broadcast_to(pixels[..., :1], pixels.shape), list("abcde"))).pixels[0] = 0


def test_the_spill_file_has_no_name_and_needs_room(source, tmp_path, monkeypatch):
    folder = tmp_path / "spill"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    store = read(source, memory=1)
    assert store.pixels[0, 0, 0, 0] == 1
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"0\.0 GB.*--image-size.*TMPDIR"):
        read(source, memory=1)


def test_an_interrupt_stops_promptly(tmp_path):
    Image.new("RGB", (2000, 2000)).save(tmp_path / "large.png")
    code = (
        "import sys\n"
        "from selfie_cli.data.sources import Files\n"
        "from selfie_cli.data.store import read_store\n"
        "from selfie_cli.talk import Talk\n"
        "print('ready', flush=True)\n"
        "read_store(Files([sys.argv[1]] * 100000), size=8, workers=2, max_bad=0, talk=Talk())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
        assert time.monotonic() - started < 5
    assert process.returncode != 0


def test_storage_size():
    assert [storage_size(size) for size in (32, 64, 65, 96, 224)] == [32, 64, 74, 110, 256]


def test_bad_files_are_listed_and_told(tmp_path):
    told = []

    class Warned(Talk):
        def warn(self, line):
            told.append(line)

    file = tmp_path / "bad_files.jsonl"
    report_bad([], 9, file, Warned())
    assert not file.exists()
    assert told == []
    report_bad([BadFile("a\nb.jpg", "empty file"), BadFile("c.png", "damaged")], 9, file, Warned())
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"path": "a\nb.jpg", "reason": "empty file"},
        {"path": "c.png", "reason": "damaged"},
    ]
    assert told == [f"2 of 9 images cannot be read and are left out, see {file}"]
    assert load_bad(file) == [BadFile("a\nb.jpg", "empty file"), BadFile("c.png", "damaged")]
    assert load_bad(tmp_path / "absent") == []
