"""Cost of an index of very many images, without the images: time and memory, as one line of JSON.

    python benchmarks/index.py [--entries 10000000]

Paths of some 60 characters are listed in Python, as a walk through folders would, and put into the index; then come
its fingerprint, and the indices of batches in both orders (all images shuffled; blocks of a stream, as one of eight
processes). Memory is what the process takes at most, less what it took before.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import measure
import torch

from selfie_cli.data.batches import SampleOrder
from selfie_cli.data.sources import Files, fingerprint

BATCH = 512


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def timed(function: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    made = function()
    return time.perf_counter() - begun, made


def paths(entries: int) -> Iterator[str]:
    return (f"/data/photos/{index // 1000:06d}/IMG_20260101_{index:010d}_original.jpeg" for index in range(entries))


def batch_seconds(order: SampleOrder) -> float:
    """Median of the time for the indices of a batch, once the epoch has been shuffled."""
    order.batch(0)
    return statistics.median(timed(lambda step=step: order.batch(step))[0] for step in range(1, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10**7)
    entries = parser.parse_args().entries
    SampleOrder(1000, BATCH, 0).batch(0)
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
    line = {
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
        "batch_size": BATCH,
    }
    print(json.dumps({**line, **measure.Lines("index", measure.RESULTS).here}))


if __name__ == "__main__":
    main()
