import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from layouts import CASES, Build, link, picture, several, table, tar, tree
from PIL import Image, ImageOps
from running import document, draw_folder, selfie

from selfie_cli.commands.doctor import Diagnosis, doctor
from selfie_cli.comparison.labels import Data, Reading, read_data
from selfie_cli.config import DoctorOptions, FinetuneOptions
from selfie_cli.data import synthetic
from selfie_cli.data.augment import OURS
from selfie_cli.errors import DataError
from selfie_cli.files import read_json
from selfie_cli.option import pick
from selfie_cli.talk import Talk
from tests.data.corpus import bombs, saved


def look(*data: object, **options: object) -> Diagnosis:
    return doctor(DoctorOptions(data=tuple(map(str, data)), time=False, device="cpu", **options), Talk())


def items_of(found: Diagnosis) -> dict[str, dict[str, str]]:
    """Return the notes on each file, by kind of finding."""
    return {each.kind: {item.name: item.note for item in each.items} for each in found.problems + found.remarks}


def problems_of(found: Diagnosis) -> list[str]:
    return [each.kind for each in found.problems]


def plant(folder: Path) -> list[tuple[str, str, str]]:
    """A folder with train/ and test/ and these faults: (kind, name below the folder, what its note says)."""
    draw_folder(folder, train=64, test=32)
    first, second, third = sorted(each.name for each in (folder / "train").iterdir())[:3]
    new = [Image.fromarray(np.asarray(each)) for each in synthetic.draw(32, seed=99, size=32)[0]]
    sound = sorted((folder / "train" / first).iterdir())
    names = [f"train/{first}/{file.name}" for file in sound]
    again, mirrored, other = (Image.open(file) for file in sound[1:4])
    deep = Image.fromarray(np.asarray(new[5].convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    mine: list[tuple[str, str, bytes, str]] = [  # below the folder of the first class
        ("cannot be read", "cut.jpg", saved(new[0], "JPEG", quality=95)[:-300], "truncated"),
        ("cannot be read", "empty.jpg", b"", "empty file"),
        ("cannot be read", "text.jpg", b"a recipe for soup", "not an image"),
        ("cannot be read", "bomb.png", next(bombs()).data, "million pixels"),
        ("cannot be read", "float.tif", saved(new[1].convert("F"), "TIFF"), "float"),
        ("tiny", "dot.png", saved(new[2].resize((1, 1)), "PNG"), "1 x 1 px"),
        ("long", "panorama.png", saved(new[3].resize((320, 20)), "PNG"), "320 x 20 px"),
        ("grey", "grey.png", saved(new[4].convert("L"), "PNG"), ""),
        ("16 bits", "deep.png", saved(deep, "PNG"), ""),
        ("CMYK", "ink.jpg", saved(new[6].convert("CMYK"), "JPEG"), ""),
        ("several frames", "moving.gif", saved(new[7], "GIF", save_all=True, append_images=[new[8]]), ""),
        ("transparent", "palette.png", saved(new[9].quantize(64), "PNG", transparency=3), ""),
        ("turned by EXIF", "turned.jpg", saved(new[10], "JPEG", exif=exif), ""),
        ("wrong suffix", "misnamed.jpg", saved(new[11], "PNG"), "PNG"),
        ("blank", "black.jpg", saved(Image.new("RGB", (32, 32)), "JPEG"), ""),
        ("copies", "zz-copy.png", sound[0].read_bytes(), f"copy of {names[0]}"),
        ("near-duplicates", "zz-again.jpg", saved(again, "JPEG", quality=85), names[1]),
        ("near-duplicates", "zz-mirrored.jpg", saved(ImageOps.mirror(mirrored), "JPEG", quality=85), names[2]),
        ("strange names", "two\nlines.png", saved(new[16], "PNG"), ""),
        ("strange names", "caf\udce9.png", saved(new[17], "PNG"), ""),
    ]
    elsewhere = [
        ("one photo, two classes", f"train/{third}/elsewhere.bmp", saved(other, "BMP"), names[3]),
        ("test images seen", f"test/{first}/leak.png", sound[4].read_bytes(), names[4]),
        ("without a class", "train/loose.png", saved(new[18], "PNG"), ""),
    ]
    told = [*((kind, f"train/{first}/{name}", data, note) for kind, name, data, note in mine), *elsewhere]
    others = ("train/rare/one.png", "test/stranger/one.png", f"train/{first}/phone.heic", "more/photo.png")
    written = {name: data for _, name, data, _ in told}
    for name, data in (written | {name: saved(new[12 + i], "PNG") for i, name in enumerate(others)}).items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)
    (folder / "train" / second / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    for name in ("hollow", "folder.jpg"):
        (folder / "train" / name).mkdir()
    return [
        *((kind, name, note) for kind, name, _, note in told),
        ("cannot be read", f"train/{second}/gone.jpg", "not there"),
        ("small classes", "rare", "1 of train"),
        ("left out", "2 folders without images", "train/folder.jpg, train/hollow"),
        ("left out", "1 file of a format that is not read", ".heic"),
        ("left out", "1 image outside the parts", ""),
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, str]]]:
    folder = tmp_path_factory.mktemp("planted") / "images"
    return folder, plant(folder)


def test_every_planted_fault_is_found_and_nothing_is_changed(planted):
    folder, faults = planted
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    result = look(folder)
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    found = items_of(result)
    assert len(faults) >= 28
    for kind, name, note in faults:
        path = str(folder / name) if "/" in name else name
        assert path in found[kind], (kind, name)
        assert note in found[kind][path].replace(f"{folder}/", ""), (kind, name)
    # And nothing else, except for images that were drawn alike.
    expected = {(kind, str(folder / name) if "/" in name else name) for kind, name, _ in faults}
    elsewhere, dot, deep = (str(next(folder.rglob(name))) for name in ("elsewhere.bmp", "dot.png", "deep.png"))
    expected |= {("copies", elsewhere), ("blank", dot), ("grey", deep)}
    named = {(kind, name) for kind, items in found.items() for name in items}
    others = {"finetune stops", "near-duplicates", "test images like seen ones", "untested classes"}
    assert {kind for kind, _ in named - expected} <= others
    assert set(problems_of(result)) == {"cannot be read", "test images seen", "finetune stops"}
    stops = next(each.text for each in result.problems if each.kind == "finetune stops")
    assert "classes that the training part lacks: stranger" in stops
    assert result.left_out == {"formats": 1, "empty": 2, "apart": 1, "outside": 1}


def test_the_command_names_every_planted_fault_and_exits_1(planted):
    folder, faults = planted
    shown = selfie("doctor", folder, "--no-time", "--quiet", code=1).stdout.replace(f"{folder}/", "")
    assert shown.startswith("Not healthy: 3 problems, ")
    lines = [line.strip() for line in shown.splitlines()]
    assert any(line.startswith("images ") and "train" in line for line in lines)
    written = [(name.replace("\n", "\\n").replace("\udce9", "\\udce9"), note) for _, name, note in faults]
    lost = [name for name, note in written if not any(line.startswith(name) and note in line for line in lines)]
    assert len(lost) <= sum(int(count) for count in re.findall(r"and (\d+) more, see --json", shown)) <= 5


def test_healthy_images_and_how_long_pretraining_takes(images, tmp_path):
    """`images` are drawn: train/ of 60 and test/ of 30."""
    shutil.copytree(images, tmp_path / "images")
    asked = ("--workers", 1, "--precision", "fp32", "--backbone", "resnetv2_18_w16")
    found = document("doctor", "images", *asked)
    sizes = [path.stat().st_size for path in images.rglob("*.png")]
    expected = {"healthy": True, "problems": [], "images": {"train": 60, "test": 30}, "formats": {"PNG": 90}}
    expected |= {"short_side": {"smallest": 32, "median": 32, "largest": 32}, "all_bytes": sum(sizes), "workers": 1}
    assert {name: found[name] for name in expected} == expected
    assert sum(found["classes"]["train"].values()) == 60
    assert found["file_bytes"]["largest"] == max(sizes)
    assert found["machine"]["memory"] > 0
    plan = found["plans"][0]
    planned = {"image_size": 32, "backbone": "resnetv2_18_w16", "batch_size": 60, "steps": 2000, "precision": "fp32"}
    assert {name: plan[name] for name in planned} == planned
    assert plan["seconds"] > 0
    # The command to paste is one that pretrain accepts and runs as planned.
    command = plan["command"].split()
    assert command[:3] == ["selfie", "pretrain", "images"]
    assert {"--precision", "--workers"} <= set(command)
    selfie(*command[1:], "--steps", 1, "--no-report", "--out", "run")
    derived = read_json(Path("run/config.json"))["derived"]
    assert (derived["image_size"], derived["batch_size"]) == (32, 60)


def test_sets_that_do_not_fit_into_memory_are_timed_with_their_decoding(images, tmp_path, monkeypatch):
    """And nothing is written into the cache."""
    monkeypatch.setattr("selfie_cli.data.pixels.SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = DoctorOptions(data=(str(images),), backbone="resnetv2_18_w16", device="cpu", precision="fp32")
    found = doctor(options, Talk())
    assert (found.plans[0].in_memory, found.plans[0].reading) == (False, 0)
    assert (found.plans[0].seconds or 0) > 0
    assert found.machine.store == str(tmp_path / "cache" / "selfie")
    assert not (tmp_path / "cache").exists()


def test_bad_files_up_to_max_bad_are_a_remark_and_nothing_to_train_on_is_a_problem():
    draw_folder(Path("all"), train=60, test=0)
    Path("all/train/broken.png").write_bytes(b"")
    allowed = look("all/train", max_bad=0.02)
    assert allowed.healthy
    assert items_of(allowed)["cannot be read"] == {"all/train/broken.png": "empty file"}
    assert problems_of(look("all/train")) == ["cannot be read"]
    assert "--max-bad 0.3" in look("all/train", max_bad=0.3).plans[0].command
    Path("one").mkdir()
    assert problems_of(look("one")) == ["no images"]
    Image.new("RGB", (40, 40), "red").save("one/a.png")
    assert problems_of(look("one")) == ["too few images"]
    Path("one/a.png").write_bytes(b"")
    assert problems_of(look("one")) == ["cannot be read", "too few images"]
    assert "a data set's is hf://datasets/owner/name" in look("hf://acme/net").problems[0].text


BROKEN = b"no image"
PARTS = ("train/cat", "train/dog", "test/cat", "test/dog")
# What is built, and whether finetune trains on it; beside what tests/layouts.py has for finetune.
CORPUS: dict[str, tuple[Build, bool]] = {
    "the same beside a validation part": (tree("train/cat", "train/dog", "val/cat", "val/dog", "test"), True),
    "photos": (tree("."), False),
    "an empty folder": (tree(files={"notes.txt": b"x"}), False),
    "copies of one image per class": (tree(files={f"{a}/{n}.png": picture(ord(a)) for a in "ab" for n in "12"}), False),
    "links to images": (
        several(tree("cat", "dog"), link("00.png", "data/cat/again.png"), link("nowhere.png", "data/dog/lost.png")),
        True,
    ),
    "one in ten broken": (tree(*PARTS, files={"test/cat/00.png": BROKEN}), True),
    "too many broken": (tree(*PARTS, files={f"train/cat/{n:02}.png": BROKEN for n in range(5)}), False),
    "a test part all broken": (tree(*PARTS[:2], count=40, files={"test/cat/a.png": BROKEN}), False),
    "a tar without labels": (tar(*((f"{number}.png", picture(number)) for number in range(12))), False),
    "a parquet file without labels": (table(images=12), False),
    "a damaged validation part beside a test part": (
        several(
            table(*"ab" * 6, name="data/train.parquet"),
            table(*"ab" * 6, name="data/test.parquet", start=50),
            tree(files={"validation.parquet": b"PAR1 damaged"}),
        ),
        True,
    ),
}
FINETUNED = [case for case in CASES if case.command.startswith("finetune") and case.code < 2]
CORPUS |= {case.title: (case.build, case.code == 0) for case in FINETUNED}


@pytest.mark.parametrize("name", CORPUS)
def test_doctor_and_finetune_agree(name: str) -> None:
    """Both open images and labels by the same code."""
    build, trains = CORPUS[name]
    build(Path.cwd())
    (made,) = [each.name for each in Path.cwd().glob("data*")]
    found = look(made, max_bad=0.1)
    try:
        read: Data | DataError = read_data(
            pick(Reading, FinetuneOptions(dataset=made, max_bad=0.1)), 32, sources=[], preprocessing=OURS, talk=Talk()
        )
    except DataError as error:
        read = error
    assert isinstance(read, Data) == trains, read
    findings = {each.kind: each for each in (*found.problems, *found.remarks)}
    if isinstance(read, Data):
        # Two of the layouts have the same images in both parts.
        assert found.healthy or [each.kind for each in found.problems] == ["test images seen"], found.problems
        assert "finetune stops" not in findings
        assert sorted({name for counts in found.classes.values() for name in counts}) == sorted(read.classes)
    else:
        named = {"finetune stops", "no images", "cannot be read", "too few images"} & findings.keys()
        assert named, (read, findings.keys())
        if named == {"finetune stops"}:
            assert str(read).partition(":")[0] in findings["finetune stops"].text
    for each in findings.values():
        assert "remove" not in each.text  # advice costs no data
        assert all(item.name != item.note.removeprefix("copy of ") for item in each.items)


def test_images_that_are_alike_on_white_alone_are_no_copies():
    icon = np.full((32, 32, 4), 255, np.uint8)
    Path("icons").mkdir()
    for number, alpha in enumerate((0, 128, 64)):
        icon[number * 8 : number * 8 + 8, :, 3] = alpha
        Image.fromarray(icon).save(f"icons/{number}.png")
    Image.fromarray(icon).save("icons/3.png", compress_level=1)
    notes = items_of(look("icons"))
    assert list(notes["copies"]) == ["icons/3.png"]
    assert "on a white background" in notes["near-duplicates"]["icons/1.png"]


def test_real_clothes(real_archives, tmp_path):
    with tarfile.open(real_archives / "clothing256.tar") as tar:
        members = [each for each in tar.getmembers() if "/skirt/" in each.name or "/shorts/" in each.name]
        tar.extractall(tmp_path, members, filter="data")
    result = look(next(path.parent for path in tmp_path.rglob("train")))
    assert result.plans[0].image_size == 224
    assert len(items_of(result)["near-duplicates"]) == 2  # one piece photographed twice, one photo in two classes
    assert len(items_of(result)["one photo, two classes"]) == 1
