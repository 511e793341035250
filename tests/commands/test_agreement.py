"""doctor and finetune over one corpus of layouts: both open images and labels by the same code, and agree."""

from pathlib import Path

import numpy as np
import pytest
from layouts import CASES, Build, link, picture, several, table, tar, tree
from PIL import Image

from selfie_cli.commands.doctor import Diagnosis, doctor
from selfie_cli.comparison.labels import Data, Reading, read_data
from selfie_cli.config import DoctorOptions, FinetuneOptions
from selfie_cli.data.augment import OURS
from selfie_cli.errors import DataError
from selfie_cli.option import pick
from selfie_cli.talk import Talk

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


def checkup(*data: str, max_bad: float = 0.1) -> Diagnosis:
    return doctor(DoctorOptions(data=data, time=False, device="cpu", max_bad=max_bad), Talk())


@pytest.mark.parametrize("name", CORPUS)
def test_doctor_and_finetune_agree(name: str) -> None:
    build, trains = CORPUS[name]
    build(Path.cwd())
    (made,) = [each.name for each in Path.cwd().glob("data*")]
    found = checkup(made)
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


def test_images_that_are_alike_on_white_alone_are_no_copies() -> None:
    icon = np.full((32, 32, 4), 255, np.uint8)
    Path("data/icons").mkdir(parents=True)
    for number, alpha in enumerate((0, 128, 64)):
        icon[number * 8 : number * 8 + 8, :, 3] = alpha
        Image.fromarray(icon).save(f"data/icons/{number}.png")
    Image.fromarray(icon).save("data/icons/3.png", compress_level=1)
    notes = {each.kind: {item.name: item.note for item in each.items} for each in checkup("data").remarks}
    assert list(notes["copies"]) == ["data/icons/3.png"]
    assert "on a white background" in notes["near-duplicates"]["data/icons/1.png"]
