"""Images through a network: one result per readable file, in input order and at a suitable precision."""

import contextlib
import hashlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfie_cli.data.bad_files import BadFile, too_many
from selfie_cli.data.folders import Folder
from selfie_cli.data.images import decode_square, open_image, orientation, read_file
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.lists import LISTS, distinct, listed_paths, read_list
from selfie_cli.data.packed import holds_images
from selfie_cli.data.threads import thread_pool
from selfie_cli.data.unlabelled import nothing_in
from selfie_cli.errors import UnreadableImage, UsageError, WeightsError
from selfie_cli.inference.networks import Network, images_at_once
from selfie_cli.models.quantized import has_vnni
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import bf16_pays, num_cores
from selfie_cli.training.step import reason_of

Compute = Callable[[Network, Tensor], Tensor]
"""Stored pixels, uint8 [B, S, S, 3], on the network's device -> float32 [B, D]: `Network.vectors` or the like."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHORT_JOB = 32
"""Number of images up to which comparing bf16 with float32 would take longer than it saves."""
COMPARED = 8
"""Number of images on which a precision is compared with float32."""
CALIBRATION = 32
"""Number of images from which the ranges of 8-bit integers are taken."""
SAME_DIRECTION = 0.999
"""Lowest cosine to the float32 vectors at which "auto" takes bf16."""
USABLE = 0.99
"""Cosine to the float32 vectors below which int8 gives a warning."""
COMPILE_AFTER = 30.0
"""Seconds of work on a CPU after which the remaining time is estimated."""
LONG_JOB = 600.0
"""Remaining seconds from which compiling pays: it takes 5 to 20 seconds and makes the rest 5 to 15 % shorter."""
MANY_IMAGES = 4096
"""Number of images from which compiling should pay on a GPU: an estimate, not measured yet."""


def named_images(paths: Sequence[str], stdin: Iterable[str], talk: Talk) -> tuple[list[str], LeftOut]:
    """Paths of images, each once, in the order given, and a record of inputs that are left out.

    A file stands for itself, a folder for all images below it, '-' for the paths on stdin, one per line.

    Raises UsageError if nothing is named or stdin has no lines, DataError for a folder without images.
    """
    left_out = LeftOut()

    def found() -> Iterator[str]:
        for path in paths:
            if path == "-":
                lines = listed_paths((line.rstrip("\r\n") for line in stdin), "stdin", left_out)
                yield from group().from_first(list(lines) if group().first else [])
            elif os.path.isdir(path):
                folder = Folder(path)
                for packed in filter(holds_images, folder.packed):
                    folder.left_out.add("packed", os.path.basename(packed))
                if not len(folder):
                    raise nothing_in(path, folder.left_out)
                left_out.update(folder.left_out)
                yield from folder.names
            elif path.lower().endswith(LISTS):
                yield from read_list(path, left_out)
            else:
                yield path

    names = list(found())
    if not names:
        raise UsageError("name the images: files, folders, or - for paths on stdin")
    if len(paths) > 1 or "-" in paths:
        names = distinct(names, left_out)
    if left_out:
        talk.warn(str(left_out))
    return names, left_out


class Result(NamedTuple):
    """A readable image. vector: float32 [D]. width, height: of the upright image before resizing, in pixels."""

    name: str
    vector: NDArray[np.float32]
    width: int
    height: int
    content_hash: bytes


NO_VECTOR = np.zeros(0, np.float32)


class Part(NamedTuple):
    """Results of `num_images` consecutive images, in input order, and the unreadable ones among them."""

    num_images: int
    results: list[Result]
    bad: list[BadFile]


@dataclass(kw_only=True, eq=False)
class Stream:
    """Images through a network, as results in input order: enter it, iterate over it once, and leave it.

    Each thread decodes a batch and runs the network on it, so that cores neither wait for each other nor for decoding.
    Several processes take batches in turn.

    what: the title of the progress bar. precision: "auto" is replaced by the chosen one. workers, batch_size: None for
    what suits the machine. in_parts: each of several processes gets only the results of its own range of images. bad:
    after iteration, the images that cannot be read.
    """

    names: list[str]
    network: Network
    compute: Compute
    what: str
    precision: str
    talk: Talk
    workers: int | None = None
    batch_size: int | None = None
    compile: str = "auto"
    in_parts: bool = False

    def __post_init__(self) -> None:
        self.bad: list[BadFile] = []
        here, network = group(), self.network
        self.on_gpu = network.device.type == "cuda"
        self.turn = threading.Lock() if self.on_gpu else contextlib.nullcontext()  # a GPU takes one batch at a time
        num_images, num_threads = len(self.names), self.workers or num_cores()
        most = -(-num_images // (num_threads * here.world))
        self.at_once = min(self.batch_size or images_at_once(network.device, network.image_size), most)
        batches = [self.names[start : start + self.at_once] for start in range(0, num_images, self.at_once)]
        self.num_rounds = -(-len(batches) // here.world)
        if self.in_parts:
            ends = [len(batches) * rank // here.world for rank in (here.rank, here.rank + 1)]
            self.batches = batches[slice(*ends)]
        else:
            self.batches = batches[here.rank :: here.world]
        self.num_threads = max(1, min(num_threads, len(self.batches)))

    def __enter__(self) -> Self:
        num_images = len(self.names)

        def first(count: int) -> Tensor:
            """The readable images among the first `count`, on the network's device; a black one if there is none."""
            pixels, known, _ = decode(self.names[:count], self.network, count)
            return pixels[: len(known) or 1].to(self.network.device)

        with contextlib.ExitStack() as stack:
            # A single thread uses all cores for its operations, several threads use one core each. One of them also
            # prepares the network, because oneDNN's layout of 8-bit weights depends on the number of cores.
            alone = self.num_threads == 1
            self.pool = ThreadPoolExecutor(1, self.what) if alone else thread_pool(self.num_threads, self.what)
            stack.callback(self.pool.shutdown, wait=True, cancel_futures=True)
            self.lean, self.precision = self.pool.submit(
                with_precision, self.network, self.compute, self.precision, num_images, first, self.talk
            ).result()
            self.advance = stack.enter_context(self.talk.track(self.what, num_images))
            if self.compile == "on" or (self.compile == "auto" and self.on_gpu and num_images >= MANY_IMAGES):
                self.pool.submit(self.use_compiled).result()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def __iter__(self) -> Iterator[Result]:
        """Raise DataError at the end if no image could be read."""
        num_images, done, begun = len(self.names), 0, time.perf_counter()
        compile_later = self.compile == "auto" and not self.on_gpu and self.precision in DTYPES
        parts = self.parts()
        for _ in range(self.num_rounds):
            part = next(parts, None)
            if part is not None and self.in_parts:
                yield from part.results
                part = part._replace(results=[])
            for each in filter(None, group().gather(part)):
                for one in each.bad:
                    self.talk.warn(f"left out: {one.name}: {one.reason}")
                self.bad += each.bad
                yield from each.results
                done += each.num_images
            self.advance(done, f"{len(self.bad)} unreadable" if self.bad else "")
            elapsed = time.perf_counter() - begun
            if compile_later and elapsed > COMPILE_AFTER:
                compile_later = False
                if elapsed / done * (num_images - done) > LONG_JOB:
                    self.pool.submit(self.use_compiled)
        if len(self.bad) == num_images:
            raise too_many(self.bad, num_images, 1)

    def parts(self) -> Iterator[Part]:
        """The results of each batch, in order. At most two batches per thread are pending: memory use stays flat."""
        waiting: deque[Future[Part]] = deque()
        for names in self.batches:
            waiting.append(self.pool.submit(self.take, names))
            if len(waiting) > 2 * self.num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    @torch.inference_mode()
    def take(self, names: list[str]) -> Part:
        """Decode images and run the network on them, padded to the shape of a full batch."""
        pixels, known, bad = decode(names, self.network, self.at_once)
        if not known:
            return Part(len(names), [], bad)
        on_device = pixels.to(self.network.device, non_blocking=True)
        with self.turn:
            vectors = self.compute(self.lean, on_device)
        rows = vectors.cpu().numpy()[: len(known)]
        if not np.isfinite(rows).all():
            raise WeightsError("the network's vectors are not finite: its weights are damaged, or overflow")
        return Part(len(names), [each._replace(vector=row) for each, row in zip(known, rows, strict=True)], bad)

    @torch.inference_mode()
    def use_compiled(self) -> None:
        """Switch to a compiled network; if torch.compile fails, keep this one and warn."""
        lean = self.network.lean(DTYPES[self.precision], compiled=True)
        side = self.network.storage_size
        try:
            with self.turn:
                black = torch.zeros(self.at_once, side, side, 3, dtype=torch.uint8, device=self.network.device)
                self.compute(lean, black)
        except Exception as error:
            self.talk.warn(f"torch.compile does not work here, continuing without it ({reason_of(error)})")
        else:
            self.lean = lean


def decode(names: Sequence[str], network: Network, batch: int) -> tuple[Tensor, list[Result], list[BadFile]]:
    """Decode images, at most `batch`, to the network's stored pixels.

    Returns:
        uint8 [batch, S, S, 3], the readable images first, then black ones; in pinned memory for a GPU. The readable
        images, whose vectors are still empty. The unreadable images.
    """
    side, interpolation = network.storage_size, network.preprocessing.interpolation
    pixels = torch.zeros(batch, side, side, 3, dtype=torch.uint8, pin_memory=network.device.type == "cuda")
    known: list[Result] = []
    bad: list[BadFile] = []
    for name in names:
        try:
            data = read_file(name)
            with open_image(io.BytesIO(data)) as image:
                stored = image.size
                pixels[len(known)] = torch.from_numpy(decode_square(image, side, interpolation))
                width, height = stored[::-1] if orientation(image) > 4 else stored  # a TIFF's size is upright already
        except UnreadableImage as error:
            bad.append(BadFile(name, str(error)))
        else:
            content_hash = hashlib.blake2b(data, digest_size=16).digest()  # as `b2sum -l 128` gives it
            known.append(Result(name, NO_VECTOR, width, height, content_hash))
    return pixels, known, bad


def with_precision(
    network: Network, compute: Compute, asked: str, num_images: int, first: Callable[[int], Tensor], talk: Talk
) -> tuple[Network, str]:
    """The network prepared for inference, and the name of the precision it computes in.

    `asked` "auto" is bf16 if the hardware has it, the job is long enough, and the first images' vectors stay the same.
    `first(count)` returns at most `count` readable images, uint8 [N, S, S, 3].

    Raises UsageError for int8 on hardware that lacks it.
    """
    if asked in DTYPES:
        return network.lean(DTYPES[asked]), asked
    tried = "int8" if asked == "int8" else "bf16"
    if tried == "int8" and not has_vnni(network.device):
        raise UsageError("--precision int8 needs a CPU with VNNI: leave it out, or take bf16")
    if tried == "bf16" and (not bf16_pays(network.device) or num_images <= SHORT_JOB):
        return network.lean(torch.float32), "fp32"
    sample = first(CALIBRATION if tried == "int8" else COMPARED)
    lean = network.in_int8(sample) if tried == "int8" else network.lean(torch.bfloat16)
    sample = sample[:COMPARED]
    cosine = torch.nn.functional.cosine_similarity(compute(network, sample), compute(lean, sample)).min().item()
    taken = tried if tried == "int8" or cosine >= SAME_DIRECTION else "fp32"
    talk.say(
        f"precision: {taken}; in {tried} the cosine to fp32 is at least {cosine:.6f} on the first {len(sample)} images"
        + ("" if taken == tried else f", below {SAME_DIRECTION}")
    )
    if tried == "int8" and cosine < USABLE:
        talk.warn(f"int8 changes this network's vectors notably (cosine {cosine:.4f}): take bf16 or fp32")
    return (lean if taken == tried else network.lean(torch.float32)), taken
