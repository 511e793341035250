from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import png, shade, write_tar

from selfie_cli.data import blocks
from selfie_cli.data.blocks import BlockReader
from selfie_cli.data.shards import Shards
from selfie_cli.errors import UnreadableImage


class Recorded(Shards):
    """Records which images are read together."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(paths)
        self.reads: list[tuple[int, int]] = []

    def read(self, first: int, end: int) -> list[bytes]:
        self.reads.append((first, end))
        return super().read(first, end)


@pytest.fixture
def shards() -> Recorded:
    """250 images in two shards, whose first pixel is their number. One block lies in both."""
    numbered = [(f"{number:03d}.png", png(number)) for number in range(250)]
    parts = dict(numbered[:170]) | {"169.txt": b"between"}, dict(numbered[170:])
    return Recorded([write_tar(Path(f"{number}.tar"), part) for number, part in enumerate(parts)])


@pytest.mark.parametrize("threads", [1, 8])
def test_an_epoch_reads_each_block_once(shards, threads):
    reader = BlockReader(shards)
    order = np.random.default_rng(0).permutation(250).tolist()
    for _ in range(2):
        shards.reads.clear()
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(lambda index: shade(reader, index), order)) == order
        whole = sorted(read for read in shards.reads if read[1] - read[0] > 1)
        assert whole == [(0, 64), (64, 128), (128, 192), (192, 250)]
        assert len(shards.reads) == 2 * len(whole)  # and the first image of each by itself
        assert (len(reader._blocks), reader._num_bytes) == (0, 0)  # all were asked for: nothing is kept


def test_a_few_of_many_are_read_alone_and_memory_is_bounded(shards, monkeypatch):
    monkeypatch.setattr(blocks, "MOST", 2 * 64 * len(png(200)))
    reader = BlockReader(shards)
    first, later = [0, 64, 128, 192], [1, 65, 129, 193, 2, 66]
    assert [shade(reader, index) for index in first] == first
    assert shards.reads == [(index, index + 1) for index in first]
    assert [shade(reader, index) for index in later] == later
    assert len(reader._blocks) <= 3
    assert reader._num_bytes <= 2 * 64 * len(png(200))


def test_a_lost_shard_makes_its_images_unreadable(shards):
    reader = BlockReader(shards)
    Path(shards.paths[1]).unlink()
    assert shade(shards, 5) == 5
    for index in (200, 201, 202, 171):
        with pytest.raises(UnreadableImage, match=r"1\.tar: No such file"):
            reader.open(index)
    assert [shade(reader, index) for index in (130, 131, 169)] == [130, 131, 169]  # of the block that lies in both
