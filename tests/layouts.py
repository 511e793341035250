"""A corpus of odd layouts: inputs that people have, the verb that meets them, and what it must say.

`python tests/layouts.py --before CHECKOUT` runs every case with another checkout of selfie and with this one, and
writes docs/layouts.md. tests/test_layouts.py runs the same cases.
"""

import argparse
import contextlib
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
DOCTOR = ("doctor", "--no-time")
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


def vectors(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["a"], "vector": [[0.0, 1.0]]}), path)


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
        title="`train/images/`, `test/images/` of class folders",
        build=tree(*(f"{part}/images/{name}" for part in ("train", "test") for name in CLASSES)),
        command=(*FINETUNE, "data"),
        said=r"only one class \(images\) in data/train.*: if the classes are in data/train/images, give that",
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
            "cat",
            "dog",
            "runs/curve",
            "runs/demo/images/train/x",
            files={"runs/curve/config.json": RUN, "runs/demo/demo.json": DEMO},
        ),
        command=(*FINETUNE, "data"),
        said=r"left out: 2 folders of selfie runs and demos \(runs/curve, runs/demo\)\n(.*\n)*10 labels .*2 classes",
    ),
    Case(
        kind="A",
        title="system folders among photos",
        build=tree(
            *(
                "cat",
                "dog",
                "cat/@eaDir/00.png",
                "#recycle",
                "$RECYCLE.BIN/S-1",
                "lost+found",
                "__MACOSX/cat",
                ".Trash-1000/files",
            ),
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
    # B: folders, tar shards, parquet files, lists and stdin have the same rules
    Case(
        kind="B",
        title="tar, `p00.left.png` + `p00.left.cls`",
        build=tar(*labelled_members("p00.{:03}")),
        command=(*FINETUNE, "data.tar"),
        said=r"10 labels of 10 .*2 classes, 2 test images",
    ),
    Case(
        kind="B",
        title="tar, `a.left.png` beside `a.one.cls`, `a.two.cls`",
        build=tar(("a.left.png", picture(0)), ("a.one.cls", b"cat"), ("a.two.cls", b"dog")),
        command=(*FINETUNE, "data.tar"),
        said=r"a.left.png has two labels, cat and dog: name the right one a.left.cls",
        code=1,
    ),
    Case(
        kind="B",
        title="tar, a mask `000.seg.png` beside `000.png`, `000.cls`",
        build=tar(*labelled_members(), ("000.seg.png", picture(99))),
        command=(*FINETUNE, "data.tar"),
        said=r"left out: 1 image beside the one that a .cls labels \(000.seg.png\)",
    ),
    Case(
        kind="B",
        title="tar of links, members that come twice, hidden ones",
        build=tar(
            *labelled_members(),
            ("link.png", "000.png"),
            ("000.png", picture(50)),
            (".x/1.png", picture(51)),
            ("@eaDir/2.png", picture(52)),
        ),
        command=(*PRETRAIN, "data.tar"),
        said=r"left out: 1 system file \(2.png\), 1 hidden image \(1.png\), 1 link .*, 1 image that is named twice",
    ),
    Case(
        kind="B",
        title="tar with `birds/train/`, `birds/valid/` inside",
        build=tar(
            *(
                (f"birds/{part}/{name}/{n}.png", picture(n))
                for n in range(4)
                for part in ("train", "valid")
                for name in CLASSES
            )
        ),
        command=(*FINETUNE, "data.tar"),
        said=r"The test part is the folder valid/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images",
    ),
    Case(
        kind="B",
        title="the same, unlabelled",
        build=tar(
            *(
                (f"birds/{part}/{name}/{n}.png", picture(n))
                for n in range(4)
                for part in ("train", "valid")
                for name in CLASSES
            )
        ),
        command=(*PRETRAIN, "data.tar"),
        said=r"only train/ is read, valid/ is kept for evaluation",
    ),
    Case(
        kind="B",
        title="a folder of `birds_train.parquet`, `birds_dev.parquet`",
        build=several(*(table(*EIGHT, name=f"data/birds_{part}.parquet") for part in ("train", "dev"))),
        command=(*FINETUNE, "data"),
        said=r"validation part, as there is no test part.*\n(.*\n)*8 labels of 8 .*8 test images",
    ),
    *(
        Case(
            kind="B",
            title=f"parquet, labels {title}",
            build=table(*labels),
            command=(*FINETUNE, "data.parquet"),
            said=said,
            code=code,
        )
        for title, labels, said, code in (
            ("with -1", (0, 1) * 4 + (-1, -1), WITHOUT_LABEL, 0),
            ("with empty text", (*EIGHT, "", " "), WITHOUT_LABEL, 0),
            ("as text, with -1", ("0", "1") * 4 + ("-1", "-1"), WITHOUT_LABEL, 0),
            ("as floats, with NaN", (0.0, 1.0) * 4 + (float("nan"), -1.0), WITHOUT_LABEL, 0),
            ("of booleans", (True, False) * 4, r"6 labels of 6 .*2 classes", 0),
            (
                "that are no whole numbers",
                (0.5, 1.0) * 4,
                r"the column label of data.parquet holds no labels: 0.5 is not",
                1,
            ),
            (
                "of several classes each",
                ([0, 1], [1]) * 4,
                r"the column label of data.parquet \(list.*\) is no label",
                1,
            ),
        )
    ),
    *(
        Case(kind="B", title=title, build=listed(text, name), command=(*PRETRAIN, name), said=said, code=code)
        for title, name, text, said, code in (
            ("a list that names a folder", "list.txt", b"data\n", r"list.txt, line 1: data is a folder", 1),
            (
                "a list that holds a pattern",
                "list.txt",
                b"data/*.png\n",
                r"list.txt, line 1: data/\*.png is a pattern",
                1,
            ),
            ("a list with labels", "list.txt", b"data/00.png 3\n", r"line 1: .* is no file, but data/00.png is", 1),
            (
                "a list with \\ between folders",
                "list.txt",
                b"data\\00.png\n",
                r"line 1: .* is no file, but data/00.png is",
                1,
            ),
            ("a table, `images.csv`", "images.csv", b"path\n" + NAMES, r"images.csv: text, not an image", 1),
            ("a list in UTF-16", "list.txt", NAMES.decode().encode("utf-16"), r"on 3 images", 0),
            ("a list in UTF-16 without its mark", "list.txt", NAMES.decode().encode("utf-16-le"), r"on 3 images", 0),
            ("a list with a byte order mark", "list.lst", b"\xef\xbb\xbf" + NAMES, r"on 3 images", 0),
            ("a list that names a file twice", "list.txt", NAMES * 2, r"left out: 3 images that are named twice", 0),
        )
    ),
    *(
        Case(kind="B", title=title, build=tree("."), command=(*EMBED, "-"), said=said, code=code, stdin=stdin)
        for title, stdin, said, code in (
            ("stdin with a byte order mark", b"\xef\xbb\xbf" + NAMES, r"v.npy: 3 vectors", 0),
            ("stdin in UTF-16", NAMES.decode().encode("utf-16"), r"v.npy: 3 vectors", 0),
            ("stdin with thumbnails", NAMES + b"data/@eaDir/00.png\ndata/._00.png\n", r"left out: 2 system files", 0),
            ("stdin that names a folder", b"data\n", r"stdin, line 1: data is a folder", 1),
        )
    ),
    Case(
        kind="B",
        title="class folders in two Unicode forms, train and test",
        build=tree("train/cafe\u0301", "train/dog", "test/caf\u00e9", "test/dog"),
        command=(*FINETUNE, "data"),
        said=r"12 labels of 12 .*2 classes, 12 test images",
    ),
    Case(
        kind="B",
        title="a class spelled `Dog` in test and `dog` in train",
        build=tree("train/cat", "train/dog", "test/cat", "test/Dog"),
        command=(*FINETUNE, "data"),
        said=r"has classes that the training part lacks: Dog \('Dog' is 'dog' there\)",
        code=1,
    ),
    Case(
        kind="B",
        title="a link to a picture in the same folder",
        build=several(tree("."), link("00.png", "data/again.png")),
        command=(*EMBED, "data"),
        said=r"left out: 1 link to what is read already \(again.png\)\n(.*\n)*v.npy: 6 vectors",
    ),
    # D: nothing is left out in silence
    *(
        Case(
            kind="D",
            title=f"pictures and HEIC files, `{' '.join([command[0], *more])}`",
            build=tree(".", files={f"{n}.HEIC": HEIC for n in range(3)}),
            command=(*command, "data", *more),
            said=r"left out: 3 files of formats that are not read \(.heic\)",
            code=code,
        )
        for command, more, code in (
            (PRETRAIN, (), 0),
            (EMBED, (), 0),
            (EMBED, ("--strict",), 1),
            (("doctor", "--no-time"), (), 0),
        )
    ),
    Case(
        kind="D",
        title="class folders, one of HEIC files alone",
        build=tree("cat", "dog", files={f"bird/{n}.heic": HEIC for n in range(3)}),
        command=(*FINETUNE, "data"),
        said=r"left out: 3 files of formats that are not read \(.heic\), 1 folder without images \(bird\)",
    ),
    Case(
        kind="D",
        title="a class all of whose images are broken",
        build=tree("cat", "dog", files={f"bird/{n}.png": b"broken" for n in range(2)}, count=12),
        command=(*FINETUNE, "data", "--max-bad", "0.9"),
        said=r"class bird: none of its training images can be read",
    ),
    Case(
        kind="D",
        title="pointers of Git LFS in place of pictures",
        build=lambda folder: put(folder, {f"data/{n}.png": POINTER for n in range(3)}),
        command=(*PRETRAIN, "data"),
        said=r"a Git LFS pointer in place of the file: fetch it with git lfs pull",
        code=1,
    ),
    *(
        Case(
            kind="D",
            title=f"a pointer of Git LFS in place of `{name}`",
            build=lambda folder, name=name: put(folder, {name: POINTER}),
            command=(*PRETRAIN, name),
            said=r"a Git LFS pointer in place of the file: fetch it with git lfs pull",
            code=1,
        )
        for name in ("data.tar", "data.parquet", "list.txt")
    ),
    Case(
        kind="D",
        title="pictures whose names have no suffix",
        build=tree(".", files={"IMG_1": picture(70)}),
        command=(*EMBED, "data", "--strict"),
        said=r"left out: 1 file of a format that is not read \(no suffix\)",
        code=1,
    ),
    # C: doctor and training agree, and advice costs no data
    Case(
        kind="C",
        title="`train/` of class folders, a flat `test/` without labels",
        build=tree("train/cat", "train/dog", "test"),
        command=(*DOCTOR, "data"),
        said=r"^Healthy: (.*\n)*.* 1 part without labels: test/",
    ),
    Case(
        kind="C",
        title="a photo, and two links to another one that lies elsewhere",
        build=several(
            tree("."),
            lambda folder: put(folder, {"other/x.png": picture(90)}),
            link("../other/x.png", "data/l.png"),
            link("../other/x.png", "data/m.png"),
        ),
        command=(*DOCTOR, "data"),
        said=r"m.png: link to the same file as l.png",
    ),
    Case(
        kind="C",
        title="a folder, and a folder inside it",
        build=tree("photos/a", "photos/b"),
        command=(*DOCTOR, "data/photos", "data/photos/a"),
        said=r"6 images that are named twice",
    ),
    Case(
        kind="C",
        title="a folder of photos that are not read",
        build=tree(".", files={"raw/1.heic": HEIC, "raw/2.heic": HEIC}),
        command=(*DOCTOR, "data"),
        said=r"\A(?!(.*\n)*.*(empty|remove))(.*\n)*.*2 files of formats that are not read: .heic",
    ),
    Case(
        kind="C",
        title="class folders, every file twice",
        build=lambda folder: [
            put(folder, {name.replace("0", end, 1): data for name, data in pictures("data/cat", "data/dog").items()})
            for end in ("0", "copy-")
        ],
        command=(*FINETUNE, "data"),
        said=r"\A(?!(.*\n)*.*like training images)(.*\n)*.*hash of their names",
    ),
    Case(
        kind="C",
        title="2 broken images of 40, both in the test part",
        build=tree(
            "train/cat",
            "train/dog",
            "test/cat",
            "test/dog",
            count=10,
            files={f"test/cat/{n:02}.png": b"x" for n in (1, 2)},
        ),
        command=(*FINETUNE, "data", "--max-bad", "0.1"),
        said=r"2 of 40 images cannot be read",
    ),
    # E: results are shown, and advice can be followed
    Case(
        kind="E",
        title="a batch of one image",
        build=tree(*CLASSES),
        command=(*FINETUNE, "data", "--batch-size", "1"),
        said=r"a batch of 1 leaves an image by itself, and batch norm",
        code=2,
    ),
    Case(
        kind="E",
        title="help that names a revision",
        build=lambda folder: None,
        command=("eval", "--help"),
        said=r"hf://owner/name\[@revision\]",
    ),
]


def outcome(case: Case, folder: Path) -> tuple[int, str]:
    """Build the case in `folder` and run it there, in this process: its exit code and all that it said."""
    from typer.testing import CliRunner

    from selfie_cli.cli.app import app

    case.build(folder)
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, list(case.command), input=case.stdin)
    bug = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr + result.stdout + f"Traceback: {result.exception!r}" * bug


def is_right(case: Case, code: int, text: str) -> bool:
    return code == case.code and bool(re.search(case.said, text, re.MULTILINE))


def told(code: int, text: str) -> str:
    """The lines of an outcome that matter: what was left out and warned of, else what was read."""
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern in (
        r"left out|only .* is read|^error|^Traceback|taken for|classes are|called like|class .* can be read",
        r"The test part|labels of|on \d+ images|vectors$",
    ):
        if found := [line for line in lines if re.search(pattern, line)]:
            return " / ".join(dict.fromkeys(line[:150].replace("|", "\\|") for line in found[:2]))
    return f"exit {code}"


def outcomes() -> None:
    """Print the outcome of every case, a line of JSON each."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(outcome(case, Path(folder))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of selfie to compare with")
    before = parser.parse_args().before
    if before is None:
        return outcomes()
    columns = []
    for checkout in (before.resolve(), ROOT):
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, check=True)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        right = [is_right(case, *each) for case, each in zip(CASES, found, strict=True)]
        columns.append([f"{'yes' if good else 'no'}: {told(*each)}" for good, each in zip(right, found, strict=True)])
    rows = ["| kind | input | command | before | now |", "| --- | --- | --- | --- | --- |"]
    for case, *cells in zip(CASES, *columns, strict=True):
        verb = " ".join([case.command[0], *(word for word in case.command[1:] if word == "--strict")])
        rows.append(f"| {case.kind} | {case.title} | {verb} | {' | '.join(cells)} |")
    counts = [sum(cell.startswith("yes") for cell in column) for column in columns]
    introduction = INTRODUCTION.format(count=len(CASES), before=counts[0], now=counts[1])
    PAGE.write_text(introduction + "\n".join(rows) + "\n", encoding="utf-8")


INTRODUCTION = """# Odd layouts

Inputs that people have, and what selfie makes of them: of {count}, {before} were right in commit 282d1d3 (before), and
{now} are now. A case is right if the command does what the [rules](guide/data.md#rules-of-layouts) say, and says it.
`python tests/layouts.py --before CHECKOUT` makes this page.

"""

if __name__ == "__main__":
    main()
