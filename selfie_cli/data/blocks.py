"""Images of tar shards and parquet files, read from the disk in blocks of consecutive images."""

import io
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from PIL import Image

from selfie_cli.data.images import open_image
from selfie_cli.data.sources import Packed, checked
from selfie_cli.errors import UnreadableImage

BLOCK = 64
"""Images per block: about 7 MB of photos, which takes a disk longer to read than to find."""
MOST = 10**9
"""Largest number of bytes of blocks in memory: 32 blocks (`batches.SampleOrder`) of photos under 500 KB fit."""

Data = Sequence[bytes | UnreadableImage]


class BlockReader:
    """Reader of packed images, fast if the images of a block are requested close together in time. Thread-safe.

    If `cheap`, the first image requested from a block is read alone, which suits reading a few of a million images. The
    second request reads the whole block. It stays in memory until each of its images has been requested, or other
    blocks need the room.
    """

    def __init__(self, source: Packed, block: int = BLOCK, *, cheap: bool = True) -> None:
        self.source, self.block, self.cheap = source, block, cheap
        self._lock = threading.Lock()
        self._asked: Counter[int] = Counter()
        self._blocks: OrderedDict[int, Future[Data]] = OrderedDict()
        self._num_bytes = 0

    def open(self, index: int) -> Image.Image:
        """Open an image. Raise UnreadableImage if that fails."""
        return open_image(io.BytesIO(self.contents(index)))

    def contents(self, index: int) -> bytes:
        """Return the bytes of an image. Raise UnreadableImage."""
        number, offset = divmod(index, self.block)
        first, end = number * self.block, min((number + 1) * self.block, len(self.source))
        with self._lock:
            self._asked[number] += 1
            block = self._blocks.get(number)
            alone = block is None and self.cheap and self._asked[number] == 1
            if reading := block is None and not alone:
                block = self._blocks[number] = Future()
        if block is None:
            return checked(self.source.read(index, index + 1)[0])
        if reading:
            self._read(block, number, first, end)  # for all threads that wait for this block
        try:
            data = block.result()[offset]
        except UnreadableImage:  # of another image, perhaps, if the block spans two shards
            return checked(self.source.read(index, index + 1)[0])
        with self._lock:
            if self._asked[number] >= end - first:
                self._drop(number)
        return checked(data)

    def _read(self, block: Future[Data], number: int, first: int, end: int) -> None:
        try:
            data = self.source.read(first, end)
        except BaseException as error:
            with self._lock:
                del self._blocks[number]
            block.set_exception(error)
            return
        block.set_result(data)
        with self._lock:
            self._num_bytes += num_bytes(data)
            for oldest in [other for other, one in self._blocks.items() if one.done() and other != number]:
                if self._num_bytes <= MOST:
                    break
                self._drop(oldest)

    def _drop(self, number: int) -> None:
        del self._asked[number]
        if block := self._blocks.pop(number, None):
            self._num_bytes -= num_bytes(block.result())


def num_bytes(data: Data) -> int:
    return sum(len(each) for each in data if isinstance(each, bytes))
