"""A small synthetic labelled image set: ten kinds of object, posed, textured and lit, among clutter.

Only shape defines the class: how an object's three parts, each a signed distance, are arranged. Colour, texture, light,
place, size, tilt, clutter and occlusion are drawn independently of the class. So a network has to learn structure, and
unlabelled pictures have much of it to teach.

Legend: n images per chunk, S pixels per side. The frame of a picture runs from -1 to 1, x to the right and y up. An
object's own frame does the same, and is turned, sheared and scaled into the picture's. Distances are negative inside. A
field is float32 `[n, S, S]`, a number per image `[n, 1, 1]`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Number = Field | float
Parts = tuple[Field, Field, Field]

CHUNK = 100  # always drawn whole, so that an image depends on the seed and its own index alone; a multiple of ten
NUM_BEHIND = 4  # boxes, discs and bars behind the object; one more may stand in front


# Signed distances. Some are inexact beyond corners, which does not show in edges one pixel wide.


def _disc(x: Field, y: Field, radius: Number) -> Field:
    return np.sqrt(x * x + y * y) - radius


def _box(x: Field, y: Field, width: Number, height: Number, corner: Number = 0.05) -> Field:
    """A rectangle of half sides `width` and `height` around the origin, with corners of radius `corner`."""
    across, along = abs(x) - (width - corner), abs(y) - (height - corner)
    outside: Field = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along, 0) ** 2)
    return outside + np.minimum(np.maximum(across, along), 0) - corner


def _trapezoid(x: Field, y: Field, low: Number, high: Number, bottom: Number, top: Number) -> Field:
    """A trapezoid from height `low`, with half width `bottom`, to `high`, with `top`; a zero makes a triangle."""
    slope = (top - bottom) / (high - low)
    side = (abs(x) - bottom - slope * (y - low)) / np.sqrt(1 + slope * slope)
    distance: Field = np.maximum(np.maximum(low - y, y - high), side)
    return distance


def _cut(kept: Field, *removed: Field) -> Field:
    for distance in removed:
        kept = np.maximum(kept, -distance)
    return kept


# The objects. Each returns three parts, in the order of painting, from coordinates in its own frame and four numbers
# per image, uniform in -1..1, that vary its proportions.


def _boat(x: Field, y: Field, v: Field) -> Parts:
    sail = _trapezoid(x - 0.05, y, -0.1, 0.85 + 0.1 * v[0], 0.65 + 0.1 * v[1], 0.0)
    mast = _box(x - 0.05, y - 0.2, 0.06, 0.75 + 0.1 * v[0])
    hull = _trapezoid(x, y, -0.75 + 0.1 * v[2], -0.25, 0.5 + 0.1 * v[3], 0.9)
    return mast, _cut(sail, _box(x - 0.05, y, 0.12, 2.0)), hull


def _car(x: Field, y: Field, v: Field) -> Parts:
    cabin = _trapezoid(x + 0.15 * v[0], y, 0.0, 0.5 + 0.1 * v[1], 0.65, 0.4 + 0.1 * v[2])
    body = _box(x, y + 0.15, 0.95, 0.28 + 0.06 * v[3], 0.15)
    wheels = _disc(abs(x) - 0.52, y + 0.42, 0.25 + 0.04 * v[2])
    return cabin, body, wheels


def _cat(x: Field, y: Field, v: Field) -> Parts:
    ears = _trapezoid(abs(x) - 0.45 - 0.05 * v[0], y, 0.1, 0.9 + 0.1 * v[1], 0.35, 0.0)
    head = _disc(x * (0.9 + 0.1 * v[2]), y + 0.1, 0.7)
    eyes = _disc(abs(x) - 0.28 - 0.04 * v[3], y - 0.05, 0.14)
    mouth = _trapezoid(x, -y, 0.15, 0.4, 0.16, 0.0)
    return ears, head, np.minimum(eyes, mouth)


def _fish(x: Field, y: Field, v: Field) -> Parts:
    tail = _trapezoid(y, x, 0.3, 0.95, 0.0, 0.5 + 0.1 * v[0])
    fin = _trapezoid(x - 0.1, abs(y), 0.2, 0.62 + 0.1 * v[1], 0.35, 0.1)
    body = _disc(x + 0.25, y * (1.6 + 0.2 * v[2]), 0.7)
    eye = _disc(x + 0.62 + 0.04 * v[3], y - 0.08, 0.12)
    return np.minimum(tail, fin), body, eye


def _house(x: Field, y: Field, v: Field) -> Parts:
    walls = _box(x, y + 0.4, 0.65 + 0.06 * v[0], 0.5)
    roof = _trapezoid(x, y, 0.05, 0.75 + 0.15 * v[1], 0.9, 0.15 + 0.15 * v[2])
    door = _box(x - 0.28, y + 0.58, 0.16, 0.3)
    window = _box(x + 0.28, y + 0.35 + 0.05 * v[3], 0.18, 0.16)
    return walls, roof, np.minimum(door, window)


def _key(x: Field, y: Field, v: Field) -> Parts:
    bow = _disc(x, y - 0.5, 0.45 + 0.05 * v[0])
    hole = _disc(x, y - 0.55, 0.2 + 0.05 * v[1])
    shaft = _box(x, y + 0.4, 0.13 + 0.02 * v[1], 0.58)
    teeth = np.minimum(_box(x - 0.25, y + 0.82, 0.22 + 0.04 * v[2], 0.12), _box(x - 0.22, y + 0.45, 0.2, 0.11))
    return shaft, _cut(bow, hole), teeth


def _mug(x: Field, y: Field, v: Field) -> Parts:
    walls = _box(x + 0.2, y, 0.55 + 0.06 * v[0], 0.72 + 0.08 * v[1], 0.12)
    handle = abs(_disc(x - 0.4, y, 0.38 + 0.05 * v[2])) - 0.1
    band = _box(x + 0.2, y - 0.45 * v[3], 0.55 + 0.06 * v[0], 0.16)
    return handle, walls, band


def _mushroom(x: Field, y: Field, v: Field) -> Parts:
    stem = _trapezoid(x, y, -0.85, 0.2, 0.34 + 0.06 * v[0], 0.2 + 0.05 * v[1])
    cap = _cut(_disc(x, y * (1.15 + 0.15 * v[2]) + 0.05, 0.85), _box(x, y + 1.05, 2.0, 1.0))
    spots = _disc(abs(x) - 0.42, y - 0.25, 0.15 + 0.03 * v[3])
    return stem, cap, np.minimum(spots, _disc(x, y - 0.5, 0.16))


def _tree(x: Field, y: Field, v: Field) -> Parts:
    trunk = _box(x, y + 0.7, 0.15 + 0.04 * v[0], 0.28)
    lower = _trapezoid(x, y, -0.55, 0.35, 0.75 + 0.1 * v[1], 0.1)
    upper = _trapezoid(x, y, 0.0, 0.9 + 0.08 * v[2], 0.55 + 0.06 * v[3], 0.0)
    return trunk, lower, upper


def _umbrella(x: Field, y: Field, v: Field) -> Parts:
    shaft = _box(x, y + 0.05, 0.06, 0.7)
    hook = _cut(abs(_disc(x - 0.2, y + 0.72, 0.2)) - 0.07, _box(x, y - 0.28, 2.0, 1.0))
    canopy = _disc(x, y * (1.0 + 0.15 * v[0]) + 0.05, 0.9)
    hem = _disc(abs(abs(x) - 0.45) - 0.225, y + 0.05, 0.23 + 0.02 * v[1])
    return np.minimum(shaft, hook), _cut(canopy, _box(x, y + 1.05, 2.0, 1.0), hem), _disc(x, y - 0.9, 0.1)


_OBJECTS = (_boat, _car, _cat, _fish, _house, _key, _mug, _mushroom, _tree, _umbrella)
CLASSES: tuple[str, ...] = tuple(shape.__name__.removeprefix("_") for shape in _OBJECTS)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Field:
    """Random numbers for each image, in a shape that broadcasts to fields: `[*shape, n, 1, 1]`."""
    return rng.uniform(low, high, (*shape, CHUNK, 1, 1)).astype(np.float32)


def _turned(x: Field, y: Field, angle: Field, zoom: Number = 1.0) -> tuple[Field, Field]:
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _cover(distance: Field, softness: Number) -> Field:
    """The share of a pixel that lies inside, in 0..1: an edge of width `softness`, in the distance's own units."""
    cover: Field = np.clip(0.5 - distance / softness, 0, 1)
    return cover


def _noise(rng: np.random.Generator, size: int) -> Field:
    """Value noise in about -1..1 `[n, S, S]`: random lattices of 2 to 16 cells per side, the finer the fainter."""
    total = np.zeros((CHUNK, size, size), np.float32)
    for cells in (2, 4, 8, 16):
        lattice = rng.uniform(-1, 1, (CHUNK, cells + 1, cells + 1)).astype(np.float32)
        place = (np.arange(size, dtype=np.float32) + 0.5) * (cells / size)
        weight = np.maximum(0, 1 - abs(place[:, None] - np.arange(cells + 1, dtype=np.float32)))  # [S, cells + 1]
        total += (2 / cells) ** 0.7 * (weight @ lattice @ weight.T)
    return total


def _pattern(rng: np.random.Generator, x: Field, y: Field, noise: Field) -> Field:
    """Weights that blend two colours, in 0..1 `[n, S, S]`: stripes, checks, a gradient or noise, drawn per image."""
    stripes, checks, gradient, rough = np.eye(4, dtype=np.float32)[rng.integers(0, 4, CHUNK)].T[..., None, None]
    pitch = (stripes + checks) * _uniform(rng, 6, 14) + 1.2 * gradient
    along, across = _turned(x, y, _uniform(rng, 0, np.pi), pitch)
    waves = (1 - rough) * np.sin(along + _uniform(rng, 0, np.pi)) * np.cos(checks * across)
    pattern: Field = np.clip(0.5 + waves + (0.15 + 0.55 * rough) * noise, 0, 1)
    return pattern


def _paint(picture: Field, colours: Field, pattern: Field, cover: Number) -> None:
    """Paint two `colours` [2, 3, n, 1, 1], blended by `pattern`, on `picture` [3, n, S, S] with opacity `cover`."""
    first, second = colours
    for channel, start, step in zip(picture, first, second - first, strict=True):
        channel += cover * (start + step * pattern - channel)


def _clutter(rng: np.random.Generator, x: Field, y: Field, share: float) -> Field:
    """The cover of a box, a disc or a bar at a random place, in this `share` of the images."""
    x, y = _turned(x - _uniform(rng, -0.8, 0.8), y - _uniform(rng, -0.8, 0.8), _uniform(rng, 0, np.pi))
    width, height = _uniform(rng, 0.1, 0.45), _uniform(rng, 0.08, 0.3)
    corner = np.where(_uniform(rng, 0, 1) < 0.4, np.minimum(width, height), np.float32(0.03))
    return _cover(_box(x, y, width, height, corner), 2 / x.shape[-1]) * (_uniform(rng, 0, 1) < share)


def _draw_chunk(seed: int, chunk: int, size: int) -> NDArray[np.uint8]:
    """Draw images chunk * CHUNK and on, `[n, S, S, 3]`; row i has class i % 10. The order of draws defines the set."""
    rng = np.random.default_rng([seed, chunk])
    pixel = 2 / size
    x: Field = (np.arange(size, dtype=np.float32) + 0.5) * pixel - 1
    y: Field = -x[:, None]  # a row and a column, which broadcast to fields

    picture: Field = np.zeros((3, CHUNK, size, size), np.float32)
    noise = _noise(rng, size)
    ground, paint = _uniform(rng, 0.15, 0.52, 3), _uniform(rng, 0.45, 0.9, 3)  # mostly darker behind
    _paint(picture, ground + _uniform(rng, -0.18, 0.18, 2, 3), _pattern(rng, x, y, noise), 1.0)
    for _ in range(NUM_BEHIND):
        colours = ground + _uniform(rng, -0.25, 0.25, 2, 3)
        _paint(picture, colours, _pattern(rng, x, y, noise), _clutter(rng, x, y, 0.8))

    # The object: from the picture's frame into its own, a little bent, sheared and squeezed; three distances.
    scale, squeeze = _uniform(rng, 0.55, 0.9), _uniform(rng, 0.85, 1.15)
    right, up = _uniform(rng, -0.25, 0.25, 2)
    ox, oy = _turned(x - right, y - up, _uniform(rng, -0.7, 0.7), 1 / scale)  # 40 degrees: objects stay upright
    ox, oy = squeeze * (ox + _uniform(rng, -0.2, 0.2) * oy), oy / squeeze
    ox *= np.sign(_uniform(rng, -1, 1))  # a mirrored object has the same class
    ox += 0.05 * np.sin(3 * oy + _uniform(rng, 0, 2 * np.pi))
    proportions = _uniform(rng, -1, 1, 4)
    parts = np.empty((3, CHUNK, size, size), np.float32)
    for label, shape in enumerate(_OBJECTS):
        rows = slice(label, None, len(CLASSES))
        parts[:, rows] = shape(ox[rows], oy[rows], proportions[:, rows])
    parts *= scale
    whole = parts.min(axis=0)

    # Light: the distance's slope approximates the surface's normal, flat in the middle and steep at the rim. A step
    # down the slope, away from the light, approximates the distance as seen from the shadow.
    angle = _uniform(rng, 0, 2 * np.pi)
    downward, rightward = np.gradient(whole, pixel, axis=(1, 2))
    away = rightward * np.cos(angle) - downward * np.sin(angle)
    shadow = _cover(whole - _uniform(rng, 0.05, 0.2) * np.maximum(away, 0), 0.12)
    shade = np.clip(1 + whole / 0.25, 0, 1) * away * _cover(whole, pixel)
    picture *= 1 - _uniform(rng, 0.2, 0.6) * shadow
    for part in parts:
        colours = paint + _uniform(rng, -0.32, 0.32, 2, 3)
        _paint(picture, colours, _pattern(rng, ox, oy, noise), _cover(part, pixel))
    picture *= 1 - _uniform(rng, 0.15, 0.5) * shade

    # Clutter in front, then the camera's contrast, brightness and noise.
    colours = ground + _uniform(rng, -0.25, 0.25, 2, 3)
    _paint(picture, colours, _pattern(rng, x, y, noise), _clutter(rng, x, y, 0.4))
    picture = (picture - 0.5) * _uniform(rng, 0.6, 1.1) + (0.5 + _uniform(rng, -0.1, 0.1))
    picture += _uniform(rng, 0.0001, 0.0008) * rng.integers(-128, 128, picture.shape, np.int8)  # uniform: cheap to draw
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8).transpose(1, 2, 3, 0)


def draw(num_images: int, seed: int, size: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images, uint8 `[num_images, size, size, 3]`, and labels, int64 `[num_images]`, which cycle through CLASSES.

    Image i depends on `seed` and i only, and is the same scene at every `size`. A negative seed raises ValueError.
    """
    np.empty(2**24, np.uint8)  # freed at once: from now on glibc keeps freed blocks of this size, twice as fast
    images = np.empty((num_images, size, size, 3), np.uint8)
    for start in range(0, num_images, CHUNK):
        images[start : start + CHUNK] = _draw_chunk(seed, start // CHUNK, size)[: num_images - start]
    return images, np.arange(num_images, dtype=np.int64) % len(CLASSES)
