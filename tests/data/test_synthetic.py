"""The drawn image set: the same from run to run, and a class that only its shape gives away."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from selfie_cli.data.synthetic import CHUNK, CLASSES, draw

Drawn = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(2000, seed=0)


def test_ten_distinct_classes_in_order() -> None:
    assert len(set(CLASSES)) == 10
    assert list(CLASSES) == sorted(CLASSES)


@pytest.mark.parametrize("size", [32, 64])
def test_shapes_and_types(size: int) -> None:
    images, labels = draw(25, seed=0, size=size)
    assert images.shape == (25, size, size, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (25,)
    assert labels.dtype == np.int64
    assert images.flags.c_contiguous


def test_no_images() -> None:
    images, labels = draw(0, seed=0)
    assert images.shape == (0, 32, 32, 3)
    assert labels.shape == (0,)


def test_same_seed_same_bytes_and_another_seed_other_images() -> None:
    def digest(seed: int) -> str:
        return hashlib.sha256(draw(150, seed)[0].tobytes()).hexdigest()

    assert digest(3) == digest(3)
    assert digest(3) != digest(4)


@pytest.mark.parametrize("num_images", [1, 10, CHUNK, CHUNK + 7])
def test_an_image_does_not_depend_on_how_many_are_drawn(num_images: int) -> None:
    images, labels = draw(num_images, seed=5)
    more_images, more_labels = draw(2 * CHUNK + 30, seed=5)
    np.testing.assert_array_equal(images, more_images[:num_images])
    np.testing.assert_array_equal(labels, more_labels[:num_images])


def test_no_image_comes_twice() -> None:
    images, _ = draw(3 * CHUNK, seed=0)
    assert len({image.tobytes() for image in images}) == len(images)


def test_classes_are_balanced_and_take_turns() -> None:
    _, labels = draw(250, seed=0)
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.bincount(labels).tolist() == [25] * 10


def test_another_size_shows_the_same_scene() -> None:
    small, _ = draw(50, seed=1, size=32)
    large, _ = draw(50, seed=1, size=64)
    halved = large.reshape(50, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, halved, strict=True)]
    assert np.median(correlation) > 0.9


def test_images_use_the_range_and_no_object_is_lost(drawn: Drawn) -> None:
    """Brightness is neither clipped away nor squeezed, and the middle, where objects are, outshines the border."""
    images, labels = drawn
    values = images.astype(np.float64)
    assert 80 < values.mean() < 150
    assert 40 < values.std() < 80
    assert ((images == 0) | (images == 255)).mean() < 0.1
    middle = values[:, 10:22, 10:22].mean(axis=(1, 2, 3))
    border = np.concatenate([values[:, :3], values[:, -3:]], axis=1).mean(axis=(1, 2, 3))
    for label in range(10):
        assert (middle - border)[labels == label].mean() > 15


def test_colour_alone_does_not_tell_the_class(drawn: Drawn) -> None:
    """Nearest class mean of the mean colour: chance is 0.10."""
    images, labels = drawn
    colour = images.mean(axis=(1, 2))  # [N, 3]
    means = np.stack([colour[:1000][labels[:1000] == label].mean(axis=0) for label in range(10)])
    nearest = np.linalg.norm(colour[1000:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == labels[1000:]).mean() < 0.18


def test_average_shapes_come_back(drawn: Drawn) -> None:
    """The mean picture of most classes is nearest to that of other draws of it: there is something to learn."""
    images, labels = drawn
    grey = images.mean(axis=3).reshape(len(images), -1)
    grey -= grey.mean(axis=1, keepdims=True)
    first, second = (
        np.stack([half[group == label].mean(axis=0) for label in range(10)])
        for half, group in ((grey[:1000], labels[:1000]), (grey[1000:], labels[1000:]))
    )
    distances = np.linalg.norm(first[:, None] - second, axis=2)
    assert (distances.argmin(axis=1) == np.arange(10)).sum() >= 8


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        draw(10, seed=-1)
