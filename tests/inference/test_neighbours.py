"""Neighbours and groups against what all products with all give."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from selfie_cli.inference.neighbours import Nearest, near_groups, unit


def test_nearest_are_those_of_all_products() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(500, 16)).astype(np.float32), rng.normal(size=(7, 16)).astype(np.float32)
    vectors[[3, 490]] = queries[0] * 1e20  # equal cosines, and squares that overflow
    nearest = Nearest(queries, 5)
    for start, end in ((0, 3), (3, 200), (200, 500)):
        nearest.add(vectors[start:end])
    scaled = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines = scaled @ (queries / np.linalg.norm(queries, axis=1, keepdims=True)).T
    expected = np.argsort(-cosines.round(6), axis=0, kind="stable")[:5].T
    assert nearest.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(nearest.cosines, np.take_along_axis(cosines.T, expected, 1), atol=1e-6)
    few = Nearest(queries[:1], 9 * 10**18)
    few.add(vectors[:2])
    few.add(vectors[2:4])
    assert few.rows[0, 0] == 3
    assert sorted(few.rows[0].tolist()) == [0, 1, 2, 3]


def test_groups_are_connected_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, against scipy's of all pairs at once."""
    monkeypatch.setattr("selfie_cli.inference.neighbours.BLOCK", 1000)
    rng = np.random.default_rng(1)
    vectors = unit(rng.normal(size=(300, 4)).astype(np.float32))
    near = vectors @ vectors.T >= 0.99
    same = np.arange(300)
    same[250] = 3  # the same contents, but far apart
    near[250, 3] = near[3, 250] = True
    number, group_of = connected_components(near)
    expected = [np.flatnonzero(group_of == group).tolist() for group in range(number)]
    expected = [group for group in expected if len(group) > 1]
    assert max(map(len, expected)) > 2
    groups = near_groups(vectors, same, 0.99, lambda done: None)
    assert [group.tolist() for group in groups] == sorted(expected, key=lambda group: (-len(group), group[0]))
