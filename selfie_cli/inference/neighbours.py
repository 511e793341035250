"""Exact nearest neighbours and groups of near-duplicates, by cosine, a block of the products at a time.

N vectors    M queries    D features    k neighbours
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 2**24
"""Cosines that are held together, 64 MB."""


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [N, D] at length one; none may be zero. Divided by their largest number first: squares may overflow."""
    scaled: NDArray[np.float32] = vectors / np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


class Nearest:
    """The k vectors of highest cosine to each query, among all that `add` was given; all of them where they are fewer.

    cosines: float32 [M, k], descending. rows: int64 [M, k], counted over all that was added; of equal cosines the lower
    row comes first.
    """

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        self.queries = unit(queries)
        self.k = k
        self.cosines = np.empty((len(queries), 0), np.float32)
        self.rows = np.empty((len(queries), 0), np.int64)
        self.num_seen = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """[n, D], of any length but zero."""
        keys = torch.from_numpy(unit(vectors)).T
        more = ((0, 0), (0, min(self.k, self.num_seen + len(vectors)) - self.rows.shape[1]))
        self.cosines = np.pad(self.cosines, more, constant_values=-np.inf)
        self.rows = np.pad(self.rows, more, constant_values=-1)
        k = min(self.k, len(vectors))
        step = max(1, BLOCK // len(vectors))
        for first in range(0, len(self.queries), step):
            part = slice(first, first + step)
            found, place = (torch.from_numpy(self.queries[part]) @ keys).topk(k, dim=1)  # [m, n] -> [m, k]
            cosines = np.concatenate([self.cosines[part], found.numpy().clip(-1, 1)], axis=1)
            rows = np.concatenate([self.rows[part], place.numpy() + self.num_seen], axis=1)
            best = np.lexsort((rows, -cosines))[:, : self.rows.shape[1]]
            self.cosines[part] = np.take_along_axis(cosines, best, axis=1)
            self.rows[part] = np.take_along_axis(rows, best, axis=1)
        self.num_seen += len(vectors)


class Groups:
    """Connected components of N rows, by a forest whose roots are the lowest rows."""

    def __init__(self, num_rows: int) -> None:
        self.parent = np.arange(num_rows, dtype=np.int64)

    def join(self, rows: NDArray[np.int64]) -> None:
        """Make one group of the groups that `rows` are in."""
        roots = self.parent[rows]
        while (above := self.parent[roots]).tolist() != roots.tolist():
            roots = above
        self.parent[roots] = self.parent[rows] = roots.min()

    def found(self) -> list[NDArray[np.int64]]:
        """The rows of each group of two or more, ascending; the largest group first."""
        while not np.array_equal(above := self.parent[self.parent], self.parent):
            self.parent = above
        order = np.argsort(self.parent, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.parent[order])) + 1)
        return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def join_near(groups: Groups, vectors: NDArray[np.float32], threshold: float, advance: Callable[[int], None]) -> None:
    """Join rows of `vectors`, [N, D] at length one, whose cosine is `threshold` or more. N (N - 1) / 2 products."""
    every = torch.from_numpy(vectors)
    first = 0
    while first < len(vectors):
        end = min(len(vectors), first + max(1, BLOCK // (len(vectors) - first)))
        near = every[first:end] @ every[first:].T >= threshold  # [n, N - first]
        near = near.triu(1)
        for row in near.any(dim=1).nonzero()[:, 0].tolist():
            groups.join(np.append(near[row].nonzero()[:, 0].numpy() + first, first + row))
        first = end
        advance(first)
