"""Checks of `selfie doctor`: facts of each image; unreadable, duplicate and unusual images; unusual classes.

N images    S side of the stored square, in pixels
"""

import functools
import hashlib
import io
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.duplicates import ALIKE, MOST_PAIRS, NEAR, NUM_BYTES, Marks, find_earlier, find_seen, marks_of
from selfie_cli.data.images import (
    DECODER_ERRORS,
    EXTENSIONS,
    FORMATS,
    SUFFIXES,
    decode_square,
    is_transparent,
    orientation,
)
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.sources import Joined, Source
from selfie_cli.data.threads import in_chunks
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.talk import Talk

RARE = 5  # images per class: fewer are hardly enough to learn from, or to test on
LONG = 4  # times as long as wide: the centre square is less than a quarter of the image
BLANK = 4  # largest range of levels, of 255, in a blank image


ODD = {
    "blank": "a single colour: nothing can be learned from them",
    "wrong suffix": "read by their contents; other programs may go by the suffix",
    "16 bits": "scaled to 8 bits: a narrow range of values becomes nearly black, so stretch it first",
    "CMYK": "converted to RGB without a colour profile",
    "transparent": "placed on white",
    "several frames": "only the first frame is read",
    "turned by EXIF": "rotated upright when read; other programs may not rotate them",
    "grey": "read as RGB with equal channels",
}
"""Oddities of images that are read, but perhaps not as their owner expects."""

FACTS = [("width", "i4"), ("height", "i4"), ("bytes", "i8"), ("format", "i1")]
RECORD = np.dtype([*FACTS, *((oddity, "?") for oddity in ODD)])
"""Facts of one file: size of the upright image in pixels; length in bytes, 0 for pixels without a file; position of the
format in `FORMATS`, -1 for none; whether it has each oddity."""


def inspect(image: Image.Image, *, size: int, name: str) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Return an image decoded by `decode_square`, uint8 [S, S, 3], and its RECORD. Raise UnreadableImage."""
    width, height = image.size
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    file = getattr(image, "fp", None)
    num_bytes = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else 0
    odd = dict.fromkeys(ODD, False)
    # Pillow reads 16-bit colours as 8-bit RGB; only the layout of the data shows it.
    odd["16 bits"] = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))
    odd["CMYK"] = image.mode == "CMYK"
    # An MPO's second image is a preview, or for the other eye.
    odd["several frames"] = image.format != "MPO" and _is_animated(image)
    suffix = os.path.splitext(name)[1].lower()
    odd["wrong suffix"] = kind != "" and suffix in EXTENSIONS and suffix not in SUFFIXES[kind]
    turned = orientation(image) if image.format == "TIFF" else 1  # for others, only after decoding
    pixels = decode_square(image, size)
    if image.format != "TIFF" and (turned := orientation(image)) in range(5, 9):
        width, height = height, width
    odd["turned by EXIF"] = turned in range(2, 9)
    alpha = image.getchannel("A").getextrema() if "A" in image.getbands() else None
    odd["transparent"] = is_transparent(image) and (alpha is None or alpha[0] != 255)
    odd["blank"] = bool((np.ptp(pixels, axis=(0, 1)) <= BLANK).all())
    odd["grey"] = not odd["blank"] and bool((pixels == pixels[..., :1]).all())
    return pixels, (width, height, num_bytes, FORMATS.index(kind) if kind else -1, *odd.values())


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODER_ERRORS:  # there are more frames, and the next one is damaged
        return True


@dataclass(frozen=True)
class Item:
    """A file or a class, and a note on it."""

    name: str
    note: str


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str
    items: list[Item]


class Alike(NamedTuple):
    """A pair of similar images: their rows, and the number of differing bits of their marks. 0 is a copy; -1 are
    different pixels that are alike once transparent parts are white."""

    row: int
    other: int
    bits: int


class Examination:
    """The N images of all parts, "train" first ("" if there are no parts), and the findings about them.

    labels: the class of each image, "" outside the class folders, None without a label. rows: the rows of each part.
    records: RECORD [N], and marks of N images, both zero for unreadable images. bad: why images are unreadable, by row,
    ascending. good: int64 [M], the rows of readable images. seconds: the time that reading took.
    """

    def __init__(
        self, parts: dict[str, Source], labels: list[str | None], *, size: int, workers: int, talk: Talk
    ) -> None:
        """Decode every image to S = `size`, as training would; keep 70 bytes of facts per image."""
        self.source = Joined(list(parts.values()))
        ends = [0, *itertools.accumulate(map(len, parts.values()))]
        self.names, self.labels, self.workers, self.talk = self.source.names, labels, workers, talk
        self.rows = {part: range(*ends[number : number + 2]) for number, part in enumerate(parts)}
        self.train = next(iter(parts))
        self.classes = {part: Counter(filter(None, (labels[row] for row in self.rows[part]))) for part in parts}
        if len(parts) == 1 and len(self.classes[self.train]) < 2:  # a single folder is no class
            self.classes = {self.train: Counter()}
        for part, counts in self.classes.items():  # test/images/ is no class
            if len(counts) == 1 and counts.keys().isdisjoint(self.classes[self.train]):
                self.classes[part] = Counter()
        self.problems: list[Finding] = []
        self.remarks: list[Finding] = []
        count = len(self.names)
        self.records = np.zeros(count, RECORD)
        self.marks = Marks(np.zeros(count, np.int64), np.zeros((count, NUM_BYTES), np.uint8))
        begun = time.perf_counter()
        look_at = functools.partial(self._look_at, size)
        self.bad = in_chunks(count, look_at, what="checking images", workers=workers, talk=talk)
        self.seconds = time.perf_counter() - begun
        self.good = np.setdiff1d(np.arange(count), list(self.bad))

    def _look_at(self, size: int, chunk: range, _: threading.Event) -> dict[int, str]:
        """Fill the records and the marks of some images; return the unreadable ones and why."""
        pixels = np.empty((len(chunk), size, size, 3), np.uint8)
        unreadable, read = dict[int, str](), list[int]()
        for index in chunk:
            name = self.names[index]
            try:
                with self.source.open(index) as image:
                    pixels[len(read)], self.records[index] = inspect(image, size=size, name=name)
                read.append(index)
            except UnreadableImage as error:
                lost = os.path.islink(name) and not os.path.exists(name)
                unreadable[index] = f"a link to {os.readlink(name)}, which is not there" if lost else str(error)
        found = marks_of(torch.from_numpy(pixels[: len(read)]))
        self.marks.exact[read], self.marks.perceptual[read] = found.exact, found.perceptual
        return unreadable

    def add(self, kind: str, text: str, items: Iterable[tuple[str, str]], *, problem: bool = False) -> None:
        """Add a finding, unless it has no items."""
        if found := [Item(*item) for item in items]:
            (self.problems if problem else self.remarks).append(Finding(kind, text, found))

    def good_of(self, part: str) -> NDArray[np.int64]:
        rows = self.rows[part]
        return self.good[(self.good >= rows.start) & (self.good < rows.stop)]

    def unreadable_part(self) -> DataError | None:
        """Return the error that finetune raises if all images of a part are unreadable, else None."""
        for part, rows in self.rows.items():
            if rows and not len(self.good_of(part)):
                return DataError(f"none of the {len(rows)} images is readable{f' in {part}' if part else ''}")
        return None

    def look_for_bad(self, max_bad: float) -> None:
        """Report unreadable images: a problem if they exceed the share `max_bad` of the parts that a verb reads."""
        # pretrain reads the training part, finetune a second one as well.
        read = [{self.train}, set(self.rows), *({self.train, part} for part in self.rows)]
        bad = {part: len(rows) - len(self.good_of(part)) for part, rows in self.rows.items()}
        share = max(
            sum(bad[part] for part in each) / max(1, sum(len(self.rows[part]) for part in each)) for each in read
        )
        text = "repair or convert them" + ("" if share > max_bad else f" (within --max-bad {max_bad:g})")
        items = ((self.names[row], why) for row, why in sorted(self.bad.items()))
        self.add("cannot be read", text, items, problem=share > max_bad)

    def look_at_classes(self) -> None:
        train, classes = self.train, self.classes[self.train]
        if not classes:
            return
        rare = [(name, f"{count} of {train or 'all'}") for name, count in classes.items() if count < RARE]
        self.add("small classes", f"fewer than {RARE} images: merge classes or add images", rare)
        loose = [(name, "") for name, label in zip(self.names, self.labels, strict=True) if label == ""]
        self.add("without a class", "outside the class folders: finetune leaves them out", loose)
        for part, counts in self.classes.items():
            missing = [(name, f"none in {part}") for name in classes if counts and name not in counts]
            self.add("untested classes", f"only in {train}", missing)

    def look_at_left_out(self, left_out: LeftOut) -> None:
        kinds = sorted(left_out.counts.keys() - {"outside"})  # `look_at_classes` reports these
        told = ((left_out.described(kind), ", ".join(filter(None, left_out.names[kind]))) for kind in kinds)
        self.add("left out", "not read", told)

    def look_for_copies(self) -> None:
        """Report copies and near-duplicates within each part, and those of training images in other parts."""
        marks, train, own = self.marks, self.good_of(self.train), self.own_pixels()
        copies, near, leaked = list[Alike](), list[Alike](), list[Alike]()
        limits = []

        def alike(row: np.int64, other: np.int64, bits: np.int64) -> Alike:
            if bits or marks.exact[row] != marks.exact[other]:
                return Alike(int(row), int(other), max(1, int(bits)))  # different pixels may give the same bits
            return Alike(int(row), int(other), 0 if own[row] == own[other] else -1)

        for part in self.rows:
            mine = self.good_of(part)
            _, first, inverse = np.unique(own[mine], return_index=True, return_inverse=True)
            again = np.flatnonzero(first[inverse] != np.arange(len(mine)))
            copies += [Alike(int(mine[row]), int(mine[first[inverse[row]]]), 0) for row in again]
            single = mine[np.sort(first)]
            nearest, bits, window = find_earlier(marks[single], workers=self.workers, talk=self.talk)
            near += [alike(single[row], single[nearest[row]], bits[row]) for row in np.flatnonzero(nearest >= 0)]
            if window < len(single):
                limits.append((part or "all", f"each image was compared with the {window:,} before it"))
            if part == self.train:
                continue
            if len(mine) * len(train) > MOST_PAIRS:
                limits.append((part, f"compared with {self.train} only for copies"))
            seen = find_seen(marks[mine], marks[train], pairs=MOST_PAIRS)
            leaked += map(alike, mine[seen.near], train[seen.nearest[seen.near]], seen.distance[seen.near])

        text = "copies of training images make results too good: --exclude-seen leaves them out"
        self.add("test images seen", text, self._told(each for each in leaked if each.bits == 0), problem=True)
        text = f"near-duplicates of training images (up to {NEAR} of 255 bits differ): --exclude-seen leaves them out"
        self.add("test images like seen ones", text, self._told(each for each in leaked if each.bits))
        torn = []
        for each in (*copies, *near, *leaked) if self.classes[self.train] else ():
            one, two = self.labels[each.row], self.labels[each.other]
            if one and two and one != two and each.bits >= 0:
                torn.append((self.names[each.row], f"{one}, but {two} in {self.names[each.other]}"))
        self.add("one photo, two classes", "copies or near-duplicates with different labels, so one is wrong", torn)
        self.add("copies", "same pixels as an earlier image: both are read", self._told(copies))
        text = f"very similar to an earlier image, such as resized or mirrored (up to {ALIKE} of 255 bits differ)"
        self.add("near-duplicates", text, self._told(near))
        self.add("not all compared", "too many images to find all near-duplicates; all copies were found", limits)

    def own_pixels(self) -> NDArray[np.int64]:
        """Return hashes of decoded pixels, int64 [N]; those of transparent images with equal pixels include alpha."""
        hashes = self.marks.exact.copy()
        _, inverse, counts = np.unique(hashes[self.good], return_inverse=True, return_counts=True)
        for row in self.good[counts[inverse] > 1].tolist():
            if self.records[row]["transparent"]:
                with self.source.open(row) as image:
                    pixels = image.convert("RGBA").tobytes()
                hashes[row] = int.from_bytes(hashlib.blake2b(pixels, digest_size=8).digest(), "little", signed=True)
        return hashes

    def _told(self, pairs: Iterable[Alike]) -> Iterator[tuple[str, str]]:
        for row, other, bits in pairs:
            one, two = self.names[row], self.names[other]
            linked = os.path.exists(one) and os.path.exists(two) and os.path.samefile(one, two)
            copy = f"{'link to the same file as' if linked else 'copy of'} {two}"
            white = f"similar to {two} on a white background"
            yield one, {0: copy, -1: white}.get(bits, f"similar to {two}, {bits} bits differ")

    def look_for_oddities(self, patch_size: int) -> None:
        records, names = self.records[self.good], self.names
        width, height = records["width"].astype(np.int64), records["height"].astype(np.int64)
        short, long = np.minimum(width, height), np.maximum(width, height)
        for kind, text, rows in (
            ("tiny", f"short side below the patch size of {patch_size} px: blurred when enlarged", short < patch_size),
            ("long", f"over {LONG} times as long as wide: only the central square is read", long > LONG * short),
        ):
            sizes = ((names[self.good[row]], f"{width[row]} x {height[row]} px") for row in np.flatnonzero(rows))
            self.add(kind, text, sizes)
        for kind, text in ODD.items():
            rows = np.flatnonzero(records[kind])
            found = [FORMATS[each] if kind == "wrong suffix" else "" for each in records["format"][rows]]
            self.add(kind, text, ((names[self.good[row]], note) for row, note in zip(rows, found, strict=True)))
        strange = [(name, "") for name in names if not name.isprintable()]
        self.add("strange names", "not UTF-8, or with control characters: other programs may fail on them", strange)
