"""Decoded images: all at once in memory, and on demand."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Listener
from pictures import png, write_tar
from PIL import Image

from selfie_cli.data import pixels as pixels_module
from selfie_cli.data.bad_files import BadFile
from selfie_cli.data.cache import open_cache
from selfie_cli.data.duplicates import marks_of
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.data.pixels import InMemory, OnDemand, open_pixels, read_pixels
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Array, Files, Subset
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk

SIZE = 16
ROW = SIZE * SIZE * 3
BAD = [0, 40, 41, 99]
HOW = {"size": SIZE, "workers": 2, "max_bad": 0.1, "talk": Talk()}


class Watched(Files):
    """Records which images are opened."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.opened: list[int] = []

    def open(self, index: int) -> Image.Image:
        self.opened.append(index)
        return super().open(index)


@pytest.fixture
def source() -> Watched:
    """100 images of noise, whose red is their number."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 20, 18, 3), np.uint8)
    pixels[..., 0] = np.arange(100)[:, None, None]
    Path("images").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(f"images/{index:03d}.png")
    return Watched([f"images/{index:03d}.png" for index in range(100)])


@pytest.fixture
def whole(source: Watched) -> torch.Tensor:
    """All pixels, decoded one by one: [100, 16, 16, 3]."""
    return torch.stack([torch.from_numpy(decode_square(open_image(name), SIZE)) for name in source.names])


def spoil(source: Files, *indices: int) -> None:
    for index in indices:
        Path(source.names[index]).write_bytes(b"no image" * (index > 0))


def read(source, max_bad=1.0) -> InMemory:
    return read_pixels(source, **{**HOW, "max_bad": max_bad})


def on_demand(source, *, max_bad=0.2, gb=1.0, talk=None) -> closing[OnDemand]:
    how = {"size": SIZE, "talk": talk or Talk()}
    cache = open_cache(source, **how, folder="store", limit_gb=gb)
    return closing(OnDemand(source, cache, **how, workers=3, max_bad=max_bad))


def full_disk(*given: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("spilled", [False, True])
def test_rows_in_memory_stay_aligned_with_the_source(source, whole, spilled, monkeypatch):
    Path("spill").mkdir()
    monkeypatch.setattr("tempfile.tempdir", "spill")
    if spilled:
        monkeypatch.setattr("selfie_cli.data.memory.share_of_memory", lambda: 1)
    spoil(source, *BAD)
    found = read(source)
    assert found.pixels.dtype == torch.uint8
    assert found.kept.tolist() == [index for index in range(100) if index not in BAD]
    assert torch.equal(found.pixels, whole[found.kept])
    assert [bad.name for bad in found.bad] == [source.names[index] for index in BAD]
    assert found.bad[0] == BadFile(source.names[0], "empty file")
    batch = found.take(torch.tensor([95, 0, 0]))
    assert batch[:, 0, 0, 0].tolist() == [98, 1, 1]
    batch.zero_()
    assert found.pixels[0, 0, 0, 0] == 1
    assert not list(Path("spill").iterdir())  # the file has no name
    if spilled:
        monkeypatch.setattr(os, "posix_fallocate", full_disk)
        with pytest.raises(DataError, match=r"0\.0 GB.*No space left.*--image-size.*TMPDIR"):
            read(source)


def test_too_many_unreadable_images_stop_the_reading(source):
    spoil(source, *BAD)
    with pytest.raises(DataError, match=r"3 unreadable images, over 2\.0% of all 100.*empty file.*--max-bad"):
        read(Subset(source, np.array([*BAD[:3], *range(1, 40), *range(42, 99), 98])), max_bad=0.02)
    read(source, max_bad=0.04)
    broken = Subset(source, np.array(BAD))
    with pytest.raises(DataError, match="none of the 4 images is readable"):
        read(broken)
    none = read(broken, max_bad=None)
    assert (len(none), len(none.pixels), len(none.bad)) == (0, 0, 4)
    with pytest.raises(DataError, match="no images"):
        read(Files([]))
    lost = Watched([f"{index}.jpg" for index in range(5000)])
    with pytest.raises(DataError, match="unreadable"):
        read(lost, max_bad=0.001)
    assert len(lost.opened) < 5000  # as soon as it is certain


def test_images_are_decoded_when_they_are_first_asked_for(source, whole):
    with on_demand(source) as pixels:
        assert (len(pixels), pixels.block, source.opened) == (100, 1, [])
        asked = torch.tensor([5, 99, 0, 7])
        batch = pixels.take(asked)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, whole[asked])
        assert sorted(source.opened) == [0, 5, 7, 99]
        batch.zero_()
        assert torch.equal(pixels.take(asked), whole[asked])
        assert len(source.opened) == 4
        assert torch.equal(pixels.take(torch.tensor([7, 8, 7])), whole[[7, 8, 7]])
        pixels.take(torch.arange(100))
    assert sorted(source.opened) == list(range(100))
    with on_demand(source) as pixels:
        order = torch.randperm(100)
        assert torch.equal(pixels.take(order), whole[order])
        np.testing.assert_array_equal(pixels.marks().exact, marks_of(whole).exact)
    assert len(source.opened) == 100  # a later run decodes nothing
    spoil(source, 7)
    with on_demand(source) as pixels:
        assert torch.equal(pixels.take(torch.tensor([7])), whole[[8]])  # a changed file is decoded anew


@pytest.mark.parametrize("room", [0, 40])
def test_images_without_room_are_decoded_again(source, whole, room):
    with on_demand(source, gb=(room + 0.5) * ROW / 1e9 if room else 0) as pixels:
        for _ in range(2):
            assert torch.equal(pixels.take(torch.arange(100)), whole)
        assert sorted(source.opened) == sorted([*range(100), *range(room, 100)])
        assert len(pixels.marks()) == 100
    assert [file.stat().st_size for file in Path().glob("store/*/pixels")] == ([room * ROW] if room else [])


def test_when_writing_fails_training_goes_on(source, whole, monkeypatch):
    def full(file: int, data: memoryview, offset: int) -> int:
        write(file, data[:100], offset)
        return full_disk()

    talk, write = Listener(), os.pwrite
    with on_demand(source, talk=talk) as pixels:
        pixels.take(torch.arange(20))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            for _ in range(2):
                assert torch.equal(pixels.take(torch.arange(100)), whole)
        assert len(source.opened) == 180
    assert ["No space left" in line for line in talk.lines] == [False, True]
    with on_demand(source) as pixels:  # half an image is none
        assert torch.equal(pixels.take(torch.arange(100)), whole)


@pytest.mark.parametrize("gb", [1.0, 0.0])
def test_the_next_readable_image_that_is_not_in_the_batch_stands_in(source, whole, gb):
    spoil(source, *BAD)
    stands = np.arange(100)
    stands[BAD] = [1, 42, 42, 1]
    for _ in range(2):  # also when the others are there already
        with on_demand(source, gb=gb) as pixels:
            assert torch.equal(pixels.take(torch.tensor([99, 40])), whole[[1, 42]])
            assert torch.equal(pixels.take(torch.arange(39, 44)), whole[[39, 44, 45, 42, 43]])
            order = torch.randperm(100)
            assert torch.equal(pixels.take(order), whole[stands[order.numpy()]])  # there are no others
            assert [bad.name for bad in pixels.bad] == [source.names[index] for index in BAD]
            assert pixels.bad[0].reason == "empty file"
            assert len(pixels.marks()) == 96


def test_too_many_unreadable_images_stop_the_training(source):
    known = [BadFile(source.names[index], "was damaged") for index in (40, 7)]
    spoil(source, 7, 9, 40)
    with on_demand(source, max_bad=0.02) as pixels:
        pixels.recall(marks=None, bad=known)  # they count from the start
        assert pixels.bad == known[::-1]
        pixels.take(torch.tensor([7, 40]))
        with pytest.raises(DataError, match=r"3 unreadable images, over 2\.0%.*--max-bad"):
            pixels.take(torch.tensor([9]))
    spoil(source, *range(100))
    with on_demand(source, max_bad=1) as pixels, pytest.raises(DataError, match="none of the 100"):
        pixels.take(torch.arange(0, 100, 9))  # which looks for those that stand in


def test_shards_are_asked_for_in_blocks():
    shard = write_tar(Path("s.tar"), {f"{shade:03d}.png": png(shade) for shade in range(200)})
    with on_demand(Shards([shard]), gb=0) as pixels:
        assert pixels.block == 64
        order = torch.randperm(200)
        assert pixels.take(order)[:, 0, 0, 0].tolist() == order.tolist()


def test_small_and_decoded_sets_are_in_memory(source, whole, monkeypatch):
    pixels = open_pixels(source, **HOW)
    assert (type(pixels), pixels.block) == (InMemory, 1)
    assert torch.equal(pixels.to(torch.device("cpu")).take(torch.tensor([2, 0])), whole[[2, 0]])
    np.testing.assert_array_equal(pixels.marks().exact, marks_of(whole).exact)
    monkeypatch.setattr(pixels_module, "SMALL", 0)
    decoded = np.broadcast_to(whole.numpy()[..., :1], whole.shape)  # as of a named set in grey
    subset = Subset(Array(decoded, source.names), np.array([3, 1]))
    found = open_pixels(subset, **HOW)
    assert isinstance(found, InMemory)
    assert found.take(torch.arange(2)).equal(torch.from_numpy(decoded[[3, 1]]))
    assert read_pixels(subset, **{**HOW, "size": 4}).pixels.shape == (2, 4, 4, 3)


def test_all_images_on_demand_are_those_in_memory(source, monkeypatch):
    monkeypatch.setattr(pixels_module, "SMALL", 0)
    spoil(source, *BAD)
    expected = read(source)
    for times in (100, 4):  # the second time the unreadable ones alone
        source.opened.clear()
        found = open_pixels(source, **HOW, folder="store").in_memory()
        assert torch.equal(found.pixels, expected.pixels)
        assert (found.kept.tolist(), found.bad) == (expected.kept.tolist(), expected.bad)
        assert len(source.opened) == times


def test_the_parts_of_a_run_have_all_marks_together(source, whole):
    marks = None
    for seen in ([3, 8], [8, 60]):
        with on_demand(source, gb=0) as pixels:
            pixels.recall(marks=marks, bad=[])
            pixels.take(torch.tensor(seen))
            marks = pixels.marks()
    expected = marks_of(whole[[3, 8, 60]])
    np.testing.assert_array_equal(marks.exact, expected.exact)
    np.testing.assert_array_equal(marks.perceptual, expected.perceptual)
