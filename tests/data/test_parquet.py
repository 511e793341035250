import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listening import Listener
from pictures import labelled, png, shade, shades, unlabelled, write, write_parquet, write_tar

from selfie_cli.data import parquet
from selfie_cli.data.parquet import Parquet, label_column
from selfie_cli.data.pixels import InMemory, read_pixels
from selfie_cli.data.sources import Files, Joined, Source
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.talk import Talk

CLASSES = ["wool", "ash", "oak"]


def table(name: str, shades: Iterable[int], labels: Any = None, group: int = 1000) -> str:
    """Write pictures of some shades."""
    return write_parquet(Path(f"{name}.parquet"), [png(each) for each in shades], labels, CLASSES, group)


@pytest.fixture
def repository() -> Path:
    """12 images to train on in two files, 3 to validate, 6 to test, whose classes are not in alphabetical order."""
    parts = {"train-00000-of-00002": range(6), "train-00001-of-00002": range(6, 12)}
    parts |= {"test-00000-of-00001": range(20, 26), "validation-00000-of-00001": range(9, 12)}
    for name, rows in parts.items():
        table(f"set/data/{name}", rows, [row % 3 for row in rows], group=4)
    return Path("set")


def decoded(source: Source) -> InMemory:
    return read_pixels(source, size=8, workers=2, max_bad=0.9, talk=Talk())


@pytest.mark.parametrize(
    "names", ["{}-00000-of-00001", "default/{}/0000", "data/{}/0000", "plain/partial-{}/0000"], ids=repr
)
def test_layouts_and_labels_without_names_of_classes(names: str) -> None:
    labels = {"train": [10, 9], "test": pa.array(["9", "10"]).dictionary_encode()}
    for part, each in labels.items():
        write_parquet(Path("set", names.format(part) + ".parquet"), [png(len(part))] * 2, each)
    found = labelled("set")
    assert (shades(found.train.source), shades(found.test.source)) == ([5, 5], [4, 4])
    assert (found.train.classes, found.train.labels.tolist()) == (["9", "10"], [1, 0])
    assert found.test.labels.tolist() == [0, 1]


def test_folders_and_patterns_and_what_is_missing(repository: Path) -> None:
    source = unlabelled(repository)
    assert (shades(source), source.names[7]) == ([*range(12)], "set/data/train-00001-of-00002.parquet/row-000001")
    shard, (file,) = write_tar(Path("a.tar"), {"a.png": png(90)}), write(Path(), "b.png")
    data = repository / "data"
    both = unlabelled(data / "test-00000-of-00001.parquet", shard, file, data / "train-{00000..00001}-of-00002.parquet")
    assert shades(both) == [*range(20, 26), 90, 0, *range(12)]
    parted = labelled(data / "{train-00000-of-00002,test-00000-of-00001}.parquet")
    assert (parted.train.classes, parted.train.labels.tolist()) == (CLASSES, [0, 1, 2] * 2)
    assert (shades(parted.test.source), parted.test.labels.tolist()) == ([*range(20, 26)], [2, 0, 1] * 2)
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 files data/train-\.\.\.-of-00002.parquet, not 2"):
        unlabelled(repository)
    table("set/large/train-00000-of-00001", [1], [0])
    with pytest.raises(DataError, match=r"several data sets default, large: name one of the folders"):
        unlabelled(repository)


def test_rows_and_parts_without_labels_are_left_out() -> None:
    """-1 is how public sets keep the labels of their test part secret."""
    table("set/train", range(4), [1, -1, 0, None])
    table("set/validation", [7], [0])
    table("set/test", [8], [-1])
    talk = Listener()
    found = labelled("set", talk=talk)
    assert (shades(found.train.source), found.train.labels.tolist()) == ([0, 2], [1, 0])
    assert found.train.classes == ["wool", "ash"]
    assert (shades(found.test.source), "validation" in found.split_note) == ([7], True)
    untested = "no test image of ash: the accuracy does not say how well these are recognized"
    assert talk.warned == [untested, "left out: 2 images without a label, 1 part without labels (test)"]
    assert found.left_out.counts == {"unlabelled": 2, "unlabelled_parts": 1}


def test_which_column() -> None:
    for name, parts in {"b": ["train", "test"], **dict.fromkeys(("c", "train"), ["x"] * 2), "d": ["y"] * 2}.items():
        pq.write_table(pa.table({"image": [png(4)] * 2, "label": [0, 1], "split": parts}), f"{name}.parquet")
    for files in (["b.parquet"], ["c.parquet", "d.parquet"]):
        with pytest.raises(DataError, match=f"^{files[-1]} holds several parts, by its column split, or another one"):
            Parquet(files)
    assert len(Parquet(["train.parquet", "d.parquet"])) == 4  # the name of one decides
    two = [{"bytes": png(5), "path": None}]
    assert shades(Parquet([write_parquet(Path("a.parquet"), [png(4)], [1], CLASSES, mask=pa.array(two))])) == [4]
    pq.write_table(pa.table({"jpg": [png(6)], "kind": [1]}), "b.parquet")
    assert shades(Parquet(["b.parquet"])) == [6]
    with pytest.raises(DataError, match=r"no column of labels, name one of them label: it has jpg \(binary\), kind"):
        labelled("b.parquet")
    noted = write_parquet(Path("c.parquet"), [png(4)] * 2, [0, 1], CLASSES, fine_label=["x", "y"])
    assert label_column(noted, pq.read_schema(noted)) == ("label", CLASSES)
    other = pq.read_schema(noted).set(1, pa.field("camera", pa.int64()))  # a ClassLabel beside a usual name
    other = other.with_metadata({b"huggingface": other.metadata[b"huggingface"].replace(b"label", b"camera")})
    assert label_column("c.parquet", other) == ("fine_label", None)
    both = {"left": [b""], "right": [b""]}, r"several columns of images.*left \(binary\), right \(binary\)"
    for columns, wrong in (both, ({"a": [[1.0]]}, "no column of images")):
        pq.write_table(pa.table(columns), "b.parquet")
        with pytest.raises(DataError, match=wrong):
            Parquet(["b.parquet"])


def test_cells_without_bytes() -> None:
    cells = [png(9), None, {"bytes": None, "path": None}, {"bytes": None, "path": write(Path(), "0.png")[0]}]
    store = decoded(Parquet([write_parquet(Path("a.parquet"), cells)]))
    assert store.pixels[:, 0, 0, 0].tolist() == [9]
    assert [one.reason for one in store.bad] == ["the cell holds no bytes"] * 3


def test_row_groups_that_memory_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(Path("a.parquet"), [bytes(10**6)])  # a small file may unpack to more
    monkeypatch.setattr("selfie_cli.data.parquet.available_memory", lambda: 10**6)
    with pytest.raises(DataError, match="smaller row groups"):
        Parquet([path])


def test_damage_costs_only_the_images_in_it() -> None:
    noise = np.random.default_rng(0).bytes(3000)
    path = write_parquet(Path("a.parquet"), [png(row) + noise for row in range(200)], group=100)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    source = Parquet([path])
    assert [shade(source, row) for row in (0, 99)] == [0, 99]
    with pytest.raises(UnreadableImage, match="is damaged"):
        source.open(100)
    assert shade(source, 50) == 50


class Counted(Parquet):
    """Counts the rows that come out of the files."""

    rows = 0

    def _cells(self, number, group, first):
        self.rows += first  # what is passed over is decoded, too
        for cell in super()._cells(number, group, first):
            self.rows += 1
            yield cell


@pytest.mark.parametrize("group", [7, 100, 1000])
def test_in_order_each_row_is_decoded_once(group: int) -> None:
    """However large the row groups are, and with several threads."""
    source = Counted([table(f"{start}", range(start, start + 150), group=group) for start in (0, 90)])
    assert decoded(source).pixels[:, 0, 0, 0].tolist() == [*range(150), *range(90, 240)]
    assert source.rows == 300


def test_any_order_and_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, of which memory holds some: none is read twice while it is there."""
    path = table("a", range(250), group=100)
    order = np.random.default_rng(0).permutation(250).tolist()
    for block in (100, 64):
        source = Counted([path])
        assert source.block == Joined([Files(), source]).block == block
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda index, source=source: shade(source, index), order)) == order
        assert block == 64 or source.rows == 250
        monkeypatch.setattr(parquet, "MOST", 32 * 64 * len(png(200)))  # 32 blocks must have room
        monkeypatch.setattr("selfie_cli.data.blocks.MOST", 64 * len(png(200)))


def test_parquet_files_without_images_beside_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors or a table of labels, say. Without pyarrow, one that is larger than the pictures may be the data set."""
    pictures = sum(Path(name).stat().st_size for name in write(Path("photos"), *[f"{n}.png" for n in range(5)]))
    pq.write_table(pa.table({"path": ["a"], "vector": [[0.0, 1.0]]}), "photos/vectors.parquet")
    assert (len(unlabelled("photos")), unlabelled("photos").left_out.counts) == (5, {})
    Path("photos/vectors.parquet").write_bytes(b"x" * (pictures // 2))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = unlabelled("photos")
    assert (len(source), source.left_out.counts) == (5, {"packed": 1})
    Path("photos/vectors.parquet").write_bytes(b"x" * 2 * pictures)
    with pytest.raises(UsageError, match="parquet needs pyarrow"):
        unlabelled("photos")
