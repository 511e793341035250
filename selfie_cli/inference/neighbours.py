"""Exact nearest neighbours and groups of near-duplicates, by cosine.

N vectors    M queries    D features    k neighbours
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 2**24
"""Number of cosines that are held in memory together, 64 MB."""


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [N, D] scaled to length one, first by their largest number, as squares may overflow; none may be zero."""
    scaled: NDArray[np.float32] = vectors / np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


class Nearest:
    """The k vectors of highest cosine to each query among all that were added, or all of them if they are fewer.

    cosines: float32 [M, k], descending. rows: int64 [M, k], counted over all that was added; of equal cosines the lower
    row comes first.
    """

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        self.queries = torch.from_numpy(unit(queries))  # [M, D]
        self.k = k
        self.cosines = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.int64)
        self.num_seen = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Search vectors [n, D] of any length but zero."""
        keys = torch.from_numpy(unit(vectors)).T
        rows = torch.arange(self.num_seen, self.num_seen + len(vectors))
        self.num_seen += len(vectors)
        k = min(self.k, self.num_seen)
        step = max(1, BLOCK // len(vectors))
        parts = []
        for first in range(0, len(self.queries), step):
            part = slice(first, first + step)
            cosines = torch.cat([self.cosines[part], (self.queries[part] @ keys).clamp(-1, 1)], dim=1)  # [m, k + n]
            places = cosines.topk(k, dim=1).indices.sort(dim=1).values  # so that lower rows come first
            cosines, order = cosines.gather(1, places).sort(dim=1, descending=True, stable=True)
            seen = torch.cat([self.rows[part], rows.expand(len(cosines), -1)], dim=1)
            parts.append((cosines, seen.gather(1, places.gather(1, order))))
        self.cosines, self.rows = (torch.cat(each) for each in zip(*parts, strict=True))  # [M, k]


class Groups:
    """Connected components of N rows, by a forest whose roots are the lowest rows."""

    def __init__(self, num_rows: int) -> None:
        self.parent = np.arange(num_rows, dtype=np.int64)

    def join(self, rows: NDArray[np.int64]) -> None:
        """Merge the groups that `rows` are in."""
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
