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
    """Scale vectors [N, D], none zero, to length one; first by their largest number, as squares may overflow."""
    scaled: NDArray[np.float32] = vectors / np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


class Nearest:
    """The k added vectors of highest cosine to each query, or all if fewer were added.

    cosines: float32 [M, k], descending. rows: int64 [M, k], positions among all added vectors; of equal cosines the
    lower row comes first.
    """

    def __init__(self, queries: NDArray[np.float32], k: int) -> None:
        self.queries = torch.from_numpy(unit(queries))  # [M, D]
        self.k = k
        self.cosines = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.int64)
        self.num_seen = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors [n, D] to the search; none may be zero."""
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


def near_groups(
    vectors: NDArray[np.float32], same: NDArray[np.int64], threshold: float, advance: Callable[[int], None]
) -> list[NDArray[np.int64]]:
    """Group rows that are joined, directly or through other rows. Takes N (N - 1) / 2 products.

    Args:
        vectors: [N, D], of length one; rows are joined if their cosine is `threshold` or more.
        same: int64 [N], the first of the rows that each row is joined with in any case; it may be the row itself.

    Returns:
        The rows of each group of two or more, ascending; the largest group first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    every, num_rows = torch.from_numpy(vectors), len(vectors)
    first = 0
    while first < num_rows:
        end = min(num_rows, first + max(1, BLOCK // 8 // (num_rows - first)))  # each pair may be an edge of the graph
        near = every[first:end] @ every[first:].T >= threshold  # [n, N - first]
        near &= torch.from_numpy(same[first:end, None] != same[first:])  # pairs joined already would take long
        rows, others = near.triu(1).nonzero().numpy().T + first
        if len(rows):
            ends = np.append(np.arange(num_rows), rows), np.append(same, others)
            graph = coo_array((np.ones(len(ends[0]), np.bool_), ends), (num_rows, num_rows))
            group = connected_components(graph, directed=False)[1]
            same = np.unique(group, return_index=True)[1][group]  # the first row of each group
        first = end
        advance(first)
    order = np.argsort(same, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(same[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
