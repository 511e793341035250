"""Fractions of the labels, and held-out parts: the same on every machine and with every version of numpy."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
"""Labels, positions or sizes of images: int64 [N]."""
FRACTION, HELD_OUT = 0, 1  # two independent draws from one seed
HELD_OUT_SHARE = 0.2  # of the training labels, to choose settings on


def permutation(count: int, *key: int) -> Integers:
    """0 .. `count` - 1 in a random order that depends on `key` alone: int64 [count].

    numpy freezes the stream of a bit generator, but not the result of Generator.permutation. So random words are
    sorted, each with its position in its lowest bits.
    """
    lowest = np.uint64((1 << count.bit_length()) - 1)
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    words = words & ~lowest | np.arange(count, dtype=np.uint64)
    words.sort()
    return (words & lowest).astype(np.int64)


def _shuffled_classes(labels: Integers, seed: int, draw: int) -> Iterator[Integers]:
    """The positions of the members of each class, in random order."""
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        yield members[permutation(len(members), seed, int(label), draw)]


def _rounded(share: float, count: int) -> int:
    return int(share * count + 0.5)


def fraction_indices(labels: Integers, fraction: float, seed: int) -> Integers:
    """Choose a stratified part of `labels`, int64 [N], none negative: round(fraction * n) of each class, at least one.

    Returns sorted positions, int64 [M]. With one seed, a smaller fraction is a subset of a larger one.
    """
    classes = _shuffled_classes(labels, seed, FRACTION)
    parts = [members[: max(1, _rounded(fraction, len(members)))] for members in classes]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def hold_out(labels: Integers, share: float, seed: int) -> tuple[Integers, Integers]:
    """Split `labels`, int64 [N] and not negative, into sorted positions (kept, held), which together are 0 .. N-1.

    round(share * n) of each class is held; at least one stays on each side, but the only image of a class is kept.
    """
    held = np.zeros(len(labels), bool)
    for members in _shuffled_classes(labels, seed, HELD_OUT):
        if len(members) > 1:
            held[members[: min(max(1, _rounded(share, len(members))), len(members) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def fold_numbers(labels: Integers, num_folds: int, seed: int) -> Integers:
    """The fold of each of `labels`, int64 [N] and not negative: 0 .. `num_folds` - 1, stratified.

    The only image of a class has no fold and gets -1.
    """
    numbers = np.full(len(labels), -1)
    for members in _shuffled_classes(labels, seed, HELD_OUT):
        if len(members) > 1:
            numbers[members] = np.arange(len(members)) * num_folds // len(members)
    return numbers


def hash_test_part(names: Sequence[str], labels: Integers, group: Integers) -> NDArray[np.bool_]:
    """Choose a test part that depends only on names and copies: of each class, the fifth with the smallest SHA-256.

    Copies of one image stay on one side. A class of two or more different images has at least one in the test part, a
    class of one has none.

    Args:
        names: one per image, relative to the data set's folder, with forward slashes.
        labels: int64 [N].
        group: int64 [N], for each image the first one with the same contents.

    Returns:
        bool [N], True for test.
    """
    lowest: dict[int, bytes] = {}  # of each group
    for each, name in zip(group.tolist(), names, strict=True):
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        lowest[each] = min(lowest.get(each, digest), digest)
    digests = [lowest[each] for each in group.tolist()]
    test = np.zeros(len(names), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ordered = np.array(sorted(members.tolist(), key=lambda index: (digests[index], index)))
        sizes = np.diff(np.flatnonzero(np.diff(group[ordered], prepend=-1, append=-1))).tolist()  # of groups of copies
        left = max(_rounded(HELD_OUT_SHARE, len(members)), min(sizes)) if len(sizes) > 1 else 0
        taken = []
        for size in sizes:
            taken.append(size <= left)
            left -= size * taken[-1]
        test[ordered[np.repeat(taken, sizes)]] = True
    test[np.isin(group, group[~test])] = False  # copies in two classes
    return test
