"""What embed and predict share: named images in, one result for every readable one, in input order."""

import contextlib
import csv
import hashlib
import io
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.config import EmbedOptions, PredictOptions
from selfie_cli.data.folders import Folder
from selfie_cli.data.images import decode_square, open_image, orientation, read_file
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.lists import distinct, listed_paths
from selfie_cli.data.names import Names
from selfie_cli.data.packed import holds_images
from selfie_cli.data.store import BadFile, report_bad, storage_size
from selfie_cli.data.threads import thread_pool
from selfie_cli.data.unlabelled import nothing_in
from selfie_cli.errors import DataError, UnreadableImage, UsageError, WeightsError
from selfie_cli.files import followed, json_line, remove_leftovers, replacing
from selfie_cli.hardware import bf16_pays, has_vnni
from selfie_cli.inference.networks import Network, images_at_once
from selfie_cli.runs import is_file_of_run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import num_cores
from selfie_cli.training.step import reason_of


class Result(NamedTuple):
    """What is known of a readable image. vector: float32 [D]. width, height: in pixels, upright, in full."""

    name: str
    vector: NDArray[np.float32]
    width: int
    height: int
    content_hash: bytes


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
BAD_FILES = "bad_files.jsonl"
MANY_IMAGES = 4096  # on a GPU, where compiling is taken to pay from here: an estimate, not yet measured


def path_in(line: str) -> str:
    if "\0" in line:
        raise UsageError("stdin holds zero bytes: give one path a line, as find does without -print0")
    return line.rstrip("\r\n")


def expand(paths: Sequence[str], stdin: Iterable[str], talk: Talk) -> tuple[Names, LeftOut]:
    """Files as given, folders as the images below them, '-' as the paths on stdin (one per line), in this order, each
    once; and what is left out, which is said.

    Raises UsageError if nothing is named or stdin has no lines, DataError for a folder without images.
    """
    left_out = LeftOut()

    def found() -> Iterator[str]:
        for path in paths:
            if path == "-":
                lines = listed_paths(map(path_in, stdin), "stdin", left_out)
                yield from group().from_first(Names(lines if group().first else ()))
            elif os.path.isdir(path):
                folder = Folder(path)
                for packed in filter(holds_images, folder.packed):
                    folder.left_out.add("packed", os.path.basename(packed))
                if not len(folder):
                    raise nothing_in(path, folder.left_out)
                left_out.update(folder.left_out)
                yield from folder.names
            else:
                yield path

    names = Names(found())
    if not names:
        raise UsageError("name the images: files, folders, or - for paths on stdin")
    if len(paths) > 1 or "-" in paths:
        names = distinct(names, left_out)
    if left_out:
        talk.warn(str(left_out))
    return names, left_out


def check_out(options: EmbedOptions | PredictOptions, suffixes: Sequence[str]) -> Path | None:
    """--out as `check_file` has it; None where results go to stdout. Raises UsageError."""
    if options.out is None:
        if options.json:
            raise UsageError("--json goes with --out; without it, every image gives a line of JSON already")
        return None
    return check_file(options.out, suffixes, overwrite=options.overwrite)


def check_file(name: str, suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """--out as a path, tried before the work begins.

    Raises UsageError for a name that no writer fits, a file that would be lost, or a folder that cannot be written to.
    """
    out = Path(name)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file")
    if out.suffix not in suffixes:
        raise UsageError(f"--out {name!r}: the name must end in {' or '.join(suffixes)}")
    if is_file_of_run(out):
        raise UsageError(f"--out {out} is a file of a run: choose another name")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists: replace it with --overwrite")
    check_writable(out, out.parent)
    for name in (out.name, f"{out.name}.rows.jsonl"):
        remove_leftovers(out.parent, name)
    return out


def check_writable(out: Path, folder: Path) -> None:
    """Make `folder`. Raises UsageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from None


@contextlib.contextmanager
def row_writer(out: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A writer of rows, all with the same keys, as .csv or .jsonl, which appears whole, at the end, or not at all.

    Names that are not UTF-8 keep their bytes in the former.
    """
    with (
        replacing(followed(out)) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file)
        begun = False

        def write(row: dict[str, Any]) -> None:
            nonlocal begun
            if not begun:
                table.writerow(row)
            table.writerow(row.values())
            begun = True

        yield write if out.suffix == ".csv" else lambda row: file.write(json_line(row) + "\n")


@dataclass(frozen=True, eq=False)
class Part:
    """What became of the images at `indices`, in input order."""

    indices: range
    results: list[Result]
    bad: list[BadFile]

    def sent(self, emit: Emit) -> "Part":
        """Without its results, which have gone to `emit`."""
        for result in self.results:
            emit(result)
        return Part(self.indices, [], self.bad)


Opened = Callable[[str], contextlib.AbstractContextManager[Emit]]
"""Given the precision that was chosen, a writer of results."""


class Decoded(NamedTuple):
    """Images that could be read. pixels: uint8 [B, S, S, 3], theirs first, in order, then black ones; in pinned memory
    for a GPU. facts: of each its index, width, height and content hash."""

    pixels: Tensor
    facts: list[tuple[int, int, int, bytes]]
    bad: list[BadFile]


@dataclass(eq=False)
class Worker:
    """Decodes images and takes them through a network, in batches padded to one shape. Several threads may call it."""

    names: Sequence[str]
    network: Network
    compute: Compute
    lean: Network
    dtype: torch.dtype
    batch: int

    def __post_init__(self) -> None:
        on_cpu = self.network.device.type == "cpu"
        self.turn = contextlib.nullcontext() if on_cpu else threading.Lock()  # one after another into a GPU's queue

    @torch.inference_mode()
    def __call__(self, indices: range) -> Part:
        pixels, facts, bad = decode(self.names, indices, self.network, self.batch)
        if not facts:
            return Part(indices, [], bad)
        on_device = pixels.to(self.network.device, non_blocking=True)
        with self.turn:
            vectors = self.compute(self.lean, on_device)
        rows = vectors.cpu().numpy()
        if not np.isfinite(rows[: len(facts)]).all():
            raise WeightsError("the network's vectors are no numbers: its weights are damaged, or too large for floats")
        results = [
            Result(self.names[index], row, width, height, digest)
            for (index, width, height, digest), row in zip(facts, rows, strict=False)
        ]
        return Part(indices, results, bad)

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


def decode(names: Sequence[str], indices: Sequence[int], network: Network, batch: int) -> Decoded:
    """The images at `indices`, `batch` at most, as the network's stored pixels, and what could not be read."""
    side = storage_size(network.image_size)
    pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, pin_memory=network.device.type == "cuda")
    decoded = Decoded(pixels, [], [])
    for index in indices:
        name = names[index]
        try:
            data = read_file(name)
            with open_image(io.BytesIO(data)) as image:
                stored = image.size
                pixels[len(decoded.facts)] = torch.from_numpy(decode_square(image, side))
                width, height = stored[::-1] if orientation(image) > 4 else stored  # TIFF's is upright already
                decoded.facts.append((index, width, height, content_hash(data)))
        except UnreadableImage as error:
            decoded.bad.append(BadFile(name, str(error)))
    return decoded


def content_hash(data: bytes) -> bytes:
    """BLAKE2b of 128 bits, as `b2sum -l 128` gives it: 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


def made_lean(
    network: Network, compute: Compute, names: Sequence[str], *, precision: str, talk: Talk
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


def in_int8(network: Network, compute: Compute, names: Sequence[str], talk: Talk) -> Network:
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


def first_readable(names: Sequence[str], count: int, network: Network) -> Tensor:
    """Those of the first `count` images that are readable, uint8 [N, S, S, 3], on the network's device; one is black
    where none is."""
    pixels, facts, _ = decode(names, range(min(count, len(names))), network, count)
    return pixels[: len(facts) or 1].to(network.device)


def lowest_cosine(network: Network, lean: Network, compute: Compute, sample: Tensor) -> float:
    """Between what the two make of an image; the lowest over `sample`, uint8 [N, S, S, 3]."""
    cosines = torch.nn.functional.cosine_similarity(compute(network, sample), compute(lean, sample))
    return cosines.min().item()


def in_order(
    pool: ThreadPoolExecutor, worker: Callable[[range], Part], pieces: Iterable[range], ahead: int
) -> Iterator[Part]:
    """What `worker` makes of each piece, in order; at most `ahead` are under way or wait, so memory stays flat."""
    waiting: deque[Future[Part]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(worker, piece))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}


def run_through(
    names: Names,
    network: Network,
    compute: Compute,
    opened: Opened,
    *,
    options: EmbedOptions | PredictOptions,
    what: str,
    talk: Talk,
    in_parts: bool = False,
) -> list[BadFile]:
    """Decode, compute, write results, in input order; returns the images that could not be read.

    Each thread decodes a batch and computes it by itself: so no core waits for another, nor computing for decoding.
    Several processes take batches in turn, and the first one writes; `in_parts`, each takes a range of the images and
    writes its results. Raises DataError if nothing could be read.
    """
    here = group()
    lanes = options.workers or num_cores()
    num_images = len(names)
    most = -(-num_images // (lanes * here.world))
    batch = min(options.batch_size or images_at_once(network.device, network.image_size), most)
    turns = pieces_of(range(num_images), batch)
    ends = [len(turns) * rank // here.world for rank in (here.rank, here.rank + 1)]
    mine = turns[slice(*ends)] if in_parts else turns[here.rank :: here.world]
    lanes = max(1, min(lanes, len(mine)))

    if options.compile == "on" and options.precision == "int8":
        raise UsageError("--compile on is not for --precision int8: leave one of them out")
    on_gpu = network.device.type == "cuda"
    compile_now = options.compile == "on" or (options.compile == "auto" and on_gpu and num_images >= MANY_IMAGES)
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
        with contextlib.ExitStack() as stack, talk.track(what, num_images) as advance:
            emit: Emit | None = None
            if here.first or in_parts:
                emit = stack.enter_context(opened(PRECISIONS[dtype]))
            if compile_now:
                pool.submit(worker.compile, talk).result()
            begun = time.perf_counter()
            parts = in_order(pool, worker, mine, 2 * lanes)
            for _ in range(-(-len(turns) // here.world)):
                found = next(parts, None)
                if found is not None and emit is not None and in_parts:
                    found = found.sent(emit)
                for part in filter(None, here.gather(found)):
                    for one in part.bad:
                        talk.warn(f"left out: {one.name}: {one.reason}")
                    bad += part.bad
                    if emit is not None:
                        part.sent(emit)
                    done += len(part.indices)
                advance(done, f"{len(bad)} unreadable" if bad else "")
                elapsed = time.perf_counter() - begun
                if compile_later and elapsed > COMPILE_AFTER:
                    compile_later = False
                    if elapsed / done * (num_images - done) > LONG_JOB:
                        pool.submit(worker.compile, talk)
            if len(bad) == num_images:
                raise DataError(f"none of the {num_images} images could be read, first {bad[0].name}: {bad[0].reason}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return bad


def pieces_of(images: range, batch: int) -> list[range]:
    """Ranges of `batch` images, the last of which may be shorter."""
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def conclude(
    bad: list[BadFile], num_images: int, out: Path | None, *, left_out: LeftOut, strict: bool, talk: Talk
) -> None:
    """List unreadable images beside `out`, or in it if it is a folder. Raises DataError for any of them, and for what
    was left out, if `strict`."""
    if out is not None and group().first:
        listed = out / BAD_FILES if out.is_dir() else out.with_name(f"{out.name}.{BAD_FILES}")
        if not bad:  # of an earlier call, which found some
            listed.unlink(missing_ok=True)
        report_bad(bad, num_images, listed, talk)
    if bad and strict:
        raise DataError(f"{len(bad)} of {num_images} images could not be read (--strict), first {bad[0].name}")
    if left_out and strict:
        raise DataError(f"not all images were taken (--strict); {left_out}")
