"""A corpus of odd layouts: inputs that people have, the verb that meets them, and what it must say.

`python tests/layouts.py --before CHECKOUT` runs every case here and in another checkout of selfie, and writes
docs/layouts.md. tests/test_layouts.py runs the same cases.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "layouts.md"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"
SMALL = ("--steps", "1", "--no-report", "--precision", "fp32", "--out", "out")
PRETRAIN = (
    "pretrain",
    *("--image-size", "32", "--batch-size", "2", "--backbone", "resnetv2_18_w16", "--compile", "off"),
    *SMALL,
)
FINETUNE = ("finetune", "--from", "bundled", "--batch-size", "4", "--seeds", "1", "--no-baseline", *SMALL, "--dataset")
EMBED = ("embed", "--from", "bundled", "--out", "v.npy")


@dataclass(frozen=True, kw_only=True)
class Case:
    """An input that `build` makes in an empty folder, a command that is run there, and what comes of it.

    said: a pattern that its output must match. stdin: what the command reads. kind: as the rules group them.
    """

    kind: str
    title: str
    build: Callable[[Path], None]
    command: tuple[str, ...]
    said: str
    code: int = 0
    stdin: bytes = b""


def picture(seed: int, kind: str = "PNG") -> bytes:
    """A picture of 32 px like no other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(data, kind)
    return data.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def pictures(*folders: str, count: int = 6, start: int = 0) -> dict[str, bytes]:
    """`count` pictures in each folder."""
    names = [f"{folder}/{number:02}.png" for folder in folders for number in range(count)]
    return {name: picture(start + seed) for seed, name in enumerate(names)}


def tree(*folders: str, **more: Any) -> Callable[[Path], None]:
    """Build pictures in folders below `data/`, and other files by name."""

    def build(folder: Path) -> None:
        put(folder / "data", pictures(*folders, count=more.get("count", 6)) | more.get("files", {}))

    return build


def tar(*members: tuple[str, bytes | str]) -> Callable[[Path], None]:
    """Build data.tar; text is where a link leads to."""

    def build(folder: Path) -> None:
        with tarfile.open(folder / "data.tar", "w") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                if isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                    file.addfile(info)
                else:
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))

    return build


def labelled_members(stem: str = "{:03}", count: int = 12) -> list[tuple[str, bytes | str]]:
    """Pictures and the `.cls` members of their stems, of two classes in turn."""
    members: list[tuple[str, bytes | str]] = []
    for number in range(count):
        name = stem.format(number)
        members += [(f"{name}.png", picture(number)), (f"{name}.cls", b"cat" if number % 2 else b"truck")]
    return members


def table(*labels: Any, name: str = "data.parquet", column: str = "label", images: int = 0) -> Callable[[Path], None]:
    """Build a parquet file of pictures with a column of labels."""

    def build(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = images or len(labels)
        columns: dict[str, Any] = {"image": [{"bytes": picture(row), "path": None} for row in range(count)]}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns | ({column: list(labels)} if labels else {})), folder / name)

    return build


def several(*builders: Callable[[Path], None]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        for each in builders:
            each(folder)

    return build


def listed(text: bytes, name: str = "list.txt") -> Callable[[Path], None]:
    return several(tree("."), lambda folder: put(folder, {name: text}))


def link(target: str, name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return build


RUN = json.dumps({"format": 1, "verb": "curve", "progress": {"status": "finished"}}).encode()
DEMO = json.dumps({"images": 10_000, "seeds": 1}).encode()
NAMES = b"data/00.png\ndata/01.png\ndata/02.png\n"
WITHOUT_LABEL = r"left out: 2 images without a label"
EIGHT = ("cat", "dog") * 4
CLASSES = ("cat", "dog")


def parted(train: str, other: str) -> Callable[[Path], None]:
    return tree(*(f"{part}/{name}" for part in (train, other) for name in CLASSES), count=4)


CASES = [
    # A: what is a part, and what is a class
    *(
        Case(
            kind="A",
            title=f"`{train}/`, `{other}/` of class folders",
            build=parted(train, other),
            command=(*FINETUNE, "data"),
            said=rf"The test part is the folder {other}/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images",
        )
        for train, other in (
            *(("train", "valid"), ("train", "dev"), ("Train", "TEST"), ("training", "testing"), ("train", "eval")),
            *(("training_set", "test_set"), ("train2017", "val2017"), ("train_images", "validation-images")),
        )
    ),
    Case(
        kind="A",
        title="`train/`, `valid/`, unlabelled",
        build=parted("train", "valid"),
        command=(*PRETRAIN, "data"),
        said=r"data: only train/ is read, valid/ is kept for evaluation",
    ),
    Case(
        kind="A",
        title="`export/train/`, `export/valid/`, unlabelled, one folder up",
        build=parted("export/train", "export/valid"),
        command=(*PRETRAIN, "data"),
        said=r"data: only train/ is read, valid/ is kept for evaluation",
    ),
    Case(
        kind="A",
        title="class folders, each with `train/` and `test/`",
        build=tree("cat/train", "cat/test", "dog/train", "dog/test", count=4),
        command=(*FINETUNE, "data"),
        said=r"The test part is the folder test/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images",
    ),
    Case(
        kind="A",
        title="`train/`, `holdout/` of class folders",
        build=parted("train", "holdout"),
        command=(*FINETUNE, "data"),
        said=r"train/ look like parts of a data set",
        code=1,
    ),
    Case(
        kind="A",
        title="`seg_train/`, `seg_test/` of class folders",
        build=parted("seg_train", "seg_test"),
        command=(*FINETUNE, "data"),
        said=r"seg_test/, seg_train/ look like parts of a data set",
        code=1,
    ),
    Case(
        kind="A",
        title="`fold1/`, `fold2/` of the same class folders",
        build=parted("fold1", "fold2"),
        command=(*FINETUNE, "data"),
        said=r"the classes are its folders fold1, fold2, each of which holds cat, dog",
    ),
    Case(
        kind="A",
        title="a class called `train` beside other classes",
        build=tree("bus", "train"),
        command=(*FINETUNE, "data"),
        said=r"train/ is taken for a class, though it is called like a part",
    ),
    Case(
        kind="A",
        title="`train/`, `valid/` and class folders beside them",
        build=tree("train/cat", "train/dog", "valid/cat", "valid/dog", "bird"),
        command=(*FINETUNE, "data"),
        said=r"left out: 6 images outside the parts \(bird",
    ),
    Case(
        kind="A",
        title="one folder that holds the classes",
        build=tree("images/cat", "images/dog"),
        command=(*FINETUNE, "data"),
        said=r"only one class \(images\) in data.*: if the classes are in data/images, give that",
        code=1,
    ),
    Case(
        kind="A",
        title="`train/` alone, of class folders",
        build=tree("train/cat", "train/dog"),
        command=(*FINETUNE, "data"),
        said=r"The test part is 2 of 12 images, chosen by a hash",
    ),
    Case(
        kind="A",
        title="`train/` with labels, `test/` without",
        build=tree("train/cat", "train/dog", "test"),
        command=(*FINETUNE, "data"),
        said=r"left out: 1 part without labels \(test/\)\n.*2 of 12 images, chosen by a hash",
    ),
    Case(
        kind="A",
        title="runs and a demo beside class folders",
        build=tree(
            "cat", "dog", "runs/curve", "runs/demo/images/train/x", files={"runs/curve/config.json": RUN, "runs/demo/demo.json": DEMO}
        ),
        command=(*FINETUNE, "data"),
        said=r"left out: 2 folders of selfie runs and demos \(runs/curve, runs/demo\)\n(.*\n)*10 labels of 10 .*2 classes",
    ),
    Case(
        kind="A",
        title="system folders among photos",
        build=tree(
            *("cat", "dog", "cat/@eaDir/00.png", "#recycle", "$RECYCLE.BIN/S-1", "lost+found", "__MACOSX/cat", ".Trash-1000/files"),
            *("dog/.ipynb_checkpoints", "System Volume Information"),
            count=2,
            files={"cat/._00.png": b"x", "cat/Thumbs.db": b"x"},
        ),
        command=(*PRETRAIN, "data"),
        said=r"Selfie|left out: 13 system files \(.*\), 5 hidden images \(.*\)",
    ),
    Case(
        kind="A",
        title="a parquet file of many images, three pictures beside it",
        build=several(table(images=8, name="data/data/train-00000-of-00001.parquet"), tree("assets", count=3)),
        command=(*PRETRAIN, "data"),
        said=r"left out: 3 images beside the parquet or tar files",
    ),
    Case(
        kind="A",
        title="many pictures, a parquet file of vectors beside them",
        build=several(tree("."), lambda folder: vectors(folder / "data" / "v.parquet")),
        command=(*PRETRAIN, "data"),
        said=r"^(?!(.*\n)*.*left out)",
    ),
]


def vectors(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["a"], "vector": [[0.0, 1.0]]}), path)
