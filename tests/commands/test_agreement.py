"""doctor and finetune over one corpus of layouts: both open images and labels by the same code, and agree."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfie_cli.commands.doctor import Diagnosis, doctor
from selfie_cli.comparison.labels import Data, Reading, read_data
from selfie_cli.config import DoctorOptions, FinetuneOptions
from selfie_cli.errors import DataError
from selfie_cli.option import pick
from selfie_cli.talk import Talk

BROKEN = b"no image"


def picture(seed: int, **more: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(data, "PNG", **more)
    return data.getvalue()


def images(*folders: str, count: int = 8, start: int = 0) -> dict[str, bytes]:
    return {
        f"{folder}/{number:02}.png": picture(start + seed * 100 + number)
        for seed, folder in enumerate(folders)
        for number in range(count)
    }


def put(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def of(files: dict[str, bytes], *links: tuple[str, str]) -> Callable[[], str]:
    def build() -> str:
        put(files)
        for name, target in links:
            Path("data", name).symlink_to(target)
        return "data"

    return build


def packed(files: dict[str, bytes]) -> Callable[[], str]:
    def build() -> str:
        with tarfile.open("data.tar", "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return "data.tar"

    return build


def table(**columns: list[object]) -> Callable[[], str]:
    def build() -> str:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = len(next(iter(columns.values()), [0] * 12))
        column = [{"bytes": picture(row), "path": None} for row in range(rows)]
        pq.write_table(pa.table({"image": column, **columns}), "data.parquet")
        return "data.parquet"

    return build


TWO = images("cat", "dog")
PARTS = images("train/cat", "train/dog") | images("test/cat", "test/dog", count=4, start=50)
TWICE = TWO | {name.replace(".png", " (1).png"): data for name, data in TWO.items()}
CLS = {f"{number}.cls": b"ab"[number % 2 : number % 2 + 1] for number in range(12)}
CORPUS: dict[str, tuple[Callable[[], str], bool]] = {
    # what is built, and whether finetune trains on it
    "class folders": (of(TWO), True),
    "parts": (of(PARTS), True),
    "valid": (of(images("Train/cat", "Train/dog", "valid/cat", "valid/dog")), True),
    "a flat test part without labels": (of(images("train/cat", "train/dog", "test")), True),
    "the same beside a validation part": (of(images("train/cat", "train/dog", "val/cat", "val/dog", "test")), True),
    "a class that train lacks": (of(PARTS | images("test/zebra")), False),
    "one class in parts": (of(images("train/cat", "test/cat")), False),
    "photos": (of(images(".")), False),
    "photos by year": (of(images("2021")), False),
    "one folder around the classes": (of(images("all/cat", "all/dog")), False),
    "parts that are not clear": (of(images("train/cat", "train/dog", "holdout1/cat", "holdout1/dog")), False),
    "an empty folder": (of({"notes.txt": b"x"}), False),
    "every file twice": (of(TWICE), True),
    "one image per class": (of(images("cat", "dog", count=1)), False),
    "copies of one image per class": (
        of({f"{c}/{n}.png": picture(n0) for n0, c in enumerate("ab") for n in "12"}),
        False,
    ),
    "links to images": (of(TWO, ("cat/again.png", "00.png"), ("dog/lost.png", "nowhere.png")), True),
    "one in ten broken": (of(PARTS | {"test/cat/00.png": BROKEN}), True),
    "too many broken": (of(PARTS | {f"train/cat/{n:02}.png": BROKEN for n in range(6)}), False),
    "a test part all broken": (of(images("train/cat", "train/dog", count=40) | {"test/cat/a.png": BROKEN}), False),
    "a few of another format": (of(TWO | {"cat/phone.heic": b"x", "dog/film.mov": b"x"}), True),
    "images beside the classes": (of(TWO | {"loose.png": picture(1)}), True),
    "a tar of labels": (packed({f"{number}.png": picture(number) for number in range(12)} | CLS), True),
    "a tar without labels": (packed({f"{number}.png": picture(number) for number in range(12)}), False),
    "a tar of one label": (packed({"a.png": picture(1), "a.cls": b"x", "b.png": picture(2), "b.cls": b"x"}), False),
    "a parquet file of labels": (table(label=["a", "b"] * 6), True),
    "a parquet file of whole floats": (table(label=[0.0, 1.0] * 6), True),
    "a parquet file of fractions": (table(label=[0.5, 1.5] * 6), False),
    "a parquet file without labels": (table(), False),
    "a parquet file where some have none": (table(label=["a", "b", None] * 4), True),
}


def asked(name: str) -> tuple[str, Diagnosis, Data | DataError]:
    """What doctor finds, and what finetune reads or why it stops."""
    made = CORPUS[name][0]()
    found = doctor(DoctorOptions(data=(made,), time=False, device="cpu", max_bad=0.1), Talk())
    try:
        return (
            made,
            found,
            read_data(pick(Reading, FinetuneOptions(dataset=made, max_bad=0.1)), 32, sources=[], talk=Talk()),
        )
    except DataError as error:
        return made, found, error


@pytest.mark.parametrize("name", CORPUS)
def test_doctor_and_finetune_agree(name: str) -> None:
    _, found, read = asked(name)
    assert isinstance(read, Data) == CORPUS[name][1], read
    findings = {each.kind: each for each in (*found.problems, *found.remarks)}
    if isinstance(read, Data):
        assert found.healthy, found.problems
        assert "finetune stops" not in findings
        counted = {name: count for counts in found.classes.values() for name, count in counts.items()}
        assert sorted(counted) == sorted(read.classes)
    else:
        named = {"finetune stops", "no images", "cannot be read", "too few images"} & findings.keys()
        assert named, (read, findings.keys())
        if named == {"finetune stops"}:
            assert str(read).partition(":")[0] in findings["finetune stops"].text
    for each in (*found.problems, *found.remarks):
        assert "remove" not in each.text  # advice costs no data
        assert all(item.name != item.note.removeprefix("copy of ") for item in each.items)


def test_what_has_files_is_never_called_empty() -> None:
    put(TWO | {"cat/raw/1.heic": b"x", "cat/notes/a.txt": b"x"})
    found = doctor(DoctorOptions(data=("data",), time=False, device="cpu"), Talk())
    assert not any("empty" in text for each in found.remarks for text in (each.kind, each.text))
    assert found.left_out["formats"] == 1


def test_a_file_is_listed_once_and_links_are_called_links(tmp_path: Path) -> None:
    put(images("photos/a", "photos/b", count=3))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(picture(99))
    for name in ("photos/a/one.png", "photos/b/two.png"):
        Path("data", name).symlink_to(outside / "x.png")
    overlapping = DoctorOptions(data=("data/photos", "data/photos/a"), time=False, device="cpu")
    found = doctor(overlapping, Talk())
    assert sum(found.images.values()) == 8
    (copies,) = [each for each in found.remarks if each.kind == "copies"]
    assert [(item.name, item.note) for item in copies.items] == [
        (os.path.join("data/photos/b/two.png"), "link to the same file as data/photos/a/one.png")
    ]


def test_what_is_alike_on_white_alone_is_no_copy() -> None:
    icon = np.full((32, 32, 4), 255, np.uint8)
    for number, alpha in enumerate((0, 128, 64)):
        icon[number * 8 : number * 8 + 8, :, 3] = alpha
        Path("data/icons").mkdir(parents=True, exist_ok=True)
        Image.fromarray(icon).save(f"data/icons/{number}.png")
    Image.fromarray(icon).save("data/icons/3.png", compress_level=1)
    found = doctor(DoctorOptions(data=("data",), time=False, device="cpu"), Talk())
    notes = {each.kind: {item.name: item.note for item in each.items} for each in found.remarks}
    assert list(notes["copies"]) == ["data/icons/3.png"]
    assert "on a white background" in notes["near-duplicates"]["data/icons/1.png"]
