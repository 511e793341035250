"""selfie embed: a vector for every readable image, rows in input order."""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli import runs
from selfie_cli.config import EmbedOptions
from selfie_cli.data.images import open_image, read_file
from selfie_cli.data.names import Names
from selfie_cli.data.pool import thread_pool
from selfie_cli.data.store import BadFile, storage_size
from selfie_cli.errors import UnreadableImage, UsageError
from selfie_cli.files import TEMPORARY, check_room, remove_leftovers
from selfie_cli.recipes import networks
from selfie_cli.recipes.inference import (
    Emit,
    check_file,
    check_out,
    check_writable,
    conclude,
    content_hash,
    expand,
    run_through,
)
from selfie_cli.recipes.networks import Network
from selfie_cli.recipes.vector_files import (
    AT_LEAST,
    HEADERS,
    PIECES,
    about_of,
    bad_of,
    hashes_of,
    is_ours,
    need_arrow,
    table_writer,
    writing,
)
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.machine import num_cores, prepare

TABLES = (".parquet", ".arrow")
PARTS = "part-*.parquet"
ASIDE = f"{TEMPORARY}old-"
"""Before the names of parts that --overwrite replaces, which stay until all new ones are there. A stopped job goes on
without --overwrite, and must not take old parts for new ones."""
PART = re.compile(r"part-([0-9]{5}|[1-9][0-9]{5,})\.parquet")
CHUNK = 256  # files whose contents are hashed together


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What `embed` did; `--json` prints it. `out` is None where rows went to `emit`.

    images: rows that were written; `unreadable` ones have none. With --append, `known` and `copies` were left out, too:
    those whose contents were in `out`, and further copies of others. left_out: by kind. parts: files that were
    written into a folder; parts_kept: those that were there.
    """

    out: Path | None
    images: int
    unreadable: int
    left_out: dict[str, int]
    known: int
    copies: int
    parts: int
    parts_kept: int


def embed(options: EmbedOptions, *, stdin: Iterable[str], emit: Emit, talk: Talk) -> Embedded:
    """Vectors of all readable images, in input order, to `options.out` or, as they come, to `emit`."""
    out, in_parts = check_table(options)
    names, left_out = expand(options.paths, stdin, talk)
    every_name = names
    run, line = runs.resolve_from(options.from_, talk=talk)
    if run is None:
        raise UsageError("embed needs trained weights: --from a run's folder, or bundled")
    talk.say(line)
    device = prepare(options.device)
    made_by = described(run, networks.choose_features(run.derived, options.features))
    old = group().from_first([] if out is None else tables_at(out, in_parts, options))
    if old:
        options = dataclasses.replace(options, precision=check_same(old, made_by, options))
    num_known, copies = 0, np.empty((0, 2), np.int64)
    if options.append:
        fresh, copies, num_known = without_known(names, hashes_of(old), options.workers, talk)
        names = Names(names[index] for index in fresh.tolist())
        talk.say(f"{num_known:,} images are in {out}, {len(copies):,} are copies of others, {len(names):,} are new")
    shards: dict[int, Shard] = {}
    if in_parts:
        assert out is not None
        shards = {shard.images.start: shard for shard in planned(out, old, names, options, talk)}
    todo = [shard.images for shard in shards.values()] if in_parts else [range(len(names))]
    bad: list[BadFile] = []
    if any(todo):
        network = networks.load_network(run, features=options.features, device=device)
        talk.say(f"vectors: {network.features}, from images resized to {network.image_size} px")
        if run.address == "bundled":
            tell_of_size(names, network.image_size, talk)
        width = width_of(network)
        if out is not None:
            check_room(out, sum(map(len, todo)) * width * AT_LEAST[".parquet" if in_parts else out.suffix])

        def opened(precision: str, images: range, unreadable: list[BadFile]) -> contextlib.AbstractContextManager[Emit]:
            about: dict[str, Any] = {"network": made_by | {"precision": precision}}
            if shards:
                shard = shards[images.start]
                return table_writer(shard.file, width=width, about=about | {"part": shard.about}, bad=unreadable)
            if out is None:
                return contextlib.nullcontext(emit)
            if out.suffix not in TABLES:
                return writing(out)
            return table_writer(out, width=width, about=about, old=old[0] if old else None)

        bad = run_through(
            names,
            network,
            Network.vectors,
            opened,
            options=options,
            what="embedding",
            talk=talk,
            shards=todo if in_parts else (),
            none_is_fine=bool(old),
        )
    num_images = sum(map(len, todo)) - len(bad)
    reasons = {one.name: one.reason for one in bad}
    if in_parts:  # those of earlier calls, too
        assert out is not None
        bad = [one for file in sorted(out.glob(PARTS)) for one in bad_of(file)]
        for file in sorted(out.glob(ASIDE + PARTS)) if group().first and not options.append else ():
            file.unlink()
    for copy, first in copies.tolist() if reasons else ():  # of what was not known to be no image
        if (reason := reasons.get(every_name[first])) is not None:
            bad.append(BadFile(every_name[copy], reason))
    bad = list(dict.fromkeys(bad))  # what cannot be read is tried in each call
    conclude(bad, len(every_name), out, left_out=left_out, strict=options.strict, talk=talk)
    return Embedded(
        out=out,
        images=num_images,
        unreadable=len(bad),
        left_out=left_out.counts,
        known=num_known,
        copies=len(copies),
        parts=len(shards),
        parts_kept=len(old) if in_parts else 0,
    )


def check_table(options: EmbedOptions) -> tuple[Path | None, bool]:
    """--out, tried before the work begins, and whether it is a folder of parts. Raises UsageError."""
    out = None if options.out is None else Path(options.out)
    in_parts = options.shard_rows is not None or (options.append and out is not None and out.is_dir())
    if options.append and options.overwrite:
        raise UsageError("--append keeps what is in --out and --overwrite does not: leave one of them out")
    if (options.append or in_parts) and out is None:
        raise UsageError("--append and --shard-rows go with --out")
    if out is None or not (options.append or in_parts):
        out = check_out(options, tuple(PIECES))
        rows = None if out is None or out.suffix not in HEADERS else Path(f"{out}.rows.jsonl")
        if rows is not None and rows.exists() and not options.overwrite:
            raise UsageError(f"{rows} exists: replace it with --overwrite")
    elif in_parts:
        if out.suffix in PIECES or out.is_file():
            raise UsageError(f"--out {out}: with --shard-rows it is a folder")
        check_writable(out, out)
        check_names(out)
    else:
        check_file(str(out), TABLES, overwrite=True)
    if in_parts or (out is not None and out.suffix in TABLES):
        need_arrow()
    return out, in_parts


def check_names(folder: Path) -> None:
    """Raises UsageError for a file that reads as a part and was not named here: it may hold rows that are there twice,
    or nowhere else."""
    for file in sorted(folder.glob(PARTS)):
        if not PART.fullmatch(file.name):
            raise UsageError(f"{file} is not the name of a part (part-00000.parquet): move it out of the folder")


def tables_at(out: Path, in_parts: bool, options: EmbedOptions) -> list[Path]:
    """The file, or the parts in the folder, to be continued; none with --overwrite.

    Raises UsageError for a folder of other things, and for an empty one where nothing says how large parts are to be.
    """
    if not in_parts:
        return [out] if options.append and out.exists() else []
    parts = sorted(out.glob(PARTS))
    others = [file.name for file in out.iterdir() if not file.name.startswith(TEMPORARY)]
    if others and not parts and not any(out.glob(ASIDE + PARTS)):
        raise UsageError(f"--out {out} holds other things ({others[0]}): name an empty or a new folder")
    if not parts and options.shard_rows is None:
        raise UsageError(f"--out {out} holds no parts yet: say with --shard-rows how many images each is to have")
    if options.overwrite and (foreign := [file for file in parts if not is_ours(file)]):
        raise UsageError(f"{foreign[0]} is not by selfie embed, which will not delete it: move it out of the folder")
    return [] if options.overwrite else parts


def described(run: Run, features: str) -> dict[str, Any]:
    """What a file of vectors says about the network that made them, but for the precision."""
    with run.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "run": run.name,
        "from": run.address or str(run.path.resolve()),
        "sha256": digest,
        "features": features,
        "image_size": run.derived["image_size"],
    }


def check_same(old: list[Path], made_by: dict[str, Any], options: EmbedOptions) -> Any:
    """The precision to go on in. Raises UsageError if the files are of another network, or cannot be gone on with."""
    for file in old:
        was = about_of(file).get("network", {})
        for what in ("sha256", "features"):
            if was.get(what) != made_by[what]:
                ours, theirs = (f"{each.get('run')}, {what} {str(each.get(what))[:12]}" for each in (made_by, was))
                raise UsageError(f"{file} was made by another network ({theirs}) than this one ({ours}): see --from")
        asked, found = options.precision, was.get("precision")
        if found == "int8" and (options.append or asked == "auto"):
            raise UsageError(f"{file} is of --precision int8, whose scales suit the images of one job: embed all anew")
        if asked not in ("auto", found) or found not in ("fp32", "bf16", "int8"):
            raise UsageError(f"{file} is of --precision {found}, not {asked}: go on in that one")
        options = dataclasses.replace(options, precision=found)
    return options.precision


def without_known(
    names: Names, known: NDArray[np.bytes_], workers: int | None, talk: Talk
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Which images are new by their contents, in order; of further copies of those [copy, first]; how many are known.

    Files that cannot be read count as new: they will be reported.
    """
    here = group()

    def hashes(indices: Sequence[int]) -> list[bytes]:
        found = []
        for index in indices:
            found.append(b"")
            with contextlib.suppress(UnreadableImage):
                data = read_file(names[index])
                found[-1] = content_hash(data) if data else b""
        return found

    mine = range(len(names) * here.rank // here.world, len(names) * (here.rank + 1) // here.world)
    chunks = [mine[start : start + CHUNK] for start in range(0, len(mine), CHUNK)]
    digests = np.zeros(len(mine), "S16")
    with (
        thread_pool(workers or num_cores(), "hashing") as pool,
        talk.track("comparing contents", len(mine)) as advance,
    ):
        for number, found in enumerate(pool.map(hashes, chunks)):
            digests[number * CHUNK : number * CHUNK + len(found)] = found
            advance(number * CHUNK + len(found), "")
    digests = np.concatenate(here.gather(digests))
    readable = digests != b""
    values, first, which = np.unique(digests, return_index=True, return_inverse=True)
    seen = np.isin(values, known)[which] & readable
    original = first[which] == np.arange(len(digests))
    copies = np.flatnonzero(readable & ~seen & ~original)
    pairs = np.stack([copies, first[which[copies]]], axis=1)
    return np.flatnonzero(~readable | (original & ~seen)), pairs, int(seen.sum())


@dataclass(frozen=True)
class Shard:
    """A file to be written, and the images whose vectors it will hold. `about` tells parts of different jobs apart."""

    file: Path
    images: range
    about: dict[str, Any]


def planned(folder: Path, old: list[Path], names: Names, options: EmbedOptions, talk: Talk) -> list[Shard]:
    """The parts that are not there yet. What a killed process left is removed; with --overwrite, parts are put aside.

    Raises UsageError if parts that are there are of other images, or were cut otherwise.
    """
    abouts = {file: about_of(file).get("part", {}) for file in old}
    rows = options.shard_rows or next(iter(abouts.values())).get("shard_rows")
    if not isinstance(rows, int):
        raise UsageError(f"{old[0]} does not say how many images a part has: give --shard-rows")
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    first = 1 + max((int(file.stem[5:]) for file in old), default=-1) if options.append else 0
    shards = []
    for number, start in enumerate(range(0, len(names), rows)):
        about = {"number": first + number, "shard_rows": rows, "inputs": digest.hexdigest()}
        images = range(start, min(start + rows, len(names)))
        shards.append(Shard(folder / f"part-{first + number:05d}.parquet", images, about))
    if not options.append:
        expected = {shard.file: shard.about for shard in shards}
        for file in old:
            if abouts[file] != expected.get(file):
                raise UsageError(
                    f"{file} is of another job (other images, or another --shard-rows): name a new folder, add to this "
                    "one with --append, or replace it with --overwrite"
                )
        shards = [shard for shard in shards if shard.file not in abouts]
        if old:
            talk.say(f"{len(old):,} parts are in {folder}, {len(shards):,} are to be made")
    if group().first:
        remove_leftovers(folder)
        for file in sorted(folder.glob(PARTS)) if options.overwrite else ():
            aside = file.with_name(ASIDE + file.name)
            if aside.exists():  # the new part of a job that was stopped
                file.unlink()
            else:
                file.rename(aside)
    group().wait()
    return shards


def width_of(network: Network) -> int:
    """D of the network's vectors."""
    side = storage_size(network.image_size)
    return network.vectors(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=network.device)).shape[1]


def tell_of_size(names: Sequence[str], image_size: int, talk: Talk) -> None:
    """Warn if the small bundled network is to look at pictures far larger than what it was made for."""
    for name in names:
        with contextlib.suppress(UnreadableImage), open_image(name) as image:
            if min(image.size) > 2 * image_size:
                talk.warn(
                    f"{name} is {image.width} x {image.height}; the bundled network was made for {image_size} px and "
                    "sees a small copy. For photos, pretrain on your own: selfie pretrain FOLDER --image-size 224"
                )
            return
