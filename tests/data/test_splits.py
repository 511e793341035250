import hashlib
import itertools

import numpy as np

from selfie_cli.data.splits import fraction_indices, hash_test_part, hold_out

LABELS = np.repeat([0, 1, 2, 7], [100, 37, 3, 1])
np.random.default_rng(0).shuffle(LABELS)


def counts(labels: np.ndarray) -> dict[int, int]:
    return {int(label): int((labels == label).sum()) for label in np.unique(labels)}


def test_a_fraction_is_stratified_and_smaller_ones_are_nested_in_larger_ones():
    chosen = fraction_indices(LABELS, 0.1, 0)
    assert counts(LABELS[chosen]) == {0: 10, 1: 4, 2: 1, 7: 1}  # at least one of each class
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(fraction_indices(LABELS, 1, 0), np.arange(len(LABELS)))
    for seed in range(3):
        parts = [set(fraction_indices(LABELS, fraction, seed).tolist()) for fraction in (0.01, 0.05, 0.2, 0.5, 1)]
        assert all(small <= large for small, large in itertools.pairwise(parts))
    assert set(fraction_indices(LABELS, 0.2, 0)) != set(fraction_indices(LABELS, 0.2, 1))


def test_the_draw_is_frozen():
    labels = np.arange(40) % 2
    assert fraction_indices(labels, 0.2, 7).tolist() == [3, 5, 6, 7, 12, 22, 23, 24]
    assert hold_out(labels, 0.2, 7)[1].tolist() == [5, 17, 19, 20, 28, 36, 37, 38]


def test_holding_out_parts_the_labels():
    kept, held = hold_out(LABELS, 0.25, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(LABELS)))
    assert counts(LABELS[held]) == {0: 25, 1: 9, 2: 1}  # the only image of class 7 is kept
    assert counts(LABELS[hold_out(LABELS, 0.99, 3)[0]]) == {0: 1, 1: 1, 2: 1, 7: 1}


def test_the_hash_part_depends_on_names_alone():
    names = [f"class{label}/{index}\udcff\n.jpg" for index, label in enumerate(LABELS)]
    test = hash_test_part(names, LABELS, np.arange(len(names)))
    assert counts(LABELS[test]) == {0: 20, 1: 7, 2: 1}
    order = np.random.default_rng(1).permutation(len(LABELS))
    again = hash_test_part([names[index] for index in order], LABELS[order], np.arange(len(names)))
    np.testing.assert_array_equal(again, test[order])
    rows = np.flatnonzero(LABELS == 2)
    digests = [hashlib.sha256(names[row].encode(errors="surrogateescape")).digest() for row in rows]
    assert test[rows[digests.index(min(digests))]]


def test_copies_stay_on_one_side() -> None:
    """Every image twice, some three times, and one class that is copies of one image."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        same = np.sort(generator.integers(0, 20, 60))
        first = np.searchsorted(same, same)
        labels = np.where(same < 4, 0, 1)
        labels[same == same[-1]] = 2
        test = hash_test_part([f"{index}.jpg" for index in range(60)], labels, first)
        assert not set(first[test]) & set(first[~test])
        assert {0, 1} <= set(labels[test].tolist())
        assert not test[labels == 2].any()
        fifth = 0.2 * (labels == 1).sum()
        assert fifth - 1 <= test[labels == 1].sum() <= fifth + 10


def test_a_copy_in_another_class_takes_no_image_to_both_sides() -> None:
    same = np.arange(40) // 2 * 2  # each image is in both classes
    test = hash_test_part([f"{index}" for index in range(40)], np.arange(40) % 2, same)
    assert not set(same[test]) & set(same[~test])
    assert test.any()
