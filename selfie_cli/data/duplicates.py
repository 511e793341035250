"""Copies and near-duplicates, within a set or between test images and images seen in pretraining.

    N images seen    M test images    S side in pixels

Each image has two marks: a hash of its pixels, and a perceptual hash, which survives re-encoding, resizing, other
brightness or colour, and mirroring. The perceptual hash is the signs of the lowest 16 x 16 cosine coefficients in grey
(Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", takes 8 x 8 and compares with the
median). Mirroring flips the signs of odd horizontal frequencies and no others. Not found: crops by more than about a
thirtieth of the side, rotations by more than 2 degrees.
"""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.data.threads import in_chunks
from selfie_cli.errors import WeightsError
from selfie_cli.talk import Talk
from selfie_cli.weights import load_weights, save_weights

FILE_NAME = "seen.safetensors"
VERSION = "1"
"""Version of the marks: those of different versions cannot be compared."""

SIDE = 16  # frequencies each way
NUM_BYTES = SIDE * SIDE // 8
NEAR = 48
"""Largest number of differing bits, of 255, between near-duplicates.

JPEG at quality 50, half the size and back, or 20 % more brightness change up to 40 bits. At 48, 172 of CIFAR-10's
10,000 test images are near one of the 50,000 for training, and 168 of them show the same photograph, by eye and by the
list of Barz and Denzler 2020, "Do we train on test data?". Different clothes differ in 63 bits and more, generated
pictures of one kind of object in 47 and more.
"""
ALIKE = 40
"""The limit within one set, which may hold many pictures of one kind.

Of 3,781 photos of clothes, two pairs differ in 40 bits or less, each of one garment; from 48 on, garments differ. All
large photos that were saved again, halved, mirrored or made 20 % brighter are found, and 99 % of 32 px images.
"""
FAINT = 1.0  # grey levels; smaller coefficients may come from rounding, which causes about 0.2 for every S
CHUNK = 2**22  # pixel values hashed together
MOST_PAIRS = 2e10  # a minute on one core; all pairs of 200,000 images
ROWS, KEYS = 64, 2048  # number compared together; they fit into the processor's cache


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks of N images. exact: int64 [N], hashes of the pixels. perceptual: uint8 [N, 32], 128 bits of even horizontal
    frequencies (the first, the mean, is always 0), then 128 bits of odd ones."""

    exact: NDArray[np.int64]
    perceptual: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.exact)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "Marks":
        return Marks(self.exact[rows], self.perceptual[rows])


@dataclass(frozen=True, eq=False)
class Seen:
    """Which of M test images were seen; every array is [M].

    exact: bool, True for a copy. near: bool, True for a copy or a near-duplicate. nearest: int64, row of the closest
    image seen; distance: int64, differing bits of 255; both -1 if none is near.
    """

    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]
    nearest: NDArray[np.int64]
    distance: NDArray[np.int64]


def marks_of(pixels: Tensor) -> Marks:
    """Return the marks of stored pixels, uint8 [N, S, S, 3]."""
    size = pixels.shape[1]
    frequencies = torch.tensor([*range(0, SIDE, 2), *range(1, SIDE, 2)])[:, None]
    cosines = torch.cos(torch.pi / size * frequencies * (torch.arange(size) + 0.5)) * (2 / size) ** 0.5  # [16, S]
    luma = torch.tensor([0.299, 0.587, 0.114])
    digests = np.empty((len(pixels), NUM_BYTES), np.uint8)
    perceptual = np.empty_like(digests)
    rows = max(1, CHUNK // (size * size * 3))
    for start in range(0, len(pixels), rows):
        part = slice(start, start + rows)
        images = pixels[part].cpu().contiguous()
        hashes = [hashlib.blake2b(image, digest_size=NUM_BYTES).digest() for image in images.numpy()]
        digests[part] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, NUM_BYTES)
        # All steps are linear: grey is computed last, when 16 of S rows are left.
        rows_done = cosines @ images.flatten(2).float()  # [n, 16, S * 3]
        grey = rows_done.unflatten(2, (size, 3)) @ luma  # [n, 16, S]
        waves = (grey @ cosines.T).mT.flatten(1).numpy()  # [n, 256], vertical frequencies run fastest
        # The pixels' hash decides the signs of faint coefficients, so that pictures without structure differ.
        bits = np.where(abs(waves) < FAINT, np.unpackbits(digests[part], axis=1), waves > 0)
        bits[:, 0] = 0
        perceptual[part] = np.packbits(bits.astype(np.uint8), axis=1)
    return Marks(digests[:, :8].copy().view(np.int64)[:, 0], perceptual)


def find_seen(test: Marks, seen: Marks, *, near: int = NEAR, pairs: float = np.inf) -> Seen:
    """Compare every test image, and its mirror image, with every image seen. Beyond `pairs`, only copies are found."""
    nearest, distance = np.full(len(test), -1, np.int64), np.full(len(test), -1, np.int64)
    if not len(seen):
        return Seen(distance >= 0, distance >= 0, nearest, distance)
    for start in range(0, len(test), ROWS) if len(test) * len(seen) <= pairs else ():
        rows = range(start, min(start + ROWS, len(test)))
        nearest[rows], distance[rows] = _closest(test, rows, seen, near)
    order = np.argsort(seen.exact, kind="stable")
    place = np.searchsorted(seen.exact, test.exact, sorter=order)
    copy = order[np.minimum(place, len(seen) - 1)]  # [M], the first row of the same hash if there is one
    exact = seen.exact[copy] == test.exact
    nearest, distance = np.where(exact, copy, nearest), np.where(exact, 0, distance)
    return Seen(exact, distance >= 0, nearest, distance)


def find_earlier(
    marks: Marks, *, workers: int, talk: Talk, near: int = ALIKE, pairs: float = MOST_PAIRS
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Find for each image the most similar earlier one, or mirror image of one.

    Args:
        near: largest number of differing bits, of 255.
        pairs: about the largest number of pairs to compare.

    Returns:
        int64 [N], the row of that earlier image, and int64 [N], the number of differing bits, both -1 where none is
        near; and the number of preceding images that each was compared with: N, unless that is too many pairs.
    """
    num_images = len(marks)
    window = num_images if num_images**2 / 2 <= pairs else int(pairs / num_images)
    nearest, distance = np.empty(num_images, np.int64), np.empty(num_images, np.int64)

    def compare(rows: range, _: threading.Event) -> dict[int, str]:
        nearest[rows], distance[rows] = _closest(marks, rows, marks, near, window)
        return {}

    in_chunks(num_images, compare, what="comparing images", workers=workers, talk=talk, chunk=ROWS)
    return nearest, distance, window


def _closest(
    queries: Marks, rows: range, keys: Marks, near: int, window: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the nearest key of each query of `rows`, or of its mirror image, and the differing bits: int64 [m] each,
    -1 where these are more than `near`.

    window: the queries are the keys, and each is compared with this number of preceding ones.
    """
    block = queries.perceptual[rows].view(np.uint64)[:, :, None]  # [m, 4, 1]: two words even, two odd
    words, start = keys.perceptual.view(np.uint64), rows.start
    end = len(keys) if window is None else rows.stop
    nearest, distance = np.full(len(block), -1, np.int64), np.full(len(block), near + 1, np.int64)
    for first in range(0 if window is None else max(0, start - window), end, KEYS):
        part = np.ascontiguousarray(words[first : min(first + KEYS, end)].T)  # [4, n]
        even = _differing(block[:, :2], part[:2])  # [m, n]
        some = np.flatnonzero(even.min(axis=1) <= near)  # usually few; only these compare odd frequencies
        odd = _differing(block[some, 2:], part[2:])
        bits = even[some] + np.minimum(odd, SIDE * SIDE // 2 - odd)
        if window is not None:
            apart = start + some[:, None] - np.arange(first, first + part.shape[1])
            bits[(apart <= 0) | (apart > window)] = 255
        best = bits.argmin(axis=1)
        count = bits[np.arange(len(some)), best]
        closer = count < distance[some]
        nearest[some[closer]], distance[some[closer]] = best[closer] + first, count[closer]
    return nearest, np.where(distance <= near, distance, -1)


def _differing(queries: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the differing bits of [m, 2, 1] and [2, n]: [m, n]."""
    count: NDArray[np.uint8] = np.bitwise_count(queries[:, 0] ^ keys[0])
    count += np.bitwise_count(queries[:, 1] ^ keys[1])
    return count


def joined(parts: Iterable[Marks]) -> Marks:
    """Join the marks of one or more `parts` in order, and keep the first of images with the same pixels."""
    exact, perceptual = zip(*((part.exact, part.perceptual) for part in parts), strict=True)
    whole = Marks(np.concatenate(exact), np.concatenate(perceptual))
    return whole[np.sort(np.unique(whole.exact, return_index=True)[1])]


def save_marks(path: Path, marks: Marks) -> None:
    tensors = {"exact": torch.from_numpy(marks.exact), "perceptual": torch.from_numpy(marks.perceptual)}
    save_weights(path, tensors, {"marks_version": VERSION})


def load_marks(path: Path) -> Marks:
    """Read what `save_marks` wrote. Raise WeightsError if the file is missing, damaged or of another version."""
    tensors, header = load_weights(path)
    num_images = tensors["exact"].numel() if "exact" in tensors else 0
    expected = {"exact": (torch.int64, (num_images,)), "perceptual": (torch.uint8, (num_images, NUM_BYTES))}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if header.get("marks_version") != VERSION or found != expected:
        raise WeightsError(
            f"{path} is not in a format that this version reads: remove it (then copies go unnoticed), or pretrain "
            "again"
        )
    return Marks(tensors["exact"].numpy(), tensors["perceptual"].numpy())
