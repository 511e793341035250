"""The drawn images: the same from run to run, and a class that only its shape gives away."""

import numpy as np
import pytest
from numpy.typing import NDArray

from selfie_cli.data.synthetic import CHUNK, draw


def test_ten_classes_take_turns() -> None:
    images, labels = draw(25, seed=0, size=64)
    assert (images.shape, images.dtype, labels.dtype) == ((25, 64, 64, 3), np.uint8, np.int64)
    assert labels.tolist() == [index % 10 for index in range(25)]
    with pytest.raises(ValueError, match="non-negative"):
        draw(10, seed=-1)


@pytest.mark.parametrize("num_images", [1, CHUNK, CHUNK + 7])
def test_an_image_depends_on_the_seed_and_its_index_alone(num_images: int) -> None:
    more, _ = draw(2 * CHUNK + 30, seed=5)
    np.testing.assert_array_equal(draw(num_images, seed=5)[0], more[:num_images])
    assert not np.array_equal(draw(num_images, seed=6)[0], more[:num_images])


def test_shape_tells_the_class_and_colour_does_not() -> None:
    images, labels = draw(2000, seed=0)
    first, second = slice(0, 1000), slice(1000, 2000)

    def means(values: NDArray[np.float64], part: slice) -> NDArray[np.float64]:
        return np.stack([values[part][labels[part] == label].mean(axis=0) for label in range(10)])

    colour = images.mean(axis=(1, 2))  # [N, 3]
    nearest = np.linalg.norm(colour[second, None] - means(colour, first), axis=2).argmin(axis=1)
    assert (nearest == labels[second]).mean() < 0.18  # chance is 0.10
    grey = images.mean(axis=3).reshape(len(images), -1)
    grey -= grey.mean(axis=1, keepdims=True)
    distances = np.linalg.norm(means(grey, first)[:, None] - means(grey, second), axis=2)
    assert (distances.argmin(axis=1) == np.arange(10)).sum() >= 8  # mean pictures come back in other draws
