import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listening import Listener
from pictures import labelled, png, shade, unlabelled, write, write_parquet, write_tar

from selfie_cli.data import parquet
from selfie_cli.data.parquet import Parquet
from selfie_cli.data.pixels import InMemory, read_pixels
from selfie_cli.data.sources import Files, Joined, Source
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.talk import Talk

CLASSES = ["wool", "ash", "oak"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """12 images to train on in two files, 3 to validate, 6 to test, whose classes are not in alphabetical order."""
    parts = {"train-00000-of-00002": range(6), "train-00001-of-00002": range(6, 12)}
    parts |= {"test-00000-of-00001": range(20, 26), "validation-00000-of-00001": range(9, 12)}
    for name, rows in parts.items():
        file = tmp_path / "set" / "data" / f"{name}.parquet"
        write_parquet(file, [png(row) for row in rows], [row % 3 for row in rows], CLASSES, group=4)
    return tmp_path / "set"


def shades(found: Source) -> list[int]:
    return [shade(found, index) for index in range(len(found))]


def decoded(source: Source) -> InMemory:
    return read_pixels(source, size=8, workers=2, max_bad=0.9, talk=Talk())


def test_a_folder_is_parted_by_the_names_of_its_files(repository: Path) -> None:
    talk = Listener()
    source = unlabelled(repository, talk=talk)
    assert shades(source) == list(range(12))
    assert source.names[7] == f"{repository}/data/train-00001-of-00002.parquet/row-000001"
    assert talk.lines == [f"{repository}: only train is read, test and validation are kept for evaluation"]

    found = labelled(repository)
    assert (found.name, found.train.classes) == ("set", CLASSES)
    assert (shades(found.train.source), found.train.labels.tolist()) == (list(range(12)), [0, 1, 2] * 4)
    assert (shades(found.test.source), found.test.labels.tolist()) == (list(range(20, 26)), [2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001", "test-00000-of-00001"),
        ("default/train/0000", "default/test/0000"),
        ("data/train/0000", "data/test/0000"),
        ("plain/partial-train/0000", "plain/test/0000"),
    ],
)
def test_layouts_and_labels_without_names_of_classes(tmp_path: Path, train: str, test: str) -> None:
    write_parquet(tmp_path / f"{train}.parquet", [png(0)] * 2, [10, 9])
    write_parquet(tmp_path / f"{test}.parquet", [png(1)] * 2, pa.array(["9", "10"]).dictionary_encode())
    found = labelled(tmp_path)
    assert (shades(found.train.source), shades(found.test.source)) == ([0, 0], [1, 1])
    assert (found.train.classes, found.train.labels.tolist()) == (["9", "10"], [1, 0])
    assert found.test.labels.tolist() == [0, 1]


def test_patterns_beside_other_sources_and_what_is_missing(repository: Path, tmp_path: Path) -> None:
    pattern = repository / "data" / "train-{00000..00001}-of-00002.parquet"
    shard, (file,) = write_tar(tmp_path / "a.tar", {"a.png": png(90)}), write(tmp_path, "b.png")
    both = unlabelled(repository / "data" / "test-00000-of-00001.parquet", shard, file, pattern)
    assert shades(both) == [*range(20, 26), 90, 0, *range(12)]
    parted = labelled(repository / "data" / "{train-00000-of-00002,test-00000-of-00001}.parquet")
    assert (len(parted.train.labels), len(parted.test.labels)) == (6, 6)
    (repository / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 files data/train-\.\.\.-of-00002.parquet, not 2"):
        unlabelled(repository)
    write_parquet(repository / "large" / "train-00000-of-00001.parquet", [png(1)], [0], CLASSES)
    with pytest.raises(DataError, match=r"several data sets default, large: name one of the folders"):
        unlabelled(repository)


def test_rows_and_parts_without_labels_are_left_out(tmp_path: Path) -> None:
    """-1 is how public sets keep the labels of their test part secret."""
    write_parquet(tmp_path / "train.parquet", [png(row) for row in range(4)], [1, -1, 0, None], CLASSES)
    write_parquet(tmp_path / "validation.parquet", [png(7)], [0], CLASSES)
    write_parquet(tmp_path / "test.parquet", [png(8)], [-1], CLASSES)
    talk = Listener()
    found = labelled(tmp_path, talk=talk)
    assert (shades(found.train.source), found.train.labels.tolist()) == ([0, 2], [1, 0])
    assert found.train.classes == ["wool", "ash"]
    assert (shades(found.test.source), "validation" in found.split_note) == ([7], True)
    assert talk.warned == ["left out: 2 images without a label, 1 part without labels (test)"]
    assert found.left_out.counts == {"unlabelled": 2, "unlabelled_parts": 1}


def test_which_column(tmp_path: Path) -> None:
    two = [{"bytes": png(5), "path": None}]
    assert shades(Parquet([write_parquet(tmp_path / "a.parquet", [png(4)], [1], CLASSES, mask=pa.array(two))])) == [4]
    plain = str(tmp_path / "b.parquet")
    pq.write_table(pa.table({"jpg": [png(6)], "kind": [1]}), plain)
    assert shades(Parquet([plain])) == [6]
    with pytest.raises(DataError, match=r"no column of labels, name one of them label: it has jpg \(binary\), kind"):
        labelled(plain)
    for columns, wrong in (
        ({"left": [png(6)], "right": [png(7)]}, r"several columns of images.*left \(binary\), right \(binary\)"),
        ({"vector": [[1.0, 2.0]]}, "no column of images"),
    ):
        pq.write_table(pa.table(columns), plain)
        with pytest.raises(DataError, match=wrong):
            Parquet([plain])


def test_cells_without_bytes(tmp_path: Path) -> None:
    (beside,) = write(tmp_path, "0.png")
    cells = [png(9), None, {"bytes": None, "path": None}, {"bytes": None, "path": beside}]
    store = decoded(Parquet([write_parquet(tmp_path / "a.parquet", cells)]))
    assert store.pixels[:, 0, 0, 0].tolist() == [9]
    assert [one.reason for one in store.bad] == ["the cell holds no bytes"] * 3


def test_row_groups_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may be large once it is unpacked."""
    path = write_parquet(tmp_path / "a.parquet", [bytes(10**6)])
    assert len(Parquet([path])) == 1
    monkeypatch.setattr("selfie_cli.data.parquet.available_memory", lambda: 10**6)
    with pytest.raises(DataError, match="smaller row groups"):
        Parquet([path])


def test_damage_costs_only_the_images_in_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(3000)
    path = Path(write_parquet(tmp_path / "a.parquet", [png(row) + noise for row in range(200)], group=100))
    place = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset : place.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = Parquet([str(path)])
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
def test_in_order_each_row_is_decoded_once(tmp_path: Path, group: int) -> None:
    """However large the row groups are, and with several threads."""
    images = {n: [png(row) for row in range(n, n + 150)] for n in (0, 90)}
    source = Counted([write_parquet(tmp_path / f"{n}.parquet", each, group=group) for n, each in images.items()])
    assert decoded(source).pixels[:, 0, 0, 0].tolist() == [*range(150), *range(90, 240)]
    assert source.rows == 300


def test_any_order_and_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, of which memory holds some: none is read twice while it is there."""
    rows = [png(row) for row in range(250)]
    path = write_parquet(tmp_path / "a.parquet", rows, group=100)
    order = np.random.default_rng(0).permutation(250).tolist()

    def in_order(source: Counted) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda index: shade(source, index), order))

    source = Counted([path])
    assert source.block == Joined([Files(), source]).block == 100
    assert in_order(source) == order
    assert source.rows == 250
    monkeypatch.setattr(parquet, "MOST", 32 * 64 * len(rows[0]))  # 32 blocks must have room
    monkeypatch.setattr("selfie_cli.data.blocks.MOST", 64 * len(rows[0]))
    assert Counted([path]).block == 64
    assert in_order(Counted([path])) == order


def test_without_pyarrow_small_parquet_files_beside_pictures_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors or a table of labels, say; parquet files that are larger than the pictures may be the data set."""
    folder = tmp_path / "photos"
    pictures = sum(Path(name).stat().st_size for name in write(folder, *[f"{number}.png" for number in range(5)]))
    (folder / "vectors.parquet").write_bytes(b"x" * (pictures // 2))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = unlabelled(folder)
    assert (len(source), source.left_out.counts) == (5, {"packed": 1})
    (folder / "vectors.parquet").write_bytes(b"x" * 2 * pictures)
    with pytest.raises(UsageError, match="parquet needs pyarrow"):
        unlabelled(folder)
