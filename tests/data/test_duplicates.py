import hashlib
import io
import itertools

import numpy as np
import pytest
import torch
from corpus import saved
from PIL import Image, ImageOps
from scipy.fft import dctn

from selfie_cli.data import duplicates, synthetic
from selfie_cli.data.duplicates import FAINT, Marks, find_earlier, find_seen, load_marks, marks_of, save_marks
from selfie_cli.errors import WeightsError
from selfie_cli.talk import Talk
from selfie_cli.weights import save_weights


def drawn(num: int, seed: int = 0, size: int = 32) -> np.ndarray:
    return synthetic.draw(num, seed, size)[0]


def marked(pixels: np.ndarray) -> Marks:
    return marks_of(torch.from_numpy(np.ascontiguousarray(pixels)))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The differing bits of two perceptual hashes, or of one and the mirror image of the other."""
    bits = np.unpackbits(one ^ other).astype(int)
    return bits[:128].sum() + min(bits[128:].sum(), 128 - bits[128:].sum())


def each(pixels: np.ndarray, change) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


def jpeg(quality: int):
    return lambda image: Image.open(io.BytesIO(saved(image, "JPEG", quality=quality)))


def resized(side: int, box: tuple[int, ...] | None = None):
    return lambda image: image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def naive_bits(image: np.ndarray) -> list[int]:
    """The perceptual hash by its definition: the signs of a cosine transform's coefficients, or random bits."""
    waves = dctn(image @ np.array([0.299, 0.587, 0.114])) / (2 * len(image))
    tossed = np.unpackbits(np.frombuffer(hashlib.blake2b(image.tobytes(), digest_size=32).digest(), np.uint8))
    order, bits = [*range(0, 16, 2), *range(1, 16, 2)], []
    for across, down in itertools.product(order, order):
        wave = waves[down, across]
        bits.append(int(tossed[len(bits)]) if abs(wave) < FAINT else int(wave > 0))
    return [0, *bits[1:]]


@pytest.mark.parametrize("size", [16, 19])
def test_marks_are_what_their_definition_says(size):
    images = drawn(2, size=size)
    images[1] = images[1] // 16 + 100  # most of its coefficients are faint
    marks = marked(images)
    assert marks.exact.dtype == np.int64
    assert marks.perceptual.dtype == np.uint8
    for image, exact, perceptual in zip(images, marks.exact, marks.perceptual, strict=True):
        digest = hashlib.blake2b(image.tobytes(), digest_size=32).digest()
        assert exact == int.from_bytes(digest[:8], "little", signed=True)
        assert np.unpackbits(perceptual).tolist() == naive_bits(image)


@pytest.mark.parametrize("block", [(64, 2048), (7, 9)])
def test_finds_what_a_double_loop_over_bits_finds(monkeypatch, block):
    monkeypatch.setattr(duplicates, "ROWS", block[0])
    monkeypatch.setattr(duplicates, "KEYS", block[1])
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    marks = marked(noise)
    test, seen = marks[slice(23)], marks[slice(20, None)]  # three are copies
    found = find_seen(test, seen, near=255)
    for i, query in enumerate(test.perceptual):
        distances = [apart(query, other) for other in seen.perceptual]
        assert found.distance[i] == min(distances)
        assert distances[found.nearest[i]] == min(distances)
    assert found.exact.tolist() == find_seen(test, seen).near.tolist() == [i >= 20 for i in range(23)]
    assert found.nearest[20:].tolist() == [0, 1, 2]


CHANGES = {
    "jpeg90": (jpeg(90), 1.0),
    "jpeg50": (jpeg(50), 0.99),
    "brighter": (lambda image: image.point(lambda value: round(value * 1.05)), 1.0),
    "grey": (lambda image: image.convert("L").convert("RGB"), 1.0),
    "smaller": (lambda image: resized(32)(resized(24)(image)), 1.0),
    "mirrored-jpeg": (lambda image: jpeg(70)(ImageOps.mirror(image)), 1.0),
    "a pixel less at the left": (resized(32, (1, 0, 32, 32)), 0.8),
    "enlarged": (resized(100), 1.0),
    "one bit": (lambda image: np.asarray(image) ^ np.eye(32, dtype=np.uint8)[3, :, None], 1.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_duplicates_are_found(name):
    images, (change, share) = drawn(150), CHANGES[name]
    found = find_seen(marked(each(images, change)), marked(images))
    own = found.near & (found.nearest == np.arange(150))
    assert own.mean() >= share
    assert not (found.near & ~own).any()
    assert not found.exact.any() or name == "grey"


def test_copies_are_told_from_other_images():
    marks = marked(drawn(1000, seed=1))
    found = find_seen(marks[slice(20, 40)], marks)
    assert found.exact.all()
    assert found.nearest.tolist() == list(range(20, 40))
    for others in (drawn(1000, seed=2), drawn(50, seed=1)[:, ::-1]):  # upside down is another image
        assert not find_seen(marked(others), marks).near.any()
    none = marks[slice(0)]
    assert find_seen(marks, none).nearest.tolist() == [-1] * 1000
    assert len(find_seen(none, marks).near) == len(find_earlier(none, workers=1, talk=Talk())[0]) == 0


@pytest.mark.parametrize("size", [8, 32, 224])
def test_pictures_without_structure_match_their_copies_only(size):
    flat = np.repeat(np.arange(200, dtype=np.uint8), size * size * 3).reshape(200, size, size, 3)
    ramp = np.broadcast_to(np.linspace(0, 255, size).astype(np.uint8)[:, None, None], (size, size, 3))
    ramps = np.stack([ramp // np.uint8(k) for k in (1, 2, 3, 4)])  # 16 of 255 coefficients
    marks = marked(np.concatenate([flat, ramps]))
    copies = find_seen(marks, marks)
    assert copies.exact.all()
    assert copies.nearest.tolist() == list(range(204))
    assert not find_seen(marks[slice(0, None, 2)], marks[slice(1, None, 2)]).near.any()


def test_marks_travel_through_a_file_and_nothing_else_is_taken_for_them(tmp_path):
    file = tmp_path / "seen.safetensors"
    for marks in (marked(drawn(7)), marked(drawn(7))[slice(0)]):
        save_marks(file, marks)
        loaded = load_marks(file)
        assert np.array_equal(loaded.exact, marks.exact)
        assert np.array_equal(loaded.perceptual, marks.perceptual)
    exact, perceptual = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 32, dtype=torch.uint8)
    for tensors, version in (
        ({"exact": exact}, "1"),
        ({"exact": exact, "perceptual": perceptual[:3]}, "1"),
        ({"exact": exact.int(), "perceptual": perceptual}, "1"),
        ({"exact": exact, "perceptual": perceptual, "more": perceptual + 1}, "1"),
        ({"exact": exact, "perceptual": perceptual}, "2"),
    ):
        save_weights(file, tensors, {"marks_version": version})
        with pytest.raises(WeightsError, match=r"remove it .*, or pretrain again"):
            load_marks(file)


def test_the_earlier_image_that_is_most_like(monkeypatch):
    """Against every pair by itself; blocks are small, so that many are looked at."""
    monkeypatch.setattr(duplicates, "ROWS", 7)
    monkeypatch.setattr(duplicates, "KEYS", 5)
    originals = drawn(20)
    variants = [each(originals[:12], change) for change in (jpeg(60), ImageOps.mirror, jpeg(30))]
    marks = marked(np.concatenate([originals, *variants, drawn(9, seed=1)]))
    count, bits = len(marks), marks.perceptual
    distances = [[apart(bits[row], bits[key]) for key in range(row)] for row in range(count)]
    for near, window in ((40, count), (70, count), (200, 15), (40, 15)):
        pairs = 1e9 if window == count else window * count
        nearest, found, looked_at = find_earlier(marks, near=near, pairs=pairs, workers=3, talk=Talk())
        assert looked_at == window
        for row, before in enumerate(distances):
            first = max(0, row - window)
            best = min(before[first:], default=999)
            expected = (before.index(best, first), best) if best <= near else (-1, -1)
            assert (nearest[row], found[row]) == expected
    assert (nearest >= 0).sum() > 0
