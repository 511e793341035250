import io
import os
import pickle
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from selfie_cli.data import sources
from selfie_cli.data.sources import (
    Array,
    Files,
    Joined,
    Named,
    Shards,
    Subset,
    expand_braces,
    fingerprint,
    list_images,
    open_labelled,
    open_unlabelled,
)
from selfie_cli.errors import DataError, UnreadableImage
from selfie_cli.talk import Talk


class Lines(Talk):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(data, "PNG")
    return data.getvalue()


def write(root: Path, *names: str) -> list[str]:
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(shade))
    return [str(root / name) for name in names]


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def unlabelled(*data: object, root: str = "/nonexistent", talk: Talk | None = None):
    return open_unlabelled([str(one) for one in data], data_root=Path(root), offline=True, talk=talk or Talk())


def labelled(dataset: object, root: Path | str = "/nonexistent", talk: Talk | None = None):
    return open_labelled(str(dataset), data_root=Path(root), offline=True, talk=talk or Talk())


def shade(source, index: int) -> int:
    with source.open(index) as image:
        return int(np.asarray(image)[0, 0, 0])


def test_listing_is_deep_sorted_and_picks_images_alone(tmp_path):
    expected = write(tmp_path, "B.PNG", "a.jpg", "b/1.webp", "b/a/2.tif", "c.jpeg")
    write(tmp_path, ".hidden.jpg", ".git/x.jpg", "notes.txt", "jpg", "b/model.bin")
    assert list_images(str(tmp_path)) == expected
    assert list_images(f"{tmp_path}/") == expected


def test_links_are_followed_and_loops_survived(tmp_path):
    write(tmp_path, "a/b/1.jpg", "other/2.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/self").symlink_to("self")
    (tmp_path / "a/there").symlink_to(tmp_path / "other")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "other/2.jpg")
    (tmp_path / "a/nowhere.jpg").symlink_to(tmp_path / "absent")
    found = list_images(str(tmp_path / "a"))
    assert [os.path.relpath(path, tmp_path / "a") for path in found] == [
        "b/1.jpg", "link.jpg", "nowhere.jpg", "there/2.jpg"
    ]  # fmt: skip
    with pytest.raises(UnreadableImage, match="No such file"):
        Files(found).open(2)


@pytest.mark.skipif(sys.platform != "linux", reason="file names there are Unicode")
def test_any_file_name_survives(tmp_path):
    names = ["new\nline.jpg", "\N{SLICE OF PIZZA}.jpg", os.fsdecode(b"\xff\xfe.jpg"), " space .jpg", "u\u2028sep.jpg"]
    write(tmp_path / "images", *names)
    source = unlabelled(tmp_path / "images")
    assert {os.path.basename(name) for name in source.names} == set(names)
    assert sorted(shade(source, index) for index in range(len(names))) == list(range(len(names)))
    assert len(fingerprint(source)) == 16
    shard = write_tar(tmp_path / "a.tar", {name: jpeg(index) for index, name in enumerate(names)})
    assert unlabelled(shard).names == [f"{shard}/{name}" for name in names]
    (tmp_path / "list.txt").write_bytes(b"".join(os.fsencode(f"images/{name}\n") for name in names[1:]))
    assert [os.path.basename(name) for name in unlabelled(tmp_path / "list.txt").names] == names[1:]
    for part in ("one", os.fsdecode(b"two\xff")):
        write(tmp_path / "tree" / part, *names)
    assert len(labelled(tmp_path / "tree").test.source) == 2


def test_a_parted_folder_gives_train_alone_and_says_so(tmp_path):
    expected = write(tmp_path, "train/a/1.jpg")
    write(tmp_path, "val/a/2.jpg", "test/a/3.jpg")
    talk = Lines()
    assert unlabelled(tmp_path, talk=talk).names == expected
    assert len(talk.lines) == 1
    assert all(word in talk.lines[0] for word in ("train/", "val/", "test/"))
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "test")
    write(tmp_path, "extra/4.jpg")
    assert len(unlabelled(tmp_path, talk=talk)) == 2  # nothing but train/ is no partition
    assert len(talk.lines) == 1


def test_lists(tmp_path):
    write(tmp_path, "a.jpg", "sub/b.jpg")
    absolute = str(tmp_path / "a.jpg")
    (tmp_path / "sub/list.txt").write_text(f"\ufeff# comment\r\n\nb.jpg\r\n../a.jpg\n{absolute}\nmissing.jpg\n")
    source = unlabelled(tmp_path / "sub/list.txt")
    assert source.names == [
        f"{tmp_path}/sub/b.jpg",
        f"{tmp_path}/sub/../a.jpg",
        absolute,
        f"{tmp_path}/sub/missing.jpg",
    ]
    assert [shade(source, index) for index in range(3)] == [1, 0, 0]
    (tmp_path / "empty.lst").write_text("# nothing\n")
    with pytest.raises(DataError, match="no paths in the list"):
        unlabelled(tmp_path / "empty.lst")


def test_shards_are_read_in_place_by_many_threads(tmp_path):
    long = "deep/" * 40 + "long.png"  # beyond the 100 bytes of a plain tar header
    members = {
        "1.png": jpeg(1),
        "1.json": b"{}",
        ".x.png": jpeg(9),
        long: jpeg(2),
        "zero.png": b"",
        "../evil.PNG": jpeg(3),
    }
    path = write_tar(tmp_path / "s.tar", members)
    shards = Shards([path])
    assert shards.names == [f"{path}/{name}" for name in ("1.png", long, "zero.png", "../evil.PNG")]
    with pytest.raises(UnreadableImage, match="empty file"):
        shards.open(2)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: shade(shards, index), [0, 1, 3] * 50)) == [1, 2, 3] * 50
    assert [path.name for path in tmp_path.rglob("*")] == ["s.tar"]


def test_brace_patterns(tmp_path):
    assert expand_braces("a-{008..011}.tar") == [f"a-{number}.tar" for number in ("008", "009", "010", "011")]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain") == ["plain"]
    for number in range(3):
        write_tar(tmp_path / f"t-{number:04d}.tar", {f"{number}.png": jpeg(number)})
    source = unlabelled(tmp_path / "t-{0000..0002}.tar")
    assert [shade(source, index) for index in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"2 of 5 shards are missing, the first is .*t-0003.tar"):
        unlabelled(tmp_path / "t-{0000..0004}.tar")
    shutil.copy(tmp_path / "t-0001.tar", tmp_path / "odd{1..9}.tar")
    assert len(unlabelled(tmp_path / "odd{1..9}.tar")) == 1  # what exists under its very name wins


def test_damaged_shards_are_named(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar", {"1.png": jpeg(1) * 10, "2.png": jpeg(2) * 10}))
    whole = path.read_bytes()
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(DataError, match=r"cannot read the shard .*s\.tar"):
        unlabelled(path)
    path.write_bytes(whole[:1800])  # the second member's data are cut
    try:
        source = unlabelled(path)
    except DataError as error:
        assert "s.tar" in str(error)  # noqa: PT017 - either is fine
    else:
        assert shade(source, 0) == 1
    (tmp_path / "s.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="compressed"):
        unlabelled(tmp_path / "s.tar.gz")


def test_several_data_are_joined_in_order(tmp_path):
    paths = write(tmp_path, "a/0.png", "a/1.png", "b.png")
    shard = write_tar(tmp_path / "s.tar", {"x.png": jpeg(7)})
    source = unlabelled(tmp_path / "b.png", shard, tmp_path / "a")
    assert source.names == [paths[2], f"{shard}/x.png", *paths[:2]]
    assert [shade(source, index) for index in range(4)] == [2, 7, 0, 1]


def test_what_is_missing_or_empty_is_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.pdf").touch()
    with pytest.raises(DataError, match=r"no images in .*docs \(looked for .*\.jpg.*; 1 other files were found"):
        unlabelled(tmp_path / "docs")
    with pytest.raises(DataError, match=r"absent: no such file or folder.*cifar10, cifar100, stl10"):
        unlabelled(tmp_path / "absent")
    with pytest.raises(DataError, match="no data"):
        unlabelled()
    with pytest.raises(DataError, match="no such file or folder"):
        labelled(tmp_path / "absent")


def test_array_named_and_subset():
    array = Array(np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3), list("abc"))
    assert [shade(array, index) for index in range(3)] == [0, 1, 2]
    named = Named([(array.open(index), 0) for index in range(3)], ["x", "y", "z"])
    subset = Subset(Joined([named, array]), np.array([4, 0, 2]))
    assert subset.names == ["b", "x", "z"]
    assert [shade(subset, index) for index in range(3)] == [1, 0, 2]


def test_the_fingerprint_ignores_where_a_folder_lies(tmp_path):
    for folder in ("one", "two/deeper"):
        write(tmp_path / folder, "ab/1.jpg", "ac/2.jpg")
    one, two = (unlabelled(tmp_path / folder) for folder in ("one", "two/deeper"))
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(Subset(one, np.array([0])))
    assert fingerprint(Files(["a/1.jpg"])) != fingerprint(Files(["a/2.jpg"]))
    assert fingerprint(Files(["a/1", "b/2"])) != fingerprint(Files(["a/1", "b/3"]))


def test_folder_of_classes_is_split_by_hash(tmp_path):
    write(tmp_path, *[f"{name}/{index}.png" for name in ("dog", "cat") for index in range(10)], "rare/0.png")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "loose.png")
    talk = Lines()
    found = labelled(tmp_path, talk=talk)
    assert found.train.classes == found.test.classes == ["cat", "dog", "rare"]
    assert np.bincount(found.test.labels, minlength=3).tolist() == [2, 2, 0]
    assert np.bincount(found.train.labels).tolist() == [8, 8, 1]
    for part in (found.train, found.test):
        assert part.labels.dtype == np.int64
        folders = [Path(name).parent.name for name in part.source.names]
        assert folders == [part.classes[label] for label in part.labels]
    assert not set(found.train.source.names) & set(found.test.source.names)
    assert "hash" in found.split_note
    assert found.validation is None
    assert found.name == tmp_path.name
    assert any("empty" in line for line in talk.lines)
    assert any("1 images lie outside" in line for line in talk.lines)
    moved = labelled(shutil.copytree(tmp_path, tmp_path.parent / "elsewhere"))
    assert [Path(name).name for name in moved.test.source.names] == [
        Path(name).name for name in found.test.source.names
    ]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_parted_folders_of_classes(tmp_path, validation):
    write(tmp_path, "train/a/1.png", "train/b/2.png", f"{validation}/a/3.png", f"{validation}/b/4.png")
    found = labelled(tmp_path)
    assert found.validation is None
    assert [Path(name).name for name in found.test.source.names] == ["3.png", "4.png"]
    assert f"{validation}/" in found.split_note
    write(tmp_path, "test/b/5.png")
    found = labelled(tmp_path)
    assert found.test.labels.tolist() == [1]
    assert found.validation.labels.tolist() == [0, 1]
    assert "test/" in found.split_note
    write(tmp_path, "test/zebra/6.png")
    with pytest.raises(DataError, match="training part lacks: zebra"):
        labelled(tmp_path)


def test_layouts_that_cannot_be_learned_from(tmp_path):
    write(tmp_path, "flat/1.png", "one/cat/1.png", "one/cat/2.png", "single/a/1.png", "single/b/2.png")
    (tmp_path / "bare").mkdir()
    for folder, message in [
        ("flat", "images of each class in a folder"),
        ("one", "only one class"),
        ("single", "nothing is left to test on"),
        ("bare", "no images in"),
        ("flat/1.png", "is a file"),
    ]:
        with pytest.raises(DataError, match=message):
            labelled(tmp_path / folder)


def test_labelled_shards(tmp_path):
    def shard(number: int, label) -> str:
        keys = [f"{number}{index:03d}" for index in range(10)]
        members = {f"{key}.cls": label(index) for index, key in enumerate(keys)}
        return write_tar(tmp_path / f"s-{number}.tar", members | {f"{key}.png": jpeg(int(key)) for key in keys})

    for number in range(2):
        shard(number, lambda index: f"{[2, 10][index % 2]}\n".encode())
    found = labelled(tmp_path / "s-{0..1}.tar")
    assert found.train.classes == ["2", "10"]  # numbers in the order of numbers
    assert np.bincount(found.test.labels).tolist() == [2, 2]
    for part in (found.train, found.test):
        assert [int(name[-5]) % 2 for name in part.source.names] == part.labels.tolist()
    shard(2, lambda index: [b"dog", b"cat"][index % 2])
    assert labelled(tmp_path / "s-2.tar").train.classes == ["cat", "dog"]
    bare = write_tar(tmp_path / "bare.tar", {"a.png": jpeg(0), "b.png": jpeg(1), "b.cls": b"1"})
    with pytest.raises(DataError, match=r"1 images have no \.cls file.*bare\.tar/a\.png"):
        labelled(bare)


def test_an_image_tree_serves_as_the_set_of_that_name(tmp_path, monkeypatch):
    write(tmp_path, "cifar10/train/cat/1.png", "cifar10/train/dog/2.png", "cifar10/test/cat/3.png")
    assert len(unlabelled("cifar10", root=str(tmp_path))) == 2
    found = labelled("cifar10", root=tmp_path)
    assert (found.name, len(found.test.source)) == ("cifar10", 1)
    write(tmp_path / "here", "cifar10/x.png")
    monkeypatch.chdir(tmp_path / "here")
    assert unlabelled("cifar10", root=str(tmp_path)).names == ["cifar10/x.png"]  # what exists wins


@pytest.mark.parametrize("name", sources.NAMED)
def test_named_sets_that_are_not_there_are_not_fetched_offline(tmp_path, name):
    for verb in (unlabelled, labelled):
        with pytest.raises(DataError, match=f"{name} is not in .* without --offline"):
            verb(name, root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_stl10_through_torchvisions_reader(tmp_path, monkeypatch):
    from torchvision.datasets import STL10

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    counts = {"train": 4, "test": 2, "unlabeled": 3}
    planes = {part: np.random.default_rng(0).integers(0, 256, (n, 3, 96, 96), np.uint8) for part, n in counts.items()}
    for part, array in planes.items():
        array.tofile(folder / f"{part}_X.bin")
        np.arange(1, len(array) + 1, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("a\nb\nc\nd\n")
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    found = labelled("stl10", root=tmp_path)
    assert (found.train.labels.tolist(), found.train.classes) == ([0, 1, 2, 3], list("abcd"))
    with found.test.source.open(1) as image:
        np.testing.assert_array_equal(np.asarray(image), planes["test"][1].transpose(2, 1, 0))  # columns come first
    whole = unlabelled("stl10", root=str(tmp_path))
    assert len(whole) == 7
    assert whole.names[0] == "stl10/unlabelled/000000"


def test_fashionmnist_through_torchvisions_reader(tmp_path):
    folder = tmp_path / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 3), ("t10k", 2)):
        pixels = np.arange(count * 784).reshape(count, 28, 28) % 256
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
        labels = b"\0\0\x08\x01" + np.array([count], ">i4").tobytes() + bytes(range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    found = labelled("fashionmnist", root=tmp_path)
    assert found.train.labels.tolist() == [0, 1, 2]
    with found.train.source.open(0) as image:
        assert np.asarray(image)[1, 2].tolist() == [30, 30, 30]
    (tmp_path / "FashionMNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (tmp_path / "FashionMNIST/processed" / name).write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match="pickled files"):
        labelled("fashionmnist", root=tmp_path)


def test_file_sets_through_torchvisions_readers(tmp_path):
    write(tmp_path / "dtd/dtd/images", *[f"{name}/{index}.jpg" for name in ("dotted", "banded") for index in range(3)])
    (tmp_path / "dtd/dtd/labels").mkdir()
    for index, part in enumerate(["train", "val", "test"]):
        lines = f"dotted/{index}.jpg\nbanded/{index}.jpg\n"
        (tmp_path / f"dtd/dtd/labels/{part}1.txt").write_text(lines)
    found = labelled("dtd", root=tmp_path)
    assert found.train.classes == ["banded", "dotted"]
    assert found.validation.labels.tolist() == [1, 0]
    assert shade(found.test.source, 1) == 5
    write(
        tmp_path / "eurosat/2750", *[f"{name}/{name}_{index}.jpg" for name in ("River", "Forest") for index in range(5)]
    )
    found = labelled("eurosat", root=tmp_path)
    assert np.bincount(found.test.labels).tolist() == [1, 1]
    assert "hash" in found.split_note
    assert len(unlabelled("eurosat", root=str(tmp_path))) == 10
    for part in ("train", "val"):
        write(tmp_path / "imagenette2-320" / part, "n01440764/1.JPEG", "n02102040/2.JPEG")
    found = labelled("imagenette", root=tmp_path)
    assert found.train.classes == ["tench", "English springer"]


def test_a_download_is_announced_and_whole_or_absent(tmp_path, monkeypatch):
    from torchvision import datasets

    class Reader:
        def __init__(self, root: str, download: bool, train: bool) -> None:
            if download:
                (Path(root) / "base").mkdir()
                if fails:
                    raise ConnectionResetError("connection reset")
                print("noise on stdout")
            elif not (Path(root) / "base").exists():
                raise RuntimeError("Dataset not found")
            self.data, self.targets, self.classes = np.zeros((2, 4, 4, 3), np.uint8), [0, 1], ["a", "b"]

    monkeypatch.setattr(datasets, "CIFAR10", Reader)
    talk = Lines()
    fails = True
    with pytest.raises(DataError, match=r"could not be downloaded from www\.cs\.toronto\.edu: connection reset"):
        open_labelled("cifar10", data_root=tmp_path / "root", offline=False, talk=talk)
    assert list((tmp_path / "root").iterdir()) == []
    fails = False
    found = open_labelled("cifar10", data_root=tmp_path / "root", offline=False, talk=talk)
    assert found.train.labels.tolist() == [0, 1]
    assert "170 MB" in talk.lines[0]
    assert "www.cs.toronto.edu" in talk.lines[0]
    assert len(talk.lines) == 2  # once a try


def test_unpickling_readers_check_first(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(SimpleNamespace()))
    with pytest.raises(DataError, match="cifar10 is not in"):
        labelled("cifar10", root=tmp_path)
