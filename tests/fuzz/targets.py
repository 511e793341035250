"""Every parser of files that others may have made, what it is fed with, and how that is spoiled.

A target reads one spoiled file. It may raise SelfieError, which the command line shows as one line, and nothing else.
"""

import contextlib
import dataclasses
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import torch
from PIL import Image

from selfie_cli import config, option, runs
from selfie_cli.commands.eval import Evaluated
from selfie_cli.commands.push import published_with_card
from selfie_cli.commands.report import describing
from selfie_cli.comparison.trainer import known_accuracy
from selfie_cli.data import hub_sets
from selfie_cli.data.duplicates import Marks, load_marks, save_marks
from selfie_cli.data.images import decode_square
from selfie_cli.data.parquet import Parquet
from selfie_cli.data.rows import FILES, MARKS, PIXELS, Rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.store import load_bad
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import UnreadableImage
from selfie_cli.files import write_json
from selfie_cli.inference import networks, vector_files
from selfie_cli.inference.stream import Result
from selfie_cli.reporting.facts import details, heading_of, read_lines, results, training
from selfie_cli.reporting.page import Page
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import checksums, load_state, save_state
from selfie_cli.training.metrics import cut_metrics
from selfie_cli.weights import load_weights, save_weights

Mutation = Callable[[bytes, random.Random], bytes]
Reader = Callable[[Path, random.Random], Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """`make` writes valid files into a folder and returns their paths; `read` is given the path of a spoiled one."""

    make: Callable[[Path], list[Path]]
    spoil: Mutation
    read: Reader


OPTIONS = (config.PretrainOptions, config.FinetuneOptions, config.CurveOptions)
DERIVED: dict[str, Any] = {"backbone": "resnetv2_18_w16", "stem": "3x3", "image_size": 32, "batch_size": 8, "steps": 9}
DERIVED |= {"micro_batch": 8, "precision": "fp32", "compiles": True, "processes": 1, "optimizer": "sgd", "lr": 0.1}
DERIVED |= {"weight_decay": 1e-4, "warmup_steps": 1, "checkpointed": False, "recipe": "best"}
VIEWS = {"hidden": 16, "width": 8, "min_crop": 0.2, "jitter": 1.0, "blur": 0.0}
PATCHES = {"encoder_positions": True, "factorized_positions": False, "final_norm": True, "apart": False}
NETWORKS: list[dict[str, Any]] = [
    {"method": "selfie", "selfie": VIEWS | {"num_stages": 3, "num_views": 4, "attraction": 200.0, "distortion": 0.2}},
    {"method": "selfie", "patch_size": 8, "selfie": PATCHES | {"mask_ratio": 0.25, "views": 1, "logit_scale": "dot"}},
    {"method": "byol", "byol": VIEWS | {"tau": 0.97, "solarize": 0.0}},
    {"method": "simclr", "simclr": VIEWS | {"temperature": 0.2}},
    {"method": "finetune", "arch": "resnet", "pretraining": "byol", "classes": ["a", "b"]},
    {"method": "finetune", "arch": "hybrid", "classes": ["a", "b"], "hybrid": PATCHES | {"patch_size": 8}},
]
NETWORKS[0]["selfie"] |= {"view_scale": 0.5, "max_crop": 0.7}
NETWORKS[1]["selfie"]["flip"] = True


def run_in(folder: Path, network: dict[str, Any], kind: type[Any], *, finished: bool = True) -> Run:
    """A run's folder without weights."""
    verb = kind.__name__.removesuffix("Options").lower()
    asked = dataclasses.asdict(kind(**({"data": ("cifar10",)} if verb == "pretrain" else {"dataset": "cifar10"})))
    data = {"images": 9, "fingerprint": "ab", "fingerprints": {"train": "a"}, "pinned": {}, "unreadable": 1}
    more = {"from": [{"path": "hf://a/b", "sha256": "00"}]} if verb != "pretrain" else {}
    more |= {"data": data | {"seen_test_images": 2}}
    run = runs.create(folder, verb=verb, asked=asked, derived=DERIVED | network | {"steps_of_shares": [9]}, **more)
    last = {"loss": 1.0, "pretext_accuracy": 0.5, "chance": 0.1, "feature_std": 0.2, "effective_rank": 5.0}
    measured = {"step": 9, "seconds": 1.0, "images_per_second": 9.0, "data_wait": 0.1, "last": last}
    run.update(measured=measured | {"device": "cpu", "precision": "fp32", "compiled": False, "threads": 1})
    if finished:
        run.finish({})
    return run


def make_configs(folder: Path) -> list[Path]:
    made = []
    for number, network in enumerate(NETWORKS):
        kind = OPTIONS[0] if network["method"] != "finetune" else OPTIONS[1 + number % 2]
        for finished in (True, False):
            made.append(run_in(folder / f"{number}{finished}", network, kind, finished=finished).path / "config.json")
    return made


def read_config(file: Path, rng: random.Random) -> None:
    """What every verb does with a run before it looks at weights or images; a network is built now and then."""
    run = runs.read_run(file.parent)
    json.dumps(run.config, allow_nan=False)  # as it is written by whoever goes on with it, or pulls it
    runs.describe(run)
    page = Page()
    with describing(run):
        heading_of(run)
        details(run, page)
    if run.finished:
        networks.choose_features(run.derived, None)
        if rng.random() < 0.2:  # takes long
            published_with_card(run, "hf://a/b")
    else:
        runs.open_to_resume(str(file.parent), run.verb)
        for kind in OPTIONS:
            if kind.__name__.lower().startswith(run.verb):
                option.resumed(kind(), run.config["asked"])
    if rng.random() < 0.02 and run.derived.get("backbone") == "resnetv2_18_w16":
        with torch.device("meta"):
            networks.build(run.derived)
            if run.verb == "pretrain":
                networks.build_method(run.derived)


METRICS = {"loss": 1.5, "pretext_accuracy": 0.5, "chance": 0.1, "lr": 0.1, "images_per_second": 99.0, "data_wait": 0.0}


def make_metrics(folder: Path) -> list[Path]:
    run = run_in(folder / "run", NETWORKS[0], OPTIONS[0], finished=False)
    lines = [json.dumps({"step": step, **METRICS, "feature_std": 0.3, "effective_rank": 9.0}) for step in range(1, 6)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return [run.path / "metrics.jsonl"]


def read_metrics(file: Path, rng: random.Random) -> None:
    run = runs.read_run(file.parent)
    with describing(run):
        heading_of(run)
        training(run, Page())
    cut_metrics(file, rng.choice((0, 3, 9)))
    assert all(line["step"] <= 9 for line in read_lines(file))


def make_bad_files(folder: Path) -> list[Path]:
    run = run_in(folder / "run", NETWORKS[0], OPTIONS[0])
    about = {"bad_files": {"reason": "cut"}, "seen_test_images": {"kind": "copy", "run": "r", "seen": "b.jpg"}}
    for name, each in about.items():
        lines = [json.dumps({"path": f"{path}.jpg", **each}) for path in "abc\udcff"]
        (run.path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return [run.path / f"{name}.jsonl" for name in about]


def read_bad_files(file: Path, rng: random.Random) -> None:
    run = runs.read_run(file.parent)
    with describing(run):
        details(run, Page())
    for each in load_bad(file):
        assert isinstance(each.name, str)
        assert isinstance(each.reason, str)


def make_cell(folder: Path) -> list[Path]:
    write_json(folder / "results.json", {"cell": "selfie-f1-s0", "lr": 0.1, "seed": 0, "accuracy": 0.5, "num_test": 9})
    return [folder / "results.json"]


def make_listing(folder: Path) -> list[Path]:
    """What a data set on the Hub was found to hold, noted in the Hub's cache."""
    file = folder / "datasets--acme--x" / "selfie" / "main.json"
    names = [f"data/{part}-{number:05}-of-00002.parquet" for part in ("train", "test") for number in range(2)]
    write_json(file, {"commit": "0" * 40, "files": {name: [9, "0" * 64] for name in names}})
    for name in names:
        there = file.parents[1] / "snapshots" / ("0" * 40) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.touch()
    return [file]


def read_listing(file: Path, rng: random.Random) -> None:
    from huggingface_hub import constants

    before, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(file.parents[2])
    try:
        hub_sets.fetch("hf://datasets/acme/x", only_train=rng.random() < 0.5, offline=True, talk=Talk())
    finally:
        constants.HF_HUB_CACHE = before


LENGTH = {"steps": 9, "num_held": 9, "half": 0.5, "whole": 0.6, "error": 0.1, "verdict": "flat", "words": "flat"}
ARM = {"name": "selfie", "lr": 0.1, "accuracies": [0.5, 0.6, 0.7], "mean": 0.6, "std": 0.1}
ARM |= {"called": "Selfie", "convergence": LENGTH}
GAIN = {"arm": "selfie", "baseline": "supervised", "gains": [0.1] * 3, "mean": 0.1, "std": 0.1, "interval": [0.0, 0.2]}
POINT = {"fraction": 0.5, "num_labels": 9, "steps": 9, "seeds": [0, 1, 2], "comparisons": [GAIN]}
POINT |= {"rates": [0.1], "warnings": ["not converged"], "notes": ["selfie: Selfie."]}
POINT |= {"arms": [ARM | {"name": "supervised"}, ARM]}
ABOUT = {"run": "run", "dataset": "cifar10", "num_test": 9, "num_classes": 2}
FINETUNED = POINT | ABOUT | {"gains": [0.1] * 3, "gain_mean": 0.1, "gain_std": 0.1, "gain_interval": [0.0, 0.2]}
FINETUNED |= {"sentence": "Better."}
CURVE = ABOUT | {"points": [POINT, POINT], "remarks": {"selfie": "x"}, "sentences": ["Better."], "plots": []}
JUDGED = {"knn": 0.5, "linear": 0.5, "linear_strength": 1.0, "pretext_accuracy": 0.5, "pretext_accuracy_plain": None}
EVALUATED = {field.name: None for field in dataclasses.fields(Evaluated)} | ABOUT
EVALUATED |= {"num_train": 9, "num_seen": 1, "k": 20, "temperature": 0.07, "majority": 0.1, "chance": 0.1}
EVALUATED |= {"trained": JUDGED, "untrained": JUDGED, "classified": {"top1": 0.5}, "classes": ["a"], "split": "test"}


def make_results(folder: Path) -> list[Path]:
    made = []
    for verb, found in (("finetune", FINETUNED), ("curve", CURVE)):
        run = run_in(folder / verb, NETWORKS[4], OPTIONS[1 + (verb == "curve")])
        for name, content in (("results.json", found), ("eval-x.json", EVALUATED)):
            write_json(run.path / name, content)
            made.append(run.path / name)
    return made


def read_outcome(file: Path, rng: random.Random) -> None:
    run = runs.read_run(file.parent)
    page = Page()
    with describing(run):
        heading_of(run)
        results(run, page)
        training(run, page)
    if rng.random() < 0.05:  # takes ten times as long
        published_with_card(run, "hf://a/b")


def make_vectors(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        out = folder / f"vectors{suffix}"
        network = {"sha256": "00", "from": "bundled", "run": "x", "features": "whole", "precision": "fp32"}
        with vector_files.vector_writer(out, width=6, network=network) as write:
            for name in ("a.jpg", "b\n.jpg", "ü.jpg", "\udcff.jpg"):
                write(Result(name, np.random.default_rng(0).random(6, np.float32), 3, 4, bytes(16)))
        return [out]

    return make


def read_vectors(file: Path, rng: random.Random) -> None:
    for _ in vector_files.open_vectors(str(file)).pieces():
        pass


def read_names(file: Path, rng: random.Random) -> None:
    """Beside a whole matrix."""
    for _ in vector_files.open_vectors(str(file).removesuffix(".rows.jsonl")).pieces():
        pass


def spoil_table(data: bytes, rng: random.Random) -> bytes:
    """Bytes, or a table of other columns and metadata, whole."""
    if rng.random() < 0.5:
        return mutations.spoil(data, rng)
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_parquet = data.startswith(b"PAR1")
    source = pa.BufferReader(data)
    # Without threads: one that lets go of these bytes, which are Python's, while Python is ending aborts the process.
    table = pq.ParquetFile(source).read(use_threads=False) if is_parquet else pa.ipc.open_file(source).read_all()
    metadata = dict(table.schema.metadata or {})
    if rng.random() < 0.5:
        for key in (b"selfie", b"selfie_bad", b"huggingface"):
            if key in metadata:
                metadata[key] = mutations.spoil_json(metadata[key], rng)
    else:
        at = rng.randrange(table.num_columns)
        number = len(table)
        others: list[Any] = [
            *(pa.nulls(number), pa.array(["x"] * number), pa.array([b"\xff\x00"] * number), pa.array([2**62] * number)),
            *(pa.array([[1.0] * 6] * number), pa.array([[]] * number, pa.list_(pa.float32()))),
            *(pa.array([[float("nan")] * 6] * number, pa.list_(pa.float32(), 6)), pa.array([[None] * 6] * number)),
            *(pa.array([{"bytes": None, "path": "../../x"}] * number), pa.array([{"bytes": "x"}] * number)),
            *(pa.array([[["x"]]] * number), pa.array(["zz", None, "0" * 32, "0"][:number])),
            *(pa.array([0, -1, 7, None][:number]), pa.array(["a"] * number).dictionary_encode()),
            *(
                pa.array([[0.5] * (1 + i) for i in range(number)]),
                pa.array([[2.5] * 6] * number, pa.list_(pa.float16(), 6)),
            ),
            *(pa.array([True] * number), pa.array([1.5] * number), pa.array([{"bytes": b"x", "path": 3}] * number)),
        ]
        column = rng.choice([each for each in others if len(each) == number])
        name = table.column_names[at] if rng.random() < 0.8 else rng.choice(("path", "vector", "image", "label", "\n"))
        table = table.set_column(at, name, column)
        if rng.random() < 0.1:
            table = table.slice(0, 0)
        if rng.random() < 0.1:
            table = table.append_column(rng.choice(("path", "vector", "image", "x")), column[: len(table)])
    sink = io.BytesIO()
    table = table.replace_schema_metadata(metadata)
    if is_parquet:
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def photo(size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (200, 100, 50)).save(file, "PNG")
    return file.getvalue()


def make_images_table(folder: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    made = []
    for number, cells in enumerate(([{"bytes": photo(), "path": "x.png"}] * 4, [photo()] * 4)):
        table = pa.table({"image": cells, "label": [0, 1, 1, None]})
        about = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), folder / f"{number}.parquet")
        made.append(folder / f"{number}.parquet")
    return made


def read_images_table(file: Path, rng: random.Random) -> None:
    source = Parquet([str(file)])
    for index in range(min(len(source), 6)):
        with contextlib.suppress(UnreadableImage), source.open(index) as image:
            decode_square(image, 8)
    source.labels()


def make_tar(folder: Path) -> list[Path]:
    made = []
    for name, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        with tarfile.open(folder / f"{name}.tar", "w", format=form) as tar:
            long = "" if name == "ustar" else "long-" * 30
            for number in range(3):
                for suffix, data in ((".png", photo()), (".cls", b"3")):
                    member = tarfile.TarInfo(f"photos/{long}{number:04}{suffix}")
                    member.size = len(data)
                    if name == "pax":
                        member.pax_headers = {"mtime": "1.5", "comment": "ü", "GNU.sparse.size": "1"}
                    tar.addfile(member, io.BytesIO(data))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
                member = tarfile.TarInfo("link.png")
                member.type, member.linkname = kind, "/etc/passwd"
                tar.addfile(member)
        made.append(folder / f"{name}.tar")
    return made


def read_tar(file: Path, rng: random.Random) -> None:
    shards = Shards([str(file)])
    size = file.stat().st_size
    assert len(shards.keys()) == len(shards.labels()[0]) == len(shards)
    for first, length in shards.where[:, 1:].tolist():
        assert 0 <= first <= first + length <= size
    for index in range(min(len(shards), 8)):
        with contextlib.suppress(UnreadableImage):
            shards.open(index).close()
    with contextlib.suppress(UnreadableImage):
        if len(shards):  # without images the opening functions refuse it
            shards.read(0, len(shards))


def make_list(folder: Path) -> list[Path]:
    (folder / "a.png").write_bytes(photo())
    (folder / "list.txt").write_bytes(b"# images\na.png\n\n../list/a.png\n./b.png\r\n\xff.png\n")
    return [folder / "list.txt"]


def read_list(file: Path, rng: random.Random) -> None:
    source = open_unlabelled([str(file)], data_root=file.parent, offline=True, talk=Talk())
    for index in range(min(len(source), 8)):
        with contextlib.suppress(UnreadableImage):
            source.open(index).close()
    assert len(list(source.versions())) == len(source)


def make_weights(folder: Path) -> list[Path]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(2, dtype=torch.bfloat16)}
    save_weights(folder / "model.safetensors", tensors, {"step": 3, "method": "byol"})
    return [folder / "model.safetensors"]


def make_seen(folder: Path) -> list[Path]:
    save_marks(folder / "seen.safetensors", Marks(np.arange(3), np.zeros((3, 32), np.uint8)))
    return [folder / "seen.safetensors"]


def make_state(folder: Path) -> list[Path]:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(folder / "state", 3, module, optimizer)
    return sorted((folder / "state" / "00000003").glob("*"))


def spoil_state(data: bytes, rng: random.Random) -> bytes:
    return (mutations.spoil_json if data.startswith(b"{\n") else mutations.spoil_safetensors)(data, rng)


def read_state(file: Path, rng: random.Random) -> None:
    if file.name != "checksums.json" and rng.random() < 0.9:  # or nothing would come past them
        write_json(file.with_name("checksums.json"), checksums(file.parent))
    module = torch.nn.Linear(3, 2)
    load_state(file.parents[1], module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), Talk())


def make_store(folder: Path) -> list[Path]:
    rows = Rows(4, 2, folder / "stores" / "0123456789abcdef-2px", None)
    for index in range(3):
        rows.write(index, np.full((2, 2, 3), index, np.uint8), np.int64(index), np.zeros(32, np.uint8))
    rows.close()
    return [folder / "stores" / "0123456789abcdef-2px" / name for name in sorted(FILES)]


def read_store_files(file: Path, rng: random.Random) -> None:
    try:
        rows = Rows(4, 2, file.parent, None)
    except OSError:  # which `MappedStore` turns into a warning
        return
    with contextlib.closing(rows):
        flags = rows.flags(np.arange(4))
        for index in np.flatnonzero(flags & PIXELS).tolist():
            with contextlib.suppress(OSError):
                rows.read(index, np.empty((2, 2, 3), np.uint8))
        if flags[0] & MARKS:
            rows.marks()
        rows.write(3, np.zeros((2, 2, 3), np.uint8), np.int64(1), np.zeros(32, np.uint8))


TARGETS = {
    "config": Target(make=make_configs, spoil=mutations.spoil_json, read=read_config),
    "metrics": Target(make=make_metrics, spoil=mutations.spoil_lines, read=read_metrics),
    "bad-files": Target(make=make_bad_files, spoil=mutations.spoil_lines, read=read_bad_files),
    "cell": Target(make=make_cell, spoil=mutations.spoil_json, read=lambda file, rng: known_accuracy(file)),
    "hub-set": Target(make=make_listing, spoil=mutations.spoil_json, read=read_listing),
    "results": Target(make=make_results, spoil=mutations.spoil_json, read=read_outcome),
    "tar": Target(make=make_tar, spoil=mutations.spoil_tar, read=read_tar),
    "list": Target(make=make_list, spoil=mutations.spoil, read=read_list),
    "weights": Target(make=make_weights, spoil=mutations.spoil_safetensors, read=lambda file, rng: load_weights(file)),
    "seen": Target(make=make_seen, spoil=mutations.spoil_safetensors, read=lambda file, rng: load_marks(file)),
    "state": Target(make=make_state, spoil=spoil_state, read=read_state),
    "store": Target(make=make_store, spoil=mutations.spoil, read=read_store_files),
    "parquet-images": Target(make=make_images_table, spoil=spoil_table, read=read_images_table),
    "vectors-jsonl": Target(make=make_vectors(".jsonl"), spoil=mutations.spoil_lines, read=read_vectors),
    "vectors-npy": Target(make=make_vectors(".npy"), spoil=mutations.spoil_npy, read=read_vectors),
    "vectors-rows": Target(
        make=lambda folder: [file.with_name(file.name + ".rows.jsonl") for file in make_vectors(".npy")(folder)],
        spoil=mutations.spoil_lines,
        read=read_names,
    ),
    "vectors-parquet": Target(make=make_vectors(".parquet"), spoil=spoil_table, read=read_vectors),
}
