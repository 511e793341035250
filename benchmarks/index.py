"""Measure the cost of an index of very many images, and of all work before the first step. Prints a line of JSON.

    python benchmarks/index.py [--entries 10000000]
    python benchmarks/index.py --tree IMAGES FILES

Without images: list paths of some 60 characters in Python, as a walk through folders would, and put them into the
index. Then compute its fingerprint, and the indices of batches in both orders (all images shuffled; blocks of a stream,
as one of eight processes).

With --tree: write FILES images, copies of those below IMAGES, to folders of 1,000 files under --work (only once; a
number behind the end of each JPEG makes every file different). Then do each part of what `selfie pretrain` does before
its first step, at 32 px. `pixels` decodes all images if they take up to 1 GB of pixels; otherwise it opens a new store,
identified by the files' sizes and times. `cpu` is the CPU time of this process on all cores, which does not depend on
other work on the machine.

Memory is the peak of the process, minus its peak before the measurement.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import torch

from selfie_cli.data.batches import SampleOrder
from selfie_cli.data.pixels import open_pixels
from selfie_cli.data.sources import Files, fingerprint
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.pretraining.settings import suggested_size
from selfie_cli.talk import Talk
from selfie_cli.training.hardware import num_cores

BATCH = 512
FOLDER = 1000
"""Files per folder of a tree."""
SIDE = 32


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # ru_maxrss is in kilobytes on Linux


def timed(function: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    made = function()
    return time.perf_counter() - begun, made


def paths(entries: int) -> Iterator[str]:
    return (f"/data/photos/{index // 1000:06d}/IMG_20260101_{index:010d}_original.jpeg" for index in range(entries))


def batch_seconds(order: SampleOrder) -> float:
    """Median time for the indices of a batch, in seconds, after the shuffle of the epoch."""
    order.batch(0)
    return statistics.median(timed(lambda step=step: order.batch(step))[0] for step in range(1, 200))


def tree(images: Path, folder: Path, count: int) -> Path:
    """Write `count` files, which repeat the images in turn, to folders of FOLDER files."""
    if not folder.exists():
        contents = [path.read_bytes() for path in measure.images_below(images)]
        for number in range(count):
            if number % FOLDER == 0:
                (inside := folder / f"{number // FOLDER:05d}").mkdir(parents=True)
            file = inside / f"IMG_20260101_{number:08d}.jpeg"
            file.write_bytes(contents[number % len(contents)] + number.to_bytes(8, "little"))
    return folder


def before_first_step(folder: Path, store: str) -> dict[str, Any]:
    """Time, CPU time and peak memory so far of each part on the way from a folder to the first batches."""
    before, line = peak_mb(), dict[str, Any](seconds={}, cpu={}, peak_mb={})

    def part(name: str, function: Callable[[], Any]) -> Any:
        begun = time.process_time()
        line["seconds"][name], made = timed(function)
        line["cpu"][name], line["peak_mb"][name] = time.process_time() - begun, peak_mb() - before
        return made

    source = part("list", lambda: open_unlabelled([str(folder)], data_root=Path(), offline=True, talk=Talk()))
    part("fingerprint", lambda: fingerprint(source))
    part("image size", lambda: suggested_size(source))
    how = {"size": SIDE, "workers": num_cores(), "max_bad": 0.1, "talk": Talk(), "folder": store}
    pixels = part("pixels", lambda: open_pixels(source, **how))
    order = SampleOrder(len(source), BATCH, 0)
    part("shuffle of an epoch", lambda: order.batch(0))
    part("three batches", lambda: [pixels.take(order.batch(step)) for step in range(3)])
    pixels.close()
    return {"files": len(source), **line}


def without_images(entries: int) -> dict[str, Any]:
    before = peak_mb()
    listed, _ = timed(lambda: sum(1 for _ in paths(entries)))
    built, files = timed(lambda: Files(paths(entries)))
    assert isinstance(files, Files)
    index_mb = peak_mb() - before
    marked, _ = timed(lambda: fingerprint(files))
    names_of_batch, _ = timed(lambda: [files.names[i] for i in torch.randint(entries, (BATCH,)).tolist()])
    whole, streamed = SampleOrder(entries, BATCH, 0), SampleOrder(entries, BATCH, 0, block=64, rank=3, world=8)
    shuffle, _ = timed(lambda: whole.batch(0))
    shuffle_streamed, _ = timed(lambda: streamed.batch(0))
    return {
        "entries": entries,
        "seconds": {
            "index": round(built - listed, 3),
            "fingerprint": round(marked, 3),
            "shuffle of an epoch": round(shuffle, 4),
            "shuffle of an epoch's blocks": round(shuffle_streamed, 4),
            "indices of a batch": batch_seconds(whole),
            "indices of a batch, streamed": batch_seconds(streamed),
            "paths of a batch": names_of_batch,
        },
        "bytes_an_entry": {"path": len(next(paths(1))), "index": round(index_mb * 2**20 / entries, 1)},
        "peak_mb": {"index": round(index_mb, 1), "with orders": round(peak_mb() - before, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10**7)
    parser.add_argument("--tree", nargs=2, metavar=("IMAGES", "FILES"))
    parser.add_argument("--work", type=Path, default=Path("runs/speed"))
    a = parser.parse_args()
    SampleOrder(1000, BATCH, 0).batch(0)
    if a.tree:
        folder = tree(Path(a.tree[0]), a.work / f"tree-{a.tree[1]}", int(a.tree[1]))
        with tempfile.TemporaryDirectory(dir=a.work) as store:
            line = before_first_step(folder, store)
    else:
        line = without_images(a.entries)
    print(json.dumps(measure.rounded({**line, "batch_size": BATCH, **measure.Lines("index", measure.RESULTS).here})))


if __name__ == "__main__":
    main()
