"""selfie similar: the images most like a photo, or groups of near-duplicates, among those that were embedded."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfie_cli import runs
from selfie_cli.config import SimilarOptions
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.memory import available_memory
from selfie_cli.data.names import Names
from selfie_cli.errors import DataError, HubError, RunError, UsageError
from selfie_cli.evaluation.neighbours import Groups, Nearest, join_near, unit
from selfie_cli.files import read_json, replacing, write_json
from selfie_cli.hub import is_address
from selfie_cli.recipes import networks
from selfie_cli.recipes.embed import described
from selfie_cli.recipes.inference import decode, expand
from selfie_cli.recipes.vector_files import VectorFile, open_vectors
from selfie_cli.talk import Talk
from selfie_cli.training.machine import num_cores, prepare

MANY = 1_000_000
"""Vectors beyond which an index is used, if there is one."""
SAME = 0.998
"""The cosine from which images count as near-duplicates: see docs/guide/vectors.md."""


@dataclass(frozen=True, kw_only=True)
class Match:
    rank: int
    cosine: float
    path: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    query: str
    matches: list[Match]


@dataclass(frozen=True, kw_only=True)
class Member:
    """cosine: to the group's first. copy: whether its file has the same bytes as the first's."""

    path: str
    cosine: float
    copy: bool


@dataclass(frozen=True, kw_only=True)
class Similar:
    """What was asked of `file`, and found: `answers` to queries, or `groups`, the largest first. search: exact, or
    usearch."""

    file: str
    num_vectors: int
    search: str
    left_out: dict[str, int] = field(default_factory=dict)
    answers: list[Answer] | None = None
    threshold: float | None = None
    groups: list[list[Member]] | None = None


def similar(options: SimilarOptions, *, stdin: Iterable[str], talk: Talk) -> Similar:
    """Search what `options.in_` holds. Raises UsageError, DataError."""
    if options.in_ is None:
        raise UsageError("say where to look: --in what selfie embed --out has written")
    if options.duplicates == bool(options.query):
        raise UsageError("name query images, or give --duplicates" + " without" * options.duplicates)
    if options.threshold is not None and not options.duplicates:
        raise UsageError("--threshold goes with --duplicates: leave it out")
    if options.duplicates and options.search == "usearch":
        raise UsageError("--search usearch is for queries; --duplicates compares all pairs: leave it out")
    if options.duplicates and (options.from_, options.device, options.precision) != (None, "auto", "auto"):
        raise UsageError("--duplicates compares the vectors that are there: leave --from, --device, --precision out")
    if options.search == "usearch":
        need_usearch()
    file = open_vectors(options.in_)
    return duplicates(file, options, talk) if options.duplicates else answered(file, options, stdin, talk)


def answered(file: VectorFile, options: SimilarOptions, stdin: Iterable[str], talk: Talk) -> Similar:
    """The vectors of highest cosine to each query. A query that is in the file is found like any other."""
    names, queries, left_out = embedded(file, options, stdin, talk)
    begun = time.perf_counter()
    index = load_index(file, options, talk)
    if index is not None:
        check_width(file, queries.shape[1], index.ndim)
        found = index.search(unit(queries), min(options.top, len(index)), threads=num_cores())
        shape = (len(names), -1)
        rows = np.asarray(found.keys).reshape(shape).astype(np.int64)
        cosines = 1 - np.asarray(found.distances).reshape(shape)
        paths, num_vectors = file.names_at(rows), len(index)
    else:
        nearest = Nearest(queries, options.top)
        paths = {}
        for piece in file.pieces():
            check_width(file, queries.shape[1], piece.vectors.shape[1])
            first = nearest.num_seen
            nearest.add(piece.vectors)
            paths |= {row: piece.names[row - first] for row in set(nearest.rows[nearest.rows >= first].tolist())}
        rows, cosines, num_vectors = nearest.rows, nearest.cosines, nearest.num_seen
    talk.say(f"{num_vectors:,} vectors searched in {time.perf_counter() - begun:.1f} s")
    if index is None and num_vectors > MANY:
        talk.say("--search usearch builds an index beside the file, with which later searches take a moment")
    answers = []
    for name, places, values in zip(names, rows.tolist(), cosines.tolist(), strict=True):
        ranked = enumerate(zip(places, values, strict=True), 1)
        matches = [
            Match(rank=rank, cosine=round(value, 6), path=paths[row]) for rank, (row, value) in ranked if row >= 0
        ]
        answers.append(Answer(query=name, matches=matches))
    search = "exact" if index is None else "usearch"
    return Similar(
        file=str(file.path), num_vectors=num_vectors, search=search, answers=answers, left_out=left_out.counts
    )


def check_width(file: VectorFile, ours: int, theirs: int) -> None:
    if ours != theirs:
        raise UsageError(f"{file.path} holds vectors of {theirs} numbers, this network's have {ours}: see --from")


def embedded(
    file: VectorFile, options: SimilarOptions, stdin: Iterable[str], talk: Talk
) -> tuple[Names, NDArray[np.float32], LeftOut]:
    """The queries, their vectors, float32 [M, D], by the network that made the file, and what was left out.

    Raises UsageError if that is not the network asked for, RunError if it is not there, DataError for a query that
    cannot be read.
    """
    made_by: dict[str, Any] = file.about.get("network", {})
    if not made_by:
        talk.say(f"{file.path} does not say which network made it: taken to be the following")
    asked = options.from_ or made_by.get("from")
    try:
        # What a file names is not fetched, only what the user names.
        run, line = runs.resolve_from(asked, offline=options.from_ is None, talk=talk)
    except (RunError, HubError) as error:
        if options.from_ is not None or not made_by:
            raise
        hint = (
            f"give --from {asked} to fetch it" if is_address(str(asked)) else f"say where that is with --from ({error})"
        )
        raise RunError(f"{file.path} was made by {asked}, which is not here: {hint}") from None
    if run is None:
        raise UsageError("similar needs the weights that the file was made with: --from a run's folder")
    talk.say(line)
    if made_by and described(run, made_by["features"])["sha256"] != made_by["sha256"]:
        raise UsageError(
            f"{file.path} was made by other weights ({made_by['run']}, sha256 {made_by['sha256'][:12]}) than {run}'s: "
            "name those with --from, or embed anew"
        )
    device = prepare(options.device)
    features = made_by.get("features") if run.derived["method"] == "selfie" else None
    network = networks.load_network(run, features=features, device=device)
    precision = made_by.get("precision") if options.precision == "auto" else options.precision
    lean = network.lean(torch.bfloat16 if precision == "bf16" else torch.float32)
    names, left_out = expand(options.query, stdin, talk)
    at_once = min(len(names), networks.images_at_once(device, network.image_size))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(names), at_once):
            pixels, facts, bad = decode(names, range(start, min(start + at_once, len(names))), network, at_once)
            if bad:
                raise DataError(f"{bad[0].name} cannot be read: {bad[0].reason}")
            parts.append(lean.vectors(pixels.to(device)).cpu().numpy()[: len(facts)])
    return names, np.concatenate(parts), left_out


def duplicates(file: VectorFile, options: SimilarOptions, talk: Talk) -> Similar:
    """Groups of images that are joined by a cosine of the threshold or more, or by equal contents."""
    threshold = SAME if options.threshold is None else options.threshold
    names: list[str] = []
    hashes: list[str | None] = []
    parts: list[NDArray[np.float32]] = []
    for piece in file.pieces():
        names += piece.names
        hashes += piece.hashes or [None] * len(piece.names)  # another program's rows may have none
        parts.append(unit(piece.vectors))
        if 2 * len(names) * parts[0].shape[1] * 4 > available_memory():
            raise DataError(f"{file.path} does not fit into memory: look for near-duplicates in a part of it at a time")
    vectors = np.concatenate(parts)
    parts = []
    same: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        if digest is not None:
            same.setdefault(digest, []).append(row)
    groups = Groups(len(names))
    for rows in same.values():
        if len(rows) > 1:
            groups.join(np.array(rows, np.int64))
    with talk.track("comparing", len(names)) as advance:
        join_near(groups, vectors, threshold, lambda done: advance(done, ""))
    shown = []
    for group in groups.found():
        first = int(group[0])
        cosines = (vectors[group] @ vectors[first]).clip(-1, 1).tolist()
        members = [
            Member(
                path=names[row],
                cosine=round(cosine, 6),
                copy=row == first or (hashes[row] is not None and hashes[row] == hashes[first]),
            )
            for row, cosine in zip(group.tolist(), cosines, strict=True)
        ]
        shown.append(members)
    return Similar(file=str(file.path), num_vectors=len(names), search="exact", threshold=threshold, groups=shown)


def need_usearch() -> None:
    """Raises UsageError if there is no usearch."""
    if find_spec("usearch") is None:
        raise UsageError("an index needs usearch: pip install 'selfie-cli[search]'; or give --search exact")


def load_index(file: VectorFile, options: SimilarOptions, talk: Talk) -> Any:
    """The usearch index beside the file, made if it is not there or older; None if the search is to be exact.

    One that was not made here, on this disk, is made anew: usearch trusts what it maps, and nothing tells whose it is.
    With --search auto, one that is there and of more than MANY rows is taken, and none is made.
    """
    place = file.path.with_name(file.path.name + ".usearch")
    versions = [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in file.files]
    fresh = False
    with contextlib.suppress(OSError, ValueError):  # none, or damaged: then it is made again
        fresh = read_json(Path(f"{place}.json")) == {"files": versions, "made_here": mark_of(place)}
    if options.search == "exact" or (options.search == "auto" and not fresh):
        return None
    need_usearch()
    from usearch.index import Index

    if fresh:
        try:
            index: Any = Index.restore(str(place), view=True)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{place} is damaged ({error}): remove it") from None
        return index if len(index) > MANY or options.search == "usearch" else None
    talk.say(f"building {place}, which later searches use until {file.path} changes")
    index, done = None, 0
    for piece in file.pieces():
        if index is None:
            index = Index(ndim=piece.vectors.shape[1], metric="cos", dtype="f16")
        index.add(np.arange(done, done + len(piece.names)), unit(piece.vectors), threads=num_cores())
        done += len(piece.names)
    assert index is not None  # a file without vectors has raised
    try:
        with replacing(place) as temporary:
            index.save(str(temporary))
    except RuntimeError as error:  # it does not say more
        raise DataError(f"{place} cannot be written ({error}): make room there, or give --search exact") from None
    write_json(Path(f"{place}.json"), {"files": versions, "made_here": mark_of(place)})
    return index


def mark_of(place: Path) -> list[int]:
    """What nobody can give a file by packing, copying or touching it: its number, and when it came to be as it is."""
    found = place.stat()
    return [found.st_size, found.st_ino, found.st_ctime_ns]
