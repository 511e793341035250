"""A corpus of odd layouts: inputs that people have, the verb that meets them, and what it must say.

`python tests/layouts.py` runs every case and writes docs/layouts.md; tests/test_layouts.py runs the same cases.
"""

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data.pictures import put, write_parquet, write_tar
from PIL import Image
from typer.testing import CliRunner

from selfie_cli.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "layouts.md"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"
SMALL = "--steps 1 --no-report --precision fp32 --out out"
PRETRAIN = f"pretrain --image-size 32 --batch-size 2 --backbone resnetv2_18_w16 --compile off {SMALL}"
FINETUNE = f"finetune --from bundled --batch-size 4 --seeds 1 --no-baseline {SMALL} --dataset"
DOCTOR = "doctor --no-time"
EMBED = "embed --from bundled --out v.npy"
Build = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """An input that `build` makes in an empty folder, a command that is run there, and its right outcome.

    said: a pattern that the output must match. stdin: what the command reads.
    """

    title: str
    build: Build
    command: str
    said: str
    code: int = 0
    stdin: bytes = b""


def picture(seed: int) -> bytes:
    """A picture of 32 px like no other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


def pictures(*folders: str, count: int = 6, start: int = 0) -> dict[str, bytes]:
    """`count` pictures in each folder."""
    names = [f"{folder}/{number:02}.png" for folder in folders for number in range(count)]
    return {name: picture(start + seed) for seed, name in enumerate(names)}


def tree(*folders: str, count: int = 6, files: dict[str, bytes] | None = None) -> Build:
    """Build pictures in folders below `data/`, and other files by name."""
    return lambda folder: put(folder / "data", pictures(*folders, count=count) | (files or {}))


def tar(*members: tuple[str, bytes | str]) -> Build:
    """Build data.tar; text is where a link leads to."""
    return lambda folder: write_tar(folder / "data.tar", members)


def labelled_members(stem: str = "{:03}") -> list[tuple[str, bytes | str]]:
    """12 pictures and the `.cls` members of their stems, of two classes in turn."""
    stems = [stem.format(number) for number in range(12)]
    images: list[tuple[str, bytes | str]] = [(f"{name}.png", picture(number)) for number, name in enumerate(stems)]
    return images + [(f"{name}.cls", CLASSES[number % 2].encode()) for number, name in enumerate(stems)]


def table(*labels: Any, name: str = "data.parquet", images: int = 0, start: int = 0) -> Build:
    """Build a parquet file of pictures with a column of labels."""
    rows = [picture(start + row) for row in range(images or len(labels))]
    return lambda folder: write_parquet(folder / name, rows, labels or None)


def several(*builders: Build) -> Build:
    return lambda folder: [build(folder) for build in builders]


def link(target: str, name: str) -> Build:
    return lambda folder: (folder / name).symlink_to(target)


def parted(train: str, other: str, count: int = 4) -> Build:
    return tree(*(f"{part}/{name}" for part in (train, other) for name in CLASSES), count=count)


RUN = json.dumps({"format": 1, "verb": "curve", "progress": {"status": "finished"}}).encode()
DEMO = json.dumps({"images": 10_000, "seeds": 1}).encode()
NAMES = b"data/00.png\ndata/01.png\ndata/02.png\n"
CLASSES = ("cat", "dog")
EIGHT = CLASSES * 4
LEFT = r"left out: 2 images without a label"
BIRDS = tar(
    *((f"birds/{part}/{c}/{n}.png", picture(n)) for n in range(4) for part in ("train", "valid") for c in CLASSES)
)
TRAIN = table(*EIGHT, name="data/train.parquet")
TWO = pictures("data/cat", "data/dog")
SYSTEM = ("cat/@eaDir/00.png", "#recycle", "$RECYCLE.BIN/S-1", "lost+found", "__MACOSX/cat")
SYSTEM += ("System Volume Information",)
HIDDEN = (".Trash-1000/files", "dog/.ipynb_checkpoints")
JUNK = {"cat/._00.png": b"x", "cat/Thumbs.db": b"x"}
LFS = r"a Git LFS pointer in place of the file: fetch it with git lfs pull"

# fmt: off
PARTS = [
    Case(f"`{train}/`, `{other}/` of class folders", parted(train, other), f"{FINETUNE} data",
         rf"The test part is the folder {other}/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images")
    for train, other in (("train", "valid"), ("Train", "TEST"), ("TrainImages", "ValidationImages"))
]
LABELS = [
    Case(f"parquet, labels {title}", table(*labels), f"{FINETUNE} data.parquet", said, code)
    for title, labels, said, code in (
        ("with -1", (0, 1) * 4 + (-1, -1), LEFT, 0),
        ("as floats, with NaN", (0.0, 1.0) * 4 + (float("nan"), -1.0), LEFT, 0),
        ("that are no whole numbers", (0.5, 1.0) * 4, r"column label of data.parquet holds no labels: 0.5 is not", 1),
        ("of several classes each", ([0, 1], [1]) * 4, r"the column label of data.parquet \(list.*\) is no label", 1),
    )
]
LISTS = [
    Case(title, several(tree("."), lambda folder, name=name, text=text: put(folder, {name: text})),
         f"{PRETRAIN} {name}", said, code)
    for title, name, text, said, code in (
        ("a list that names a folder", "list.txt", b"data\n", r"list.txt, line 1: data is a folder", 1),
        ("a list that holds a pattern", "list.txt", b"data/*.png\n", r"list.txt, line 1: data/\*.png is a pattern", 1),
        ("a list with labels", "list.txt", b"data/00.png 3\n", r"line 1: .* is no file, but data/00.png is", 1),
        ("a list with \\ between folders", "list.txt", b"data\\00.png\n", r"line 1: .*, but data/00.png is", 1),
        ("a table, `images.csv`", "images.csv", b"path\n" + NAMES, r"images.csv: text, not an image", 1),
        ("a list in UTF-16", "list.txt", NAMES.decode().encode("utf-16"), r"on 3 images", 0),
        ("a list in UTF-16 without its mark", "list.txt", NAMES.decode().encode("utf-16-le"), r"on 3 images", 0),
        ("a list with a byte order mark", "list.lst", b"\xef\xbb\xbf" + NAMES, r"on 3 images", 0),
        ("a list without paths", "list.txt", b"# images\n", r"no paths in the list list.txt: .* one image per line", 1),
        ("a list that names a file twice", "list.txt", NAMES * 2, r"left out: 3 images that are named twice", 0),
    )
]
STDIN = [
    Case(title, tree("."), f"{EMBED} -", said, code, stdin)
    for title, stdin, said, code in (
        ("stdin in UTF-16", NAMES.decode().encode("utf-16"), r"v.npy: 3 vectors", 0),
        ("stdin with thumbnails", NAMES + b"data/@eaDir/00.png\ndata/._00.png\n", r"left out: 2 system files", 0),
        ("stdin with NUL bytes between paths", NAMES.replace(b"\n", b"\0"), r"stdin holds NUL bytes: give one path", 1),
        ("stdin that names a folder", b"data\n", r"stdin, line 1: data is a folder", 1),
    )
]
FORMATS = [
    Case(f"pictures and HEIC files, `{title}`", tree(".", files={f"{n}.HEIC": HEIC for n in range(3)}), command,
         r"left out: 3 files of formats that are not read \(.heic\)", code)
    for title, command, code in (
        ("pretrain", f"{PRETRAIN} data", 0), ("embed", f"{EMBED} data", 0),
        ("embed --strict", f"{EMBED} data --strict", 1), ("doctor", f"{DOCTOR} data", 0),
    )
]
POINTERS = [
    Case(f"a pointer of Git LFS in place of `{name}`", lambda folder, name=name: put(folder, {name: POINTER}),
         f"{PRETRAIN} {name}", LFS, 1)
    for name in ("data.tar", "data.parquet", "list.txt")
]
CASES = [
    # Parts and classes.
    *PARTS,
    Case("`train/`, `valid/`, unlabelled", parted("train", "valid"), f"{PRETRAIN} data",
         r"data: only train/ is read, valid/ is kept for evaluation"),
    Case("`export/train/`, `export/valid/`, unlabelled, one folder up", parted("export/train", "export/valid"),
         f"{PRETRAIN} data", r"data: only train/ is read, valid/ is kept for evaluation"),
    Case("class folders, each with `train/` and `test/`",
         tree("cat/train", "cat/test", "dog/train", "dog/test", count=4), f"{FINETUNE} data",
         r"The test part is the folder test/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images"),
    Case("`train/`, `holdout/` of class folders", parted("train", "holdout"), f"{FINETUNE} data",
         r"train/ look like parts of a data set", 1),
    Case("`seg_train/`, `seg_test/` of class folders", parted("seg_train", "seg_test"), f"{FINETUNE} data",
         r"seg_test/, seg_train/ look like parts of a data set", 1),
    Case("`seg_train/`, `seg_test/` of photos", tree("seg_train", "seg_test"), f"{FINETUNE} data",
         r"seg_test/, seg_train/ look like parts of a data set", 1),
    Case("the same, unlabelled", parted("seg_train", "seg_test"), f"{PRETRAIN} data",
         r"seg_train/ is called like a training part, but there is no test/ or val/: all is read"),
    Case("`fold1/`, `fold2/` of the same class folders", parted("fold1", "fold2"), f"{FINETUNE} data",
         r"the classes are its folders fold1, fold2, not the folders inside those \(cat, dog\): .* call them train/"),
    Case("`animal/` and `vehicle/` of class folders", tree("animal/cat", "animal/dog", "vehicle/car"),
         f"{FINETUNE} data", r"the classes are its folders animal, vehicle, not .*\(car, cat, dog\): .* side by side"),
    Case("flat `images/`, and `annotations/trimaps/` beside it", tree("images", "annotations/trimaps"),
         f"{FINETUNE} data", r"annotations, images are called like parts of a data set, not like classes", 1),
    Case("`test/`, `val/` of photos, no `train/`", tree("test", "val"), f"{FINETUNE} data",
         r"test, val are called like parts of a data set, not like classes", 1),
    Case("classes `Cat`, `cat`, `dog`", tree("Cat", "cat", "dog"), f"{FINETUNE} data",
         r"the classes 'Cat' and 'cat' are told apart"),
    Case("classes that hold folders where others hold images", tree("cat/persian", "cat/siamese", "dog"),
         f"{FINETUNE} data", r"cat is taken for one class, .*\(persian, siamese\): .* give data/cat"),
    Case("`unlabelled/` beside class folders", tree("cat", "dog", "unlabelled"), f"{FINETUNE} data",
         r"unlabelled/ is taken for a class, though it is called like a part"),
    Case("a class called `train` beside other classes", tree("bus", "train"), f"{FINETUNE} data",
         r"train/ is taken for a class, though it is called like a part"),
    Case("`train/`, `valid/` and class folders beside them",
         several(parted("train", "valid", count=6), tree("bird")), f"{FINETUNE} data",
         r"left out: 6 images outside the parts \(bird"),
    Case("a picture beside class folders", tree("cat", "dog", files={"loose.png": picture(80)}), f"{FINETUNE} data",
         r"left out: 1 image outside the folders of the classes\n.*2 of 12 images, chosen by a hash"),
    Case("one folder that holds the classes", tree("images/cat", "images/dog"), f"{FINETUNE} data",
         r"only one class \(images\) in data.*: if the classes are in data/images, give that", 1),
    Case("`train/images/`, `test/images/` of class folders", parted("train/images", "test/images"),
         f"{FINETUNE} data",
         r"only one class \(images\) in data/train.*: if the classes are in data/train/images, give that", 1),
    Case("`export/train/`, `export/valid/` of class folders, one folder up", parted("export/train", "export/valid"),
         f"{FINETUNE} data", r"only one class \(export\) in data/: if the classes are in data/export, give that", 1),
    Case("`train/train/`, `test/test/` of class folders", parted("train/train", "test/test"), f"{FINETUNE} data",
         r"The test part is the folder test/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images"),
    Case("`train/` alone, of class folders", tree("train/cat", "train/dog"), f"{FINETUNE} data",
         r"The test part is 2 of 12 images, chosen by a hash"),
    Case("`train/` with labels, `test/` without", tree("train/cat", "train/dog", "test"), f"{FINETUNE} data",
         r"left out: 1 part without labels \(test/\)\n.*2 of 12 images, chosen by a hash"),
    Case("`train/` with labels, `test/images/` without", tree("train/cat", "train/dog", "test/images"),
         f"{FINETUNE} data", r"left out: 1 part without labels \(test/\)\n.*2 of 12 images, chosen by a hash"),
    Case("runs and a demo beside class folders",
         tree("cat", "dog", "runs/curve", "runs/demo/images/train/x",
              files={"runs/curve/config.json": RUN, "runs/demo/demo.json": DEMO}), f"{FINETUNE} data",
         r"left out: 2 folders of selfie runs and demos \(runs/curve, runs/demo\)\n(.*\n)*10 labels .*2 classes"),
    Case("system folders among photos", tree("cat", "dog", *SYSTEM, *HIDDEN, count=2, files=JUNK),
         f"{PRETRAIN} data", r"left out: 13 system files \(.*\), 5 hidden images \(.*\)"),
    Case("a parquet file of many images, three pictures beside it",
         several(table(images=8, name="data/data/train-00000-of-00001.parquet"), tree("assets", count=3)),
         f"{PRETRAIN} data", r"left out: 3 images beside the parquet or tar files"),
    # Folders, tar shards, parquet files, lists and stdin have the same rules.
    Case("tar, `p00.left.png` + `p00.left.cls`", tar(*labelled_members("p00.{:03}")), f"{FINETUNE} data.tar",
         r"10 labels of 10 .*2 classes, 2 test images"),
    Case("tar, `a.left.png` beside `a.one.cls`, `a.two.cls`",
         tar(("a.left.png", picture(0)), ("a.one.cls", b"cat"), ("a.two.cls", b"dog")), f"{FINETUNE} data.tar",
         r"a.left.png has two labels, cat and dog: name the right one a.left.cls", 1),
    Case("tar, a mask `000.seg.png` beside `000.png`, `000.cls`",
         tar(*labelled_members(), ("000.seg.png", picture(99))), f"{FINETUNE} data.tar",
         r"left out: 1 image beside the one that a .cls labels \(000.seg.png\)"),
    Case("tar of links, members that come twice, hidden ones",
         tar(*labelled_members(), ("link.png", "000.png"), ("000.png", picture(50)), (".x/1.png", picture(51)),
             ("@eaDir/2.png", picture(52))), f"{PRETRAIN} data.tar",
         r"left out: 1 system file \(2.png\), 1 hidden image \(1.png\), 1 link .*, 1 image that is named twice"),
    Case("tar with `birds/train/`, `birds/valid/` inside", BIRDS, f"{FINETUNE} data.tar",
         r"The test part is the folder valid/.*\n(.*\n)*8 labels of 8 .*2 classes, 8 test images"),
    Case("the same, unlabelled", BIRDS, f"{PRETRAIN} data.tar",
         r"only train/ is read, valid/ is kept for evaluation"),
    Case("a folder of `birds_train.parquet`, `birds_dev.parquet`",
         several(*(table(*EIGHT, name=f"data/birds_{part}.parquet") for part in ("train", "dev"))), f"{FINETUNE} data",
         r"validation part, as there is no test part.*\n(.*\n)*8 labels of 8 .*8 test images"),
    Case("a folder of `train.parquet`, `holdout.parquet`", several(TRAIN, table(*EIGHT, name="data/holdout.parquet")),
         f"{FINETUNE} data", r"train.parquet is called like a part, holdout.parquet is not: all are read as one set"),
    Case("`train.parquet`, `test.parquet`, named one by one", several(TRAIN, table(*EIGHT, name="data/test.parquet")),
         f"{PRETRAIN} data/train.parquet data/test.parquet", r"and data/test.parquet are called like parts"),
    Case("`train/` and `valid/`, named one by one", parted("train", "valid"), f"{PRETRAIN} data/train data/valid",
         r"data/train and data/valid are called like parts of one data set, and all are read"),
    Case("`test.parquet` without a column of labels", several(TRAIN, table(name="data/test.parquet", images=2)),
         f"{FINETUNE} data", r"left out: 1 part without labels \(test\)\n.*2 of 8 images, chosen by a hash"),
    Case("a folder of `0.tar` and `0.parquet`, a table of its contents",
         several(lambda folder: pq.write_table(pa.table({"url": ["a", "b"]}), folder / "0.parquet"),
                 lambda folder: write_tar(folder / "0.tar", pictures("a", count=2))), f"{PRETRAIN} .", r"on 2 images"),
    *LABELS,
    *LISTS,
    *STDIN,
    Case("a list, `embed`", several(tree("."), lambda folder: put(folder, {"list.txt": NAMES})), f"{EMBED} list.txt",
         r"v.npy: 3 vectors"),
    Case("class folders in two Unicode forms, train and test",
         tree("train/cafe\u0301", "train/dog", "test/caf\u00e9", "test/dog"), f"{FINETUNE} data",
         r"12 labels of 12 .*2 classes, 12 test images"),
    Case("a class spelled `Dog` in test and `dog` in train",
         tree("train/cat", "train/dog", "test/cat", "test/Dog"), f"{FINETUNE} data",
         r"has classes that the training part lacks: Dog \('Dog' is 'dog' there\)", 1),
    Case("a link to a picture in the same folder", several(tree("."), link("00.png", "data/again.png")),
         f"{EMBED} data", r"left out: 1 link to what is read already \(again.png\)\n(.*\n)*v.npy: 6 vectors"),
    # Nothing is left out in silence.
    *FORMATS,
    Case("class folders, one of HEIC files alone",
         tree("cat", "dog", files={f"bird/{n}.heic": HEIC for n in range(3)}), f"{FINETUNE} data",
         r"left out: 3 files of formats that are not read \(.heic\), 1 folder without images \(bird\)"),
    Case("a class all of whose images are broken",
         tree("cat", "dog", files={f"bird/{n}.png": b"broken" for n in range(2)}, count=12),
         f"{FINETUNE} data --max-bad 0.9", r"class bird: none of its training images can be read"),
    Case("pointers of Git LFS in place of pictures",
         lambda folder: put(folder, {f"data/{n}.png": POINTER for n in range(3)}), f"{PRETRAIN} data", LFS, 1),
    *POINTERS,
    Case("pictures whose names have no suffix", tree(".", files={"IMG_1": picture(70)}), f"{EMBED} data --strict",
         r"left out: 1 file of a format that is not read \(no suffix\)", 1),
    # doctor and training agree, and advice costs no data.
    Case("`train/images/`, `valid/images/`, unlabelled", tree("train/images", "valid/images"), f"{DOCTOR} data",
         r"^Healthy for pretraining: (.*\n)*.*finetune stops .*only one class \(images\) in train of data"),
    Case("classes that hold folders where others hold images, `doctor`", tree("cat/persian", "cat/siamese", "dog"),
         f"{DOCTOR} data", r"finetune warns \(1\): data/: cat is taken for one class, .* give data/cat\n"),
    Case("a photo, and two links to another one that lies elsewhere",
         several(tree("."), lambda folder: put(folder, {"other/x.png": picture(90)}),
                 link("../other/x.png", "data/l.png"), link("../other/x.png", "data/m.png")), f"{DOCTOR} data",
         r"data/m.png: link to the same file as data/l.png"),
    Case("a folder, and a folder inside it", tree("photos/a", "photos/b"), f"{DOCTOR} data/photos data/photos/a",
         r"6 images that are named twice"),
    Case("a folder of photos that are not read", tree(".", files={"raw/1.heic": HEIC, "raw/2.heic": HEIC}),
         f"{DOCTOR} data",
         r"\A(?!(.*\n)*.*(empty|remove))(.*\n)*.*2 files of formats that are not read: .heic"),
    Case("class folders, every file twice",
         lambda folder: [put(folder, {name.replace("0", end, 1): data for name, data in TWO.items()})
                         for end in ("0", "copy-")], f"{FINETUNE} data",
         r"\A(?!(.*\n)*.*like training images)(.*\n)*.*hash of their names"),
    Case("2 broken images of 40, both in the test part",
         several(parted("train", "test", count=10),
                 lambda folder: put(folder, {f"data/test/cat/{n:02}.png": b"x" for n in (1, 2)})),
         f"{FINETUNE} data --max-bad 0.1", r"2 of 40 images cannot be read"),
    # Results are shown, and advice can be followed.
    Case("help that names a revision", lambda folder: None, "eval --help", r"hf://owner/name\[@revision\]"),
]
# fmt: on


def outcome(case: Case, folder: Path) -> tuple[int, str]:
    """Build the case in `folder` and run it there, in this process: its exit code and all that it said."""
    case.build(folder)
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, case.command.split(), input=case.stdin)
    bug = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr + result.stdout + f"Traceback: {result.exception!r}" * bug


def is_right(case: Case, code: int, text: str) -> bool:
    return code == case.code and bool(re.search(case.said, text, re.MULTILINE))


def told(code: int, text: str) -> str:
    """The lines of an outcome that matter: what was left out and warned of, else what was read."""
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern in (
        r"left out|only .* is read|^error|^Traceback|taken for|classes are|called like|told apart|class .* can be read",
        r"The test part|labels of|on \d+ images|vectors$",
    ):
        if found := [line for line in lines if re.search(pattern, line)]:
            return " / ".join(dict.fromkeys(line[:150].replace("|", "\\|") for line in found[:2]))
    return f"exit {code}"


def main() -> None:
    rows = ["| input | command | what selfie says |", "| --- | --- | --- |"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            code, text = outcome(case, Path(folder))
        if not is_right(case, code, text):
            raise SystemExit(f"{case.title}: {text}")
        verb = " ".join(word for word in case.command.split() if word in (case.command.split()[0], "--strict"))
        rows.append(f"| {case.title} | {verb} | {told(code, text)} |")
    PAGE.write_text(INTRODUCTION + "\n".join(rows) + "\n", encoding="utf-8")


INTRODUCTION = """# Odd layouts

Inputs that people have, and what selfie makes of them by the [rules](guide/data.md#rules-of-layouts).
`python tests/layouts.py` makes this page; tests run the same cases.

"""

if __name__ == "__main__":
    main()
