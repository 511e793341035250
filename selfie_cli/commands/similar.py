"""selfie similar: search embedded images for those most similar to a photo, or for groups of near-duplicates."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from selfie_cli import runs
from selfie_cli.config import SimilarOptions
from selfie_cli.data.layout import LeftOut
from selfie_cli.data.memory import available_memory
from selfie_cli.errors import DataError, HubError, RunError, UsageError
from selfie_cli.files import sha256_of
from selfie_cli.hub import is_address
from selfie_cli.inference import networks
from selfie_cli.inference.neighbours import Nearest, near_groups, unit
from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import Result, Stream, named_images
from selfie_cli.inference.vector_files import VectorFile, open_vectors
from selfie_cli.runs import Run
from selfie_cli.talk import Talk, counted
from selfie_cli.training.hardware import prepare

SAME = 0.998
"""Smallest cosine of near-duplicates: see docs/guide/vectors.md."""


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
    """cosine: to the group's first member. copy: whether its file has the same bytes as that of the first member; None
    if the vectors came without hashes of the files."""

    path: str
    cosine: float
    copy: bool | None


@dataclass(frozen=True, kw_only=True)
class Similar:
    """The result of a search in `file`: `answers` to queries, or `groups`, the largest first."""

    file: str
    num_vectors: int
    left_out: dict[str, int] = field(default_factory=dict)
    answers: list[Answer] | None = None
    threshold: float | None = None
    groups: list[list[Member]] | None = None


def similar(options: SimilarOptions, *, stdin: Iterable[str], talk: Talk) -> Similar:
    """Search the vectors in `options.in_`. Raise UsageError, DataError."""
    if options.in_ is None:
        raise UsageError("--in is missing: give the file or folder that selfie embed --out has written")
    if options.duplicates == bool(options.query):
        raise UsageError("name query images, or give --duplicates" + " without" * options.duplicates)
    if options.threshold is not None and not options.duplicates:
        raise UsageError("--threshold goes with --duplicates: leave it out")
    if options.duplicates and (options.from_, options.device, options.precision) != (None, "auto", "auto"):
        raise UsageError("--duplicates compares existing vectors: leave --from, --device and --precision out")
    file = open_vectors(options.in_)
    return duplicates(file, options, talk) if options.duplicates else answered(file, options, stdin, talk)


def answered(file: VectorFile, options: SimilarOptions, stdin: Iterable[str], talk: Talk) -> Similar:
    """Find the vectors with the highest cosine to each query. A query that is in the file is found like any other."""
    queries, left_out = embedded(file, options, stdin, talk)
    width = len(queries[0].vector)
    begun = time.perf_counter()
    nearest = Nearest(np.stack([query.vector for query in queries]), options.top)
    paths: dict[int, str] = {}
    for piece in file.pieces():
        if (found := piece.vectors.shape[1]) != width:
            raise UsageError(
                f"{file.path} holds vectors of {found} values, this network gives {width}: choose another --from"
            )
        first = nearest.num_seen
        nearest.add(piece.vectors)
        paths |= {row: piece.names[row - first] for row in nearest.rows.unique().tolist() if row >= first}
    talk.say(f"{counted(nearest.num_seen, 'vector')} searched in {time.perf_counter() - begun:.1f} s")
    answers = []
    for query, rows, cosines in zip(queries, nearest.rows.tolist(), nearest.cosines.tolist(), strict=True):
        ranked = enumerate(zip(rows, cosines, strict=True), 1)
        matches = [Match(rank=rank, cosine=round(cosine, 6), path=paths[row]) for rank, (row, cosine) in ranked]
        answers.append(Answer(query=query.name, matches=matches))
    return Similar(file=str(file.path), num_vectors=nearest.num_seen, answers=answers, left_out=left_out.counts)


def embedded(
    file: VectorFile, options: SimilarOptions, stdin: Iterable[str], talk: Talk
) -> tuple[list[Result], LeftOut]:
    """Return the queries' vectors, computed by the network that made the file, and a record of skipped inputs.

    Raise UsageError if the run has other weights than that network, DataError for a query that cannot be read.
    """
    run = network_of(file, options.from_, talk)
    features = file.network.get("features") if networks.keeps_patches(run.derived) else None
    network = networks.load_network(run, features=features, device=prepare(options.device))
    precision = file.network.get("precision") if options.precision == "auto" else options.precision
    names, left_out = named_images(options.query, stdin, talk)
    job = Stream(
        names=names,
        network=network,
        compute=Network.vectors,
        what="embedding",
        precision="bf16" if precision == "bf16" else "fp32",
        workers=options.workers,
        compile="off",
        talk=talk,
    )
    with job as stream:
        queries = list(stream)
    if stream.bad:
        raise DataError(f"{stream.bad[0].name} cannot be read: {stream.bad[0].reason}")
    return queries, left_out


def network_of(file: VectorFile, from_: str | None, talk: Talk) -> Run:
    """Return the run whose network made the file; --from must name it if the file does not.

    A file may come from a stranger, so a network on the Hub is downloaded only if the user names it. Raise RunError if
    the run does not exist, UsageError if its weights are not those that made the file.
    """
    made_by = file.network
    if not made_by and from_ is None:
        raise UsageError(f"{file.path} does not name the network that made it: name that with --from")
    asked = from_ or made_by.get("from")
    try:
        run = runs.weights_for("similar", asked, offline=from_ is None, talk=talk)
    except (RunError, HubError) as error:
        if from_ is not None or not made_by:
            raise
        hint = f"say where that is with --from ({error})"
        if is_address(str(asked)):
            hint = f"give --from {asked} to fetch it"
        raise RunError(f"{file.path} was made by {asked}, which is not here: {hint}") from None
    if made_by and sha256_of(run.weights) != made_by["sha256"]:
        raise UsageError(
            f"{file.path} was made by other weights ({made_by['run']}, sha256 {made_by['sha256'][:12]}) than {run}'s: "
            "name those with --from, or embed again"
        )
    return run


def duplicates(file: VectorFile, options: SimilarOptions, talk: Talk) -> Similar:
    """Return groups of images that are linked by a cosine of at least the threshold or by equal contents."""
    threshold = SAME if options.threshold is None else options.threshold
    names: list[str] = []
    hashes: list[str | None] = []
    parts: list[NDArray[np.float32]] = []
    for piece in file.pieces():
        names += piece.names
        hashes += piece.hashes or [None] * len(piece.names)
        parts.append(unit(piece.vectors))
        if 2 * len(names) * parts[0].shape[1] * 4 > available_memory():
            raise DataError(f"{file.path} does not fit into memory: search it in parts")
    vectors = np.concatenate(parts)
    first_with: dict[str | int, int] = {}  # rows of other programs may have no hash
    same = [first_with.setdefault(row if each is None else str(each), row) for row, each in enumerate(hashes)]
    with talk.track("comparing", len(names)) as advance:
        groups = near_groups(vectors, np.array(same), threshold, lambda done: advance(done, ""))
    found = []
    for group in groups:
        first = int(group[0])
        cosines = (vectors[group] @ vectors[first]).clip(-1, 1).tolist()
        copies = [None if hashes[row] is None else same[row] == first for row in group]
        ranked = zip(group.tolist(), cosines, copies, strict=True)
        found.append([Member(path=names[row], cosine=round(each, 6), copy=copy) for row, each, copy in ranked])
    return Similar(file=str(file.path), num_vectors=len(names), threshold=threshold, groups=found)
