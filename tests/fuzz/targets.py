"""The parsers of files that others may have made, with valid files for them, and ways to spoil those.
A target reads one spoiled file. It may raise SelfieError, which the command line shows as one line, nothing else."""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from running import SMALL, selfie

from selfie_cli import config, option, runs
from selfie_cli.commands.push import published_with_card
from selfie_cli.data.bad_files import load_bad
from selfie_cli.data.cache import PixelCache
from selfie_cli.data.duplicates import Marks, load_marks, save_marks
from selfie_cli.data.images import decode_square
from selfie_cli.data.parquet import Parquet
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Source
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import UnreadableImage
from selfie_cli.files import write_json, write_json_lines
from selfie_cli.inference import networks, vector_files
from selfie_cli.inference.stream import Result
from selfie_cli.reporting.page import Page, describing
from selfie_cli.reporting.record import details, heading_of, results, training
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import checksums, load_state, optimizer_tensors, save_state
from selfie_cli.training.metrics import cut_metrics
from selfie_cli.weights import load_weights, save_weights
from tests.data.pictures import png, write_parquet

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"


def write_runs(folder: Path, images: Path, pretrained: Path, finetuned: Path) -> None:
    """Runs of every verb and method, without weights."""
    made = {"paper": pretrained, "hybrid": finetuned}
    made |= {name: GOLDEN / name for name in ("finished", "finetuned", "stopped")}
    made |= {name: folder.with_name(name) for name in ("byol", "curve")}
    words = ("--method", "byol", *SMALL, "--hidden", 16, "--width", 8, "--steps", 1)
    selfie("pretrain", images, *words, "--out", made["byol"])
    words = ("--fractions", "0.5,1", "--seeds", 1, "--steps", 2, "--lr", 0.01, *SMALL[2:])
    selfie("curve", "--dataset", images, "--from", pretrained, *words, "--out", made["curve"])
    for name, run in made.items():
        shutil.copytree(run, folder / name, ignore=shutil.ignore_patterns("model.safetensors", "*.html", "*.svg"))
        for kind, about in {"bad_files": {"reason": "cut"}, "seen_test_images": {"kind": "copy", "run": "r"}}.items():
            lines = [{"path": f"{path}.jpg", "seen": "b.jpg", **about} for path in "abc\udcff"]
            write_json_lines(folder / name / f"{kind}.jsonl", lines)
    selfie("eval", finetuned, "--dataset", images, "--device", "cpu")
    shutil.copy(next(finetuned.glob("eval-*.json")), folder / "hybrid")


def read_run(file: Path, rng: Random) -> None:
    """Read a run as the verbs do before they look at weights or images; build its network now and then."""
    run = runs.read_run(file.parent)
    json.dumps(run.config, allow_nan=False)
    with describing(run):
        page = Page()
        heading_of(run)
        details(run, page)
        results(run, page)
        training(run, page)
    if run.finished:
        runs.resolve_from(str(file.parent))
        networks.choose_features(run.derived, None)
        if rng.random() < 0.1:  # takes long
            published_with_card(run, "hf://a/b")
    else:
        runs.open_to_resume(str(file.parent), run.verb)
        for kind in (config.PretrainOptions, config.FinetuneOptions, config.CurveOptions):
            if kind.__name__.lower().startswith(run.verb):
                option.resumed(kind(), run.config["asked"])
    if rng.random() < 0.02 and run.derived.get("backbone") == "resnetv2_18_w16":
        with torch.device("meta"):
            networks.build(run.derived)
            if run.verb == "pretrain":
                networks.build_method(run.derived)


def read_lines(file: Path, rng: Random) -> None:
    read_run(file, rng)
    if file.name == "metrics.jsonl":
        cut_metrics(file, rng.choice((0, 3, 9)))
    if file.name == "bad_files.jsonl":
        assert all(isinstance(each.name, str) and isinstance(each.reason, str) for each in load_bad(file))


def write_tensors(folder: Path) -> None:
    """Weights, marks, a saved state, and cached pixels."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(2, dtype=torch.bfloat16)}
    folder.mkdir()
    save_weights(folder / "model.safetensors", tensors, {"step": 3, "method": "byol"})
    save_marks(folder / "seen.safetensors", Marks(np.arange(3), np.zeros((3, 32), np.uint8)))
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(folder / "state", 3, module.state_dict(), optimizer_tensors(optimizer))
    with contextlib.closing(PixelCache(4, 2, folder / "cache" / "0123456789abcdef-2px", None)) as cache:
        cache.write(np.arange(3), np.zeros((3, 2, 2, 3), np.uint8))


def spoil_state(data: bytes, rng: Random) -> bytes:
    return (mutations.spoil_json if data.startswith(b"{\n") else mutations.spoil_safetensors)(data, rng)


def read_state(file: Path, rng: Random) -> None:
    if file.name != "checksums.json" and rng.random() < 0.9:  # or nothing would come past them
        write_json(file.with_name("checksums.json"), checksums(file.parent))
    module = torch.nn.Linear(3, 2)
    load_state(file.parents[1], module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), Talk())


def read_cache(file: Path, rng: Random) -> None:
    with contextlib.closing(PixelCache(4, 2, file.parent, None)) as cache:
        for index in range(4):
            assert not cache.read(index, into := np.ones((2, 2, 3), np.uint8)) or not into.any()  # black, or not there
        cache.marks()
        cache.write(np.array([3]), np.zeros((1, 2, 2, 3), np.uint8))


def write_images(folder: Path) -> None:
    """Shards, a table, and a list."""
    folder.mkdir()
    for name, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        long = "" if name == "ustar" else "long-" * 30
        with tarfile.open(folder / f"{name}.tar", "w", format=form) as tar:
            for number in range(3):
                for suffix, data in ((".png", png(200)), (".cls", b"3")):
                    member = tarfile.TarInfo(f"photos/{long}{number:04}{suffix}")
                    member.size = len(data)
                    if name == "pax":
                        member.pax_headers = {"mtime": "1.5", "comment": "ü", "GNU.sparse.size": "1"}
                    tar.addfile(member, io.BytesIO(data))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
                member = tarfile.TarInfo("link.png")
                member.type, member.linkname = kind, "/etc/passwd"
                tar.addfile(member)
    write_parquet(folder / "cells.parquet", [png(200)] * 4, [0, 1, 1, None], ["a", "b"])
    (folder / "a.png").write_bytes(png(200))
    (folder / "list.txt").write_bytes(b"# images\na.png\n\n../images/a.png\n./a.png\r\n\xff.png\n")


def read_images(source: Source) -> None:
    for index in range(min(len(source), 8)):
        with contextlib.suppress(UnreadableImage), source.open(index) as image:
            decode_square(image, 8)


def read_table(file: Path, rng: Random) -> None:
    source = Parquet([str(file)])
    read_images(source)
    source.labels()


def read_shard(file: Path, rng: Random) -> None:
    shards, size = Shards([str(file)]), file.stat().st_size
    assert len(shards.keys()) == len(shards.labels()[0]) == len(shards)
    assert all(0 <= first <= first + length <= size for first, length in shards.where[:, 1:].tolist())
    read_images(shards)
    with contextlib.suppress(UnreadableImage):
        if len(shards):  # without images the opening functions refuse it
            shards.read(0, len(shards))


def read_list(file: Path, rng: Random) -> None:
    source = open_unlabelled([str(file)], data_root=file.parent, offline=True, talk=Talk())
    read_images(source)
    assert len(list(source.versions())) == len(source)


def write_vectors(folder: Path) -> None:
    folder.mkdir()
    for suffix in (".jsonl", ".npy", ".parquet"):
        out = folder / f"vectors{suffix}"
        network = {"sha256": "00", "from": "bundled", "run": "x", "features": "whole", "precision": "fp32"}
        with vector_files.vector_writer(out, width=6, network=network) as write:
            for name in ("a.jpg", "b\n.jpg", "ü.jpg", "\udcff.jpg"):
                write(Result(name, np.random.default_rng(0).random(6, np.float32), 3, 4, bytes(16)))


def read_vectors(file: Path, rng: Random) -> None:
    """A spoiled file of names is read beside its matrix."""
    for _ in vector_files.open_vectors(str(file).removesuffix(".rows.jsonl")).pieces():
        pass


def columns(number: int) -> list[pa.Array]:
    """Columns of `number` rows, of many types."""
    values: list[Any] = ["x", b"\xff\x00", 2**62, True, 1.5, [[["x"]]], {"bytes": "x"}, {"bytes": b"x", "path": 3}]
    values += [{"bytes": None, "path": "../../x"}, [1.0] * 6, [None] * 6]
    typed = [([], pa.list_(pa.float32())), ([float("nan")] * 6, pa.list_(pa.float32(), 6))]
    typed += [([2.5] * 6, pa.list_(pa.float16(), 6)), (None, pa.null())]
    made = [pa.array([value] * number, kind) for value, kind in (*((value, None) for value in values), *typed)]
    return [*made, pa.array(["a"] * number).dictionary_encode(), pa.array([[0.5] * (1 + row) for row in range(number)])]


def spoil_table(data: bytes, rng: Random) -> bytes:
    """Return spoiled bytes, or a valid parquet file with other columns or metadata."""
    if rng.random() < 0.5:
        return mutations.spoil(data, rng)
    # Without threads: one that lets go of these bytes, which are Python's, while Python is ending aborts the process.
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    metadata = dict(table.schema.metadata or {})
    if rng.random() < 0.5:
        for key in metadata.keys() & {b"selfie", b"selfie_bad", b"huggingface"}:
            metadata[key] = mutations.spoil_json(metadata[key], rng)
    else:
        at = rng.randrange(table.num_columns)
        name = table.column_names[at] if rng.random() < 0.8 else rng.choice(("path", "vector", "image", "label", "\n"))
        table = table.set_column(at, name, rng.choice(columns(len(table))))
        if rng.random() < 0.1:
            table = table.slice(0, 0)
        if rng.random() < 0.1:
            table = table.append_column(rng.choice(("path", "vector", "x")), rng.choice(columns(len(table))))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


JSON, LINES, TENSORS = mutations.spoil_json, mutations.spoil_lines, mutations.spoil_safetensors
# Pattern of the valid files, a way to spoil one, and the parser.
TARGETS: dict[str, tuple[str, Callable[[bytes, Random], bytes], Callable[[Path, Random], object]]] = {
    "config": ("runs/*/config.json", JSON, read_run),
    "lines": ("runs/*/*.jsonl", LINES, read_lines),
    "results": ("runs/*/results.json", JSON, read_run),
    "evaluation": ("runs/*/eval-*.json", JSON, read_run),
    "weights": ("tensors/model.safetensors", TENSORS, lambda file, rng: load_weights(file)),
    "seen": ("tensors/seen.safetensors", TENSORS, lambda file, rng: load_marks(file)),
    "state": ("tensors/state/*/*", spoil_state, read_state),
    "cache": ("tensors/cache/*/*", mutations.spoil, read_cache),
    "shard": ("images/*.tar", mutations.spoil_tar, read_shard),
    "table": ("images/*.parquet", spoil_table, read_table),
    "list": ("images/list.txt", mutations.spoil, read_list),
    "vectors-jsonl": ("vectors/vectors.jsonl", LINES, read_vectors),
    "vectors-npy": ("vectors/vectors.npy", mutations.spoil, read_vectors),
    "vectors-rows": ("vectors/vectors.npy.rows.jsonl", LINES, read_vectors),
    "vectors-parquet": ("vectors/vectors.parquet", spoil_table, read_vectors),
}
