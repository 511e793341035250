import re
from pathlib import Path

import pytest

from selfie_cli.data.layout import KINDS, PARTS, arrange, in_order, label_of, part_of, parts_in

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "data.md"


def test_the_page_has_every_kind_and_every_name_of_a_part() -> None:
    rules = PAGE.read_text(encoding="utf-8").partition("## Rules of layouts")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", rules, re.MULTILINE)[1:] == list(KINDS)
    row = next(line for line in rules.splitlines() if line.startswith("| a part |"))
    named = re.findall(r"`(\w+)`", row.partition("in any case")[0])
    assert named == [name for names in PARTS.values() for name in names]


PARTS_OF = {"train": ("train", "train"), "Validation": ("validation",) * 2, "VAL2017": ("validation",) * 2}
PARTS_OF |= {"test_images": ("test", "test"), "training_set": ("train",) * 2, "trainset": ("train",) * 2}
PARTS_OF |= {"wds-train-000012": (None, "train"), "seg_train": (None, "train")}
PARTS_OF |= {"train station": (None, "train"), "train-test": (None, None), "latest": (None, None)}


@pytest.mark.parametrize("name", [*PARTS_OF, "constraint"])
def test_parts_of_folders_and_of_files(name: str) -> None:
    """A folder `train station` is a class."""
    assert (part_of(name, is_folder=True), part_of(name, is_folder=False)) == PARTS_OF.get(name, (None, None))


def test_of_two_folders_for_one_part_the_first_name_is_taken() -> None:
    assert parts_in(["train", "Train", "test", "eval"]) == {"train": "Train", "test": "test"}
    assert parts_in(["train", "cat"]) == parts_in(["val", "test"]) == {}


def test_places_and_labels() -> None:
    assert arrange(["", "cat", "cat/deep"]) == {"": ("", ""), "cat": ("", "cat"), "cat/deep": ("", "cat")}
    places = {"train/cat": ("train", "cat"), "valid/cafe\u0301": ("validation", "caf\u00e9")}
    places |= {"other/x": ("apart", "x"), "": ("apart", "")}
    assert arrange(list(places)) == places
    assert arrange(["cat/train", "cat/test"]) == {"cat/train": ("train", "cat"), "cat/test": ("test", "cat")}
    known = {0: "0", 2.0: "2", True: "True", " cat ": "cat", "cafe\u0301": "caf\u00e9"}
    known |= dict.fromkeys((-1.0, float("nan"), "-1", "", " ", None))
    assert {value: label_of(value) for value in known} == known
    assert in_order({"10", "9", "2"}) == ["2", "9", "10"]
    assert in_order({"10", "9", "b"}) == ["10", "9", "b"]
