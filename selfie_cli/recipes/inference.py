"""What embed and predict share: named images in, one result for every readable one, in input order."""

import contextlib
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.config import EmbedOptions, PredictOptions
from selfie_cli.data.images import decode_square
from selfie_cli.data.pool import thread_pool
from selfie_cli.data.sources import Files, list_images
from selfie_cli.data.store import BadFile, report_bad, storage_size
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.files import replacing
from selfie_cli.hardware import bf16_pays, has_vnni
from selfie_cli.recipes.networks import Network, images_at_once
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.machine import num_cores
from selfie_cli.training.step import reason_of

Result = tuple[str, NDArray[np.float32]]
Emit = Callable[[Result], Any]
Compute = Callable[[Network, Tensor], Tensor]
"""Stored pixels, uint8 [B, S, S, 3], on the network's device -> float32 [B, D]: `Network.vectors` or the like."""

SAMPLE = 8  # images on which bf16 is compared with fp32
SHORT_JOB = 32  # images: up to here, that comparison would take longer than fp32 does
SAME_DIRECTION = 0.999
"""The cosine to the fp32 vector that a bf16 vector must have for bf16 to be chosen."""
RANGE_SAMPLE = 32  # images from which the ranges of 8-bit integers are taken
USABLE = 0.99
"""The cosine below which int8 is warned of."""
COMPILE_AFTER = 30.0  # seconds of work from which a CPU's rate is estimated
LONG_JOB = 600.0  # seconds: compiling takes 5 to 20 of them, and makes the rest 5 to 15 % shorter
MANY_IMAGES = 4096  # on a GPU, where compiling is taken to pay from here: an estimate, not yet measured


def expand(paths: Sequence[str], stdin: Iterable[str]) -> list[str]:
    """Files as given, folders as the images below them, '-' as the paths on stdin (one a line), in this order.

    Raises UsageError if nothing is named, DataError for a folder without images.
    """
    names: list[str] = []
    for path in paths:
        if path == "-":
            lines = group().from_first(list(stdin) if group().first else [])
            names += [line.rstrip("\r\n") for line in lines if line.strip()]
        elif os.path.isdir(path):
            names += list_images(path) or _none_in(path)
        else:
            names.append(path)
    if not names:
        raise UsageError("name the images: files, folders, or - for paths on stdin")
    return names


def _none_in(folder: str) -> list[str]:
    raise DataError(f"no images in {folder}")


def check_out(options: EmbedOptions | PredictOptions, suffixes: Sequence[str]) -> Path | None:
    """--out as a path, tried before the work begins; None where results go to stdout.

    Raises UsageError for a name that no writer fits, a file that would be lost, or a folder that cannot be written to.
    """
    if options.out is None:
        if options.json:
            raise UsageError("--json goes with --out; without it, every image gives a line of JSON already")
        return None
    out = Path(options.out)
    if out.suffix not in suffixes:
        raise UsageError(f"--out {options.out!r}: the name must end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file")
    if out.exists() and not options.overwrite:
        raise UsageError(f"{out} exists: replace it with --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None
    return out


@contextlib.contextmanager
def line_writer(out: Path) -> Iterator[Any]:
    """A text file that appears whole or not at all; names that are not UTF-8 keep their bytes."""
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


@dataclass(frozen=True, eq=False)
class Part:
    """What became of some of the images, in input order."""

    results: list[Result]
    bad: list[BadFile]


class Worker:
    """Decodes images and takes them through a network, in batches padded to one shape. Several threads may call it."""

    def __init__(
        self, names: list[str], network: Network, compute: Compute, *, lean: Network, dtype: torch.dtype, batch: int
    ) -> None:
        self.source = Files(names)
        self.network = network
        self.compute = compute
        self.lean = lean
        self.dtype = dtype
        self.batch = batch
        on_cpu = network.device.type == "cpu"
        self.turn = contextlib.nullcontext() if on_cpu else threading.Lock()  # one after another into a GPU's queue

    @torch.inference_mode()
    def __call__(self, indices: range) -> Part:
        pixels, readable, bad = decode(self.source, indices, self.network, self.batch)
        if not readable:
            return Part([], bad)
        on_device = pixels.to(self.network.device, non_blocking=True)
        with self.turn:
            vectors = self.compute(self.lean, on_device)
        rows = vectors.cpu().numpy()[: len(readable)]
        return Part([(self.source.names[index], row) for index, row in zip(readable, rows, strict=True)], bad)

    @torch.inference_mode()
    def compile(self, talk: Talk) -> None:
        """Go on with a compiled network; if that cannot be had, with this one, and say why."""
        lean = self.network.lean(self.dtype, compiled=True)
        side = storage_size(self.network.image_size)
        try:
            with self.turn:
                black = torch.zeros(self.batch, side, side, 3, dtype=torch.uint8, device=self.network.device)
                self.compute(lean, black)
        except Exception as error:
            talk.warn(f"torch.compile does not work here, going on without ({reason_of(error)})")
        else:
            self.lean = lean


def decode(source: Files, indices: range, network: Network, batch: int) -> tuple[Tensor, list[int], list[BadFile]]:
    """The images at `indices` as the network's stored pixels, uint8 [batch, S, S, 3], in pinned memory for a GPU.

    The readable ones come first, in order, black ones fill up; with the indices of the former, and what could not be
    read.
    """
    side = storage_size(network.image_size)
    pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, pin_memory=network.device.type == "cuda")
    readable: list[int] = []
    bad: list[BadFile] = []
    for index in indices:
        try:
            with source.open(index) as image:
                pixels[len(readable)] = torch.from_numpy(decode_square(image, side))
            readable.append(index)
        except UnreadableImage as error:
            bad.append(BadFile(source.names[index], str(error)))
    return pixels, readable, bad


def made_lean(
    network: Network, compute: Compute, names: list[str], *, precision: str, talk: Talk
) -> tuple[Network, torch.dtype]:
    """The network to use, and what it computes in. `precision` "auto" is bf16 if the hardware has it and it gives the
    same vectors; that is tried on the first of the job's images. A short job takes fp32.

    Raises UsageError for int8 on hardware that lacks it.
    """
    if precision == "int8":
        return in_int8(network, compute, names, talk), torch.int8
    if precision == "bf16":
        return network.lean(torch.bfloat16), torch.bfloat16
    if precision == "auto" and bf16_pays(network.device) and len(names) > SHORT_JOB:
        sample = first_readable(names, SAMPLE, network)
        lean = network.lean(torch.bfloat16)
        cosine = lowest_cosine(network, lean, compute, sample)
        chosen, why = ("bf16", "") if cosine >= SAME_DIRECTION else ("fp32", f", below {SAME_DIRECTION}")
        talk.say(
            f"precision: {chosen}; in bf16 the cosine to fp32 is at least {cosine:.6f} on the first {len(sample)} "
            f"images{why}"
        )
        if chosen == "bf16":
            return lean, torch.bfloat16
    return network.lean(torch.float32), torch.float32


def in_int8(network: Network, compute: Compute, names: list[str], talk: Talk) -> Network:
    """The network in 8 bits, on scales that suit the first of the job's images. Raises UsageError."""
    if not has_vnni(network.device):
        raise UsageError("--precision int8 needs a CPU with VNNI: leave it out, or take bf16")
    sample = first_readable(names, RANGE_SAMPLE, network)
    lean = network.in_int8(sample)
    cosine = lowest_cosine(network, lean, compute, sample[:SAMPLE])
    talk.say(f"precision: int8; the cosine to fp32 is at least {cosine:.6f} on the first {len(sample[:SAMPLE])} images")
    if cosine < USABLE:
        talk.warn(f"int8 changes vectors of this network more than a little (cosine {cosine:.4f}): take bf16 or fp32")
    return lean


def first_readable(names: list[str], count: int, network: Network) -> Tensor:
    """Those of the first `count` images that are readable, uint8 [N, S, S, 3], on the network's device; one is black
    where none is."""
    pixels, readable, _ = decode(Files(names), range(min(count, len(names))), network, count)
    return pixels[: len(readable) or 1].to(network.device)


def lowest_cosine(network: Network, lean: Network, compute: Compute, sample: Tensor) -> float:
    """Between what the two make of an image; the lowest over `sample`, uint8 [N, S, S, 3]."""
    cosines = torch.nn.functional.cosine_similarity(compute(network, sample), compute(lean, sample))
    return cosines.min().item()


def in_order(
    pool: ThreadPoolExecutor, worker: Callable[[range], Part], pieces: list[range], ahead: int
) -> Iterator[Part]:
    """What `worker` makes of each piece, in order; at most `ahead` are under way or wait, so memory stays flat."""
    waiting: deque[Future[Part]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(worker, piece))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def run_through(
    names: list[str],
    network: Network,
    compute: Compute,
    emit: Emit,
    *,
    options: EmbedOptions | PredictOptions,
    what: str,
    talk: Talk,
) -> list[BadFile]:
    """Decode, compute, emit (name, vector), in input order; returns what could not be read.

    Each thread decodes a batch and computes it by itself: so no core waits for another, nor computing for decoding.
    Several processes take batches in turn, and the first one emits. Raises DataError if nothing could be read.
    """
    here, cores = group(), num_cores()
    lanes = options.workers or cores
    share = -(-len(names) // (lanes * here.world))
    batch = min(options.batch_size or images_at_once(network.device, network.image_size), share)
    pieces = [range(start, min(start + batch, len(names))) for start in range(0, len(names), batch)]
    mine = pieces[here.rank :: here.world]
    lanes = max(1, min(lanes, len(mine)))

    if options.compile == "on" and options.precision == "int8":
        raise UsageError("--compile on is not for --precision int8: leave one of them out")
    on_gpu = network.device.type == "cuda"
    compile_now = options.compile == "on" or (options.compile == "auto" and on_gpu and len(names) >= MANY_IMAGES)
    compile_later = options.compile == "auto" and not on_gpu and options.precision != "int8"

    bad: list[BadFile] = []
    done = 0
    # A thread alone has all cores for its operations; threads side by side have one each. The network is made in one of
    # them, too: how oneDNN lays out 8-bit weights depends on the number of cores.
    pool = thread_pool(lanes, what) if lanes > 1 else ThreadPoolExecutor(1, thread_name_prefix=what)
    try:
        making = pool.submit(made_lean, network, compute, names, precision=options.precision, talk=talk)
        lean, dtype = making.result()
        worker = Worker(names, network, compute, lean=lean, dtype=dtype, batch=batch)
        with talk.track(what, len(names)) as advance:
            if compile_now:
                pool.submit(worker.compile, talk).result()
            begun = time.perf_counter()
            parts = in_order(pool, worker, mine, 2 * lanes)
            for _ in range(-(-len(pieces) // here.world)):
                for part in here.gather(next(parts, Part([], []))):
                    for one in part.bad:
                        talk.warn(f"left out: {one.name}: {one.reason}")
                    bad += part.bad
                    if here.first:
                        for result in part.results:
                            emit(result)
                    done += len(part.results) + len(part.bad)
                advance(done, f"{len(bad)} unreadable" if bad else "")
                elapsed = time.perf_counter() - begun
                if compile_later and elapsed > COMPILE_AFTER:
                    compile_later = False
                    if elapsed / done * (len(names) - done) > LONG_JOB:
                        pool.submit(worker.compile, talk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if len(bad) == len(names):
        raise DataError(f"none of the {len(names)} images could be read, first {bad[0].name}: {bad[0].reason}")
    return bad


def conclude(bad: list[BadFile], num_images: int, out: Path | None, *, strict: bool, talk: Talk) -> None:
    """List unreadable images beside `out`. Raises DataError for any of them if `strict`."""
    if out is not None and group().first:
        report_bad(bad, num_images, out.with_name("bad_files.jsonl"), talk)
    if bad and strict:
        raise DataError(f"{len(bad)} of {num_images} images could not be read (--strict), first {bad[0].name}")
