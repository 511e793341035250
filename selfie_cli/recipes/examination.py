"""What is wrong with images, or odd about them: what `selfie doctor` finds, by file or class."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfie_cli.data.duplicates import ALIKE, MOST_PAIRS, NEAR, Marks, find_earlier, find_seen
from selfie_cli.data.images import FORMATS
from selfie_cli.data.inspection import Inspected, Oddity
from selfie_cli.data.layout import kind_of
from selfie_cli.data.parquet import Parquet
from selfie_cli.data.shards import Shards
from selfie_cli.data.source import Packed
from selfie_cli.data.sources import Joined, Source, split_folders
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk

RARE = 5  # images of a class: fewer are hardly a class to learn, or to test on
LONG = 4  # times as long as wide: the centre square is less than a quarter of the image
ODD = {
    Oddity.BLANK: ("blank", "one colour all over: nothing can be learned from them"),
    Oddity.MISNAMED: ("wrong suffix", "read by what they contain; other programs go by the name"),
    Oddity.DEEP: ("16 bits", "scaled to 8: a narrow range of values becomes nearly black, stretch it before"),
    Oddity.CMYK: ("CMYK", "turned into RGB without a colour profile"),
    Oddity.TRANSPARENT: ("transparent", "shown on white"),
    Oddity.ANIMATED: ("several frames", "the first one alone is read"),
    Oddity.TURNED: ("turned by EXIF", "read upright; other programs may show them as they lie"),
    Oddity.GREY: ("grey", "read as RGB, all colours equal"),
}


@dataclass(frozen=True)
class Item:
    """A file or a class, and what is to be said of it."""

    name: str
    note: str


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str
    items: list[Item]


Pairs = list[tuple[int, int, int]]
"""The row of an image, that of another which it is like, and in how many bits their marks differ: 0 for a copy."""


class Examination:
    """Images by part, "train" first ("" where there are no parts), and what comes out about them.

    names: N; labels: of each image its class, "" beside the folders of classes, None where there are none. rows: those
    of each part. good: int64 [M], those that can be read.
    """

    def __init__(self, parts: dict[str, Source], roots: dict[str, str], seen: Inspected) -> None:
        """`roots` are the folders whose subfolders may be classes, each ending in a slash, with their parts."""
        source = Joined(list(parts.values()))
        ends = np.cumsum([0, *map(len, parts.values())]).tolist()
        self.names, self.seen, self.roots = source.names, seen, roots
        self.labels = list(labels_of(source, roots))
        self.rows = {part: range(*ends[number : number + 2]) for number, part in enumerate(parts)}
        self.good = np.setdiff1d(np.arange(len(source)), list(seen.bad))
        self.train = next(iter(parts))
        self.classes = {part: Counter(filter(None, (self.labels[row] for row in self.rows[part]))) for part in parts}
        # One folder in a folder is no class, unless the parts of a data set lie beside each other.
        least = 1 if len(parts) > 1 or isinstance(parts[self.train], Packed) else 2
        if len(self.classes[self.train]) < least:
            self.classes = {part: Counter() for part in parts}
        self.problems: list[Finding] = []
        self.remarks: list[Finding] = []

    def add(self, kind: str, text: str, items: Iterable[tuple[str, str]], *, problem: bool = False) -> None:
        """Nothing where there are no items."""
        if found := [Item(*item) for item in items]:
            (self.problems if problem else self.remarks).append(Finding(kind, text, found))

    def good_of(self, part: str) -> NDArray[np.int64]:
        rows = self.rows[part]
        return self.good[(self.good >= rows.start) & (self.good < rows.stop)]

    def look_for_bad(self, max_bad: float) -> None:
        share = len(self.seen.bad) / max(1, len(self.names))
        text = "mend or remove them" + ("" if share > max_bad else f" (no more than --max-bad {max_bad:g} allows)")
        bad = sorted(self.seen.bad.items())
        self.add("cannot be read", text, ((self.names[row], why) for row, why in bad), problem=share > max_bad)

    def look_at_classes(self) -> None:
        empty = []
        for root, part in self.roots.items():
            inside = [name for name in sorted(next(os.walk(root))[1]) if kind_of(name, is_folder=True) == "folder"]
            read = {self.labels[row] for row in self.rows[part]}
            empty += [(root + name, "") for name in inside if name not in read]
        self.add("empty folders", "no images in them: fill or remove them", empty)
        train, classes = self.train, self.classes[self.train]
        if not classes:
            return
        only = [(name, f"{count:,} images") for name, count in classes.items() if len(classes) == 1]
        self.add("one class only", "a classifier needs two or more: check the folders", only, problem=True)
        rare = [(name, f"{count} of {train or 'all'}") for name, count in classes.items() if count < RARE]
        self.add("small classes", f"fewer than {RARE} images: merge them or find more", rare)
        loose = [(name, "") for name, label in zip(self.names, self.labels, strict=True) if label == ""]
        self.add("without a class", "beside the folders of the classes: finetune leaves them out", loose)
        for part, counts in self.classes.items():
            unknown = [(name, f"{count:,} in {part}") for name, count in counts.items() if name not in classes]
            self.add("unknown classes", f"not in {train}: finetune stops at them", unknown, problem=True)
            missing = [(name, f"none in {part}") for name in classes if counts and name not in counts]
            self.add("untested classes", f"in {train} alone", missing)

    def look_for_copies(self, workers: int, talk: Talk) -> None:
        """Within each part, and of what is for testing in what is for training."""
        marks, train = self.seen.marks, self.good_of(self.train)
        copies: Pairs = []
        alike: Pairs = []
        leaked: Pairs = []
        limits = []

        def of(chosen: NDArray[np.int64]) -> Marks:
            return Marks(marks.exact[chosen], marks.perceptual[chosen])

        for part in self.rows:
            mine = self.good_of(part)
            _, first, inverse = np.unique(marks.exact[mine], return_index=True, return_inverse=True)
            again = np.flatnonzero(first[inverse] != np.arange(len(mine)))
            copies += [(mine[row], mine[first[inverse[row]]], 0) for row in again]
            single = mine[np.sort(first)]
            nearest, bits, window = find_earlier(of(single), workers=workers, talk=talk)
            alike += [(single[row], single[nearest[row]], int(bits[row])) for row in np.flatnonzero(nearest >= 0)]
            if window < len(single):
                limits.append((part or "all", f"each image was compared with the {window:,} before it"))
            if part == self.train:
                continue
            if len(mine) * len(train) > MOST_PAIRS:
                mine = mine[np.isin(marks.exact[mine], marks.exact[train])]
                limits.append((part, f"compared with {self.train} for copies alone"))
            seen = find_seen(of(mine), of(train))
            bits = np.where(seen.exact, 0, np.maximum(seen.distance, 1))  # other pixels can leave the same bits
            leaked += [(mine[row], train[seen.nearest[row]], int(bits[row])) for row in np.flatnonzero(seen.near)]

        text = "of training images: results would be too good, remove them"
        self.add("test images seen", f"copies {text}", self._told(leaked, copies=True), problem=True)
        text = f"near-duplicates of training images ({NEAR} of 255 bits): eval --exclude-seen leaves them out"
        self.add("test images like seen ones", text, self._told(leaked, copies=False))
        torn = []
        for row, other, _ in (*copies, *alike, *leaked):
            one, two = self.labels[row], self.labels[other]
            if one and two and one != two and self.classes[self.train]:
                torn.append((self.names[row], f"{one}, but {two} in {self.names[other]}"))
        self.add("one photo, two classes", "copies or near-duplicates, one of which has a wrong label", torn)
        self.add("copies", "the same pixels as an earlier image: they count twice", self._told(copies))
        text = f"of earlier images: saved, sized, lit or mirrored anew, or very like ({ALIKE} of 255 bits)"
        self.add("near-duplicates", text, self._told(alike))
        self.add("not all compared", "these are too many for all near-duplicates; all copies were found", limits)

    def _told(self, pairs: Pairs, copies: bool | None = None) -> Iterator[tuple[str, str]]:
        """Of `pairs` the copies, the others, or all."""
        for row, other, bits in pairs:
            if copies is None or copies == (bits == 0):
                like = f"like {self.names[other]}, {bits} bits differ" if bits else f"copy of {self.names[other]}"
                yield self.names[row], like

    def look_for_oddities(self, patch_size: int) -> None:
        records, names = self.seen.records[self.good], self.names
        width, height = records["width"].astype(np.int64), records["height"].astype(np.int64)
        short, long = np.minimum(width, height), np.maximum(width, height)
        tiny, thin = np.flatnonzero(short < patch_size), np.flatnonzero(long > LONG * short)
        size = [[(names[self.good[row]], f"{width[row]} x {height[row]} px") for row in rows] for rows in (tiny, thin)]
        self.add("tiny", f"shorter than a patch of {patch_size} px: enlarged, they are a blur", size[0])
        self.add("long", f"over {LONG} times as long as wide: only the middle square is read", size[1])
        for oddity, (kind, text) in ODD.items():
            rows = np.flatnonzero(records["oddities"] & oddity)
            found = [FORMATS[each] if oddity == Oddity.MISNAMED else "" for each in records["format"][rows]]
            self.add(kind, text, ((names[self.good[row]], note) for row, note in zip(rows, found, strict=True)))
        strange = [(name, "") for name in names if not name.isprintable()]
        self.add("strange names", "not UTF-8, or with control characters: other programs may stumble", strange)

    def look_at_others(self, folders: list[str]) -> Counter[str]:
        """How many files there are of each suffix, hidden ones aside, that are no images of a known format."""
        suffixes: Counter[str] = Counter()
        unread, apart = [], []
        for folder in folders:
            parts = set(split_folders(folder).values())
            for here, inside, files in os.walk(folder):
                inside[:] = sorted(name for name in inside if kind_of(name, is_folder=True) == "folder")
                outside = bool(parts) and os.path.relpath(here, folder).split(os.sep)[0] not in parts
                for name in sorted(name for name in files if not name.startswith(".")):
                    kind = kind_of(name, is_folder=False)
                    if kind != "image":
                        suffixes[os.path.splitext(name)[1].lower()] += 1
                        unread += [(os.path.join(here, name), "")] if kind == "formats" else []
                    elif outside:
                        apart.append((os.path.join(here, name), ""))
        self.add("other formats", "images that selfie does not read: convert them to JPEG or PNG", unread)
        self.add("outside the parts", "beside train/, where nothing reads them", apart)
        return suffixes


def labels_of(source: Source, roots: dict[str, str]) -> Iterator[str | None]:
    """Of each image the class, that of its folder, `.cls` file or row; "" beside such folders, None without any."""
    if isinstance(source, Joined):
        for each in source.sources:
            yield from labels_of(each, roots)
    elif isinstance(source, Shards):
        yield from source.labels
    elif isinstance(source, Parquet):
        try:
            yield from source.labels()[0]
        except DataError:  # no column of labels
            yield from itertools.repeat(None, len(source))
    else:
        known: dict[str, str] = {}  # a class's name is held once
        for name in source.names:
            root = max((root for root in roots if name.startswith(root)), key=len, default=None)
            folder = None if root is None else name[len(root) :].rpartition(os.sep)[0].partition(os.sep)[0]
            yield folder and known.setdefault(folder, folder)
