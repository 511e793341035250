"""Time the data path of a training: from JPEG files, and from decoded pixels, to batches for a network.

    python benchmarks/data_path.py PHOTOS_WITH_CLASSES [--small CIFAR10/train]

The peer is the usual pipeline: torchvision's ImageFolder with RandomResizedCrop, RandomHorizontalFlip, ToTensor and
Normalize, and a DataLoader with as many workers as we have threads. Both give shuffled, cropped, mirrored and
normalized float32 batches of 64, as in finetuning. Each pass is timed from the ninth batch on, to leave out start-up.
--small adds the same with small images, which are padded by 4 and cropped instead.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import decode
import measure
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from selfie_cli.data import augment
from selfie_cli.data.augment import OURS
from selfie_cli.data.batches import Prefetch, SampleOrder
from selfie_cli.data.cache import open_cache
from selfie_cli.data.pixels import OnDemand, Pixels, read_pixels
from selfie_cli.data.sources import Files
from selfie_cli.talk import Talk
from selfie_cli.training.hardware import keep_freed_memory, num_cores

BATCH = 64
PASSES = 2
MIN_CROP = 0.35  # finetune's
SKIPPED = 8  # first batches of a pass, which start-up and read-ahead distort
PEER = "ImageFolder + DataLoader"


def usual(folder: Path, size: int, count: int, workers: int) -> DataLoader:
    crop = (
        transforms.RandomCrop(size, padding=augment.PADDING)
        if size <= 64
        else transforms.RandomResizedCrop(size, scale=(MIN_CROP, 1))
    )
    dataset = datasets.ImageFolder(
        str(folder),
        transforms.Compose(
            [
                crop,
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(augment.MEAN, augment.STD),
            ]
        ),
    )
    some = Subset(dataset, np.random.default_rng(0).permutation(len(dataset))[:count].tolist())
    return DataLoader(some, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)


def augmented(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, s, s]: cropped, mirrored and normalized, as in finetuning."""
    crops = augment.draw_crops(len(pixels), size, generator, flip=True, min_crop=MIN_CROP)
    return augment.training_view(pixels, crops, size)


def from_files(store: Pixels, size: int) -> Iterator[Tensor]:
    """One pass over images decoded on demand, two batches ahead, as `selfie pretrain` reads sets too large to keep."""
    generator = torch.Generator().manual_seed(0)
    order = SampleOrder(len(store), BATCH, seed=0)
    with Prefetch(lambda step: (store.take(order.batch(step)),)) as batch_of:
        for step in range(len(store) // BATCH):
            yield augmented(*batch_of(step), size, generator)


def from_store(store: Pixels, size: int) -> Iterator[Tensor]:
    """Several passes over decoded pixels, shuffled."""
    generator = torch.Generator().manual_seed(0)
    order = SampleOrder(len(store), BATCH, seed=0)
    for step in range(PASSES * len(store) // BATCH):
        yield augmented(store.take(order.batch(step)), size, generator)


def rate(batches: Iterable[object]) -> float:
    """Images per second, once the batches read ahead are used up."""
    times = [time.perf_counter() for _ in batches][SKIPPED:]
    return BATCH * (len(times) - 1) / (times[-1] - times[0])


def compare(lines: measure.Lines, what: str, folder: Path, size: int, *, num_images: int, rounds: int) -> None:
    """Measure all contestants on the images below `folder`, which has a subfolder per class."""
    workers = num_cores()
    found = [str(path) for path in measure.images_below(folder)]
    paths = [found[index] for index in np.random.default_rng(0).permutation(len(found))[: num_images // BATCH * BATCH]]
    loader = usual(folder, size, len(paths), workers)
    how = {"size": OURS.storage_size(size), "workers": workers, "max_bad": 0.0, "talk": Talk()}
    store = read_pixels(Files(paths), **how)
    no_cache = open_cache(Files(paths), size=how["size"], folder=None, limit_gb=0, talk=Talk())
    streamed = OnDemand(Files(paths), no_cache, **how)
    measured = measure.turns(
        rounds,
        {
            PEER: lambda: rate(loader),
            "files": lambda: rate(from_files(streamed, size)),
            "store": lambda: rate(from_store(store, size)),
        },
    )
    some = paths[:200]
    decoding = workers * len(some) * measure.calls_a_second(lambda: decode.pillow_alone(some, size))
    # Bytes to move per image: each is read and written, and written once more as float32.
    copy, values = measure.copy_rate("cpu") * 1e9, 3 * size * size
    rows = {
        "files": ("files to batches", 1.6, decoding, "decoding alone"),
        "store": ("decoded pixels to batches", 10.0, copy / (7 * values), "memory copy"),
        PEER: (PEER, None, decoding, "decoding alone"),
    }
    for name, (row, target, limit, bound) in rows.items():
        ratio = {} if name == PEER else measure.against(PEER, measured[name], measured[PEER], target)
        lines.add(f"{what}: {row}", measured[name], "images/s", limit=limit, bound=bound, threads=workers, **ratio)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--small", type=Path, help="A folder of 32 px images with a subfolder a class.")
    parser.add_argument("--images", type=int, default=2048)
    a = parser.parse_args()
    lines = measure.Lines("data_path", a.results)
    # The consumer of batches has one thread beside the decoding threads, as DataLoader's has beside its workers.
    torch.set_num_threads(1)
    keep_freed_memory()
    mosaics = measure.mosaics(a.photos, a.work / f"mosaics-{a.images}", a.images)
    compare(lines, "mosaics of 512 px at 224 px", mosaics, 224, num_images=a.images, rounds=a.rounds)
    compare(lines, "photos at 224 px", a.photos, 224, num_images=a.images, rounds=a.rounds)
    if a.small:
        compare(lines, "small images at 32 px", a.small, 32, num_images=5 * a.images, rounds=a.rounds)


if __name__ == "__main__":
    main()
