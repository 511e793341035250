import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from listening import Listener
from pictures import labelled, put, shade, unlabelled, write, write_tar

from selfie_cli.data.named import NAMED, read_named
from selfie_cli.data.sources import Source
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk


def test_an_image_tree_serves_as_the_set_of_that_name():
    write(Path("root"), "cifar10/train/cat/1.png", "cifar10/train/dog/2.png", "cifar10/test/cat/3.png")
    assert len(unlabelled("cifar10", root="root")) == 2
    found = labelled("cifar10", root="root")
    assert (found.name, len(found.test.source)) == ("cifar10", 1)
    write(Path(), "cifar10/x.png")
    assert unlabelled("cifar10", root="root").names == ["cifar10/x.png"]  # what exists wins


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_there_or_of_another_hash_is_not_read_offline(name):
    files = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta"]
    put("root/cifar-10-batches-py", dict.fromkeys(files, pickle.dumps(print)))  # which torchvision must not open
    for verb in (unlabelled, labelled):
        with pytest.raises(DataError, match=f"{name} is not in .* without --offline"):
            verb(name, root="root")
    assert os.listdir("root") == ["cifar-10-batches-py"]


def test_stl10_through_torchvisions_reader(monkeypatch):
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    put("stl10_binary", {"class_names.txt": b"a\nb\nc\nd\n"})
    for part, count in {"train": 4, "unlabeled": 3, "test": 2}.items():
        planes = np.random.default_rng(0).integers(0, 256, (count, 3, 96, 96), np.uint8)
        put("stl10_binary", {f"{part}_X.bin": planes.tobytes(), f"{part}_y.bin": bytes(range(1, count + 1))})
    found = labelled("stl10", root=".")
    assert (found.train.labels.tolist(), found.train.classes) == ([0, 1, 2, 3], list("abcd"))
    with found.test.source.open(1) as image:
        np.testing.assert_array_equal(np.asarray(image), planes[1].transpose(2, 1, 0))  # columns come first
    whole = unlabelled("stl10", root=".")
    assert (len(whole), whole.names[0]) == (7, "stl10/unlabelled/000000")


def test_fashionmnist_through_torchvisions_reader():
    for prefix, count in (("train", 3), ("t10k", 2)):
        pixels = (np.arange(count * 784) % 256).astype(np.uint8).tobytes()
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes()
        labels = b"\0\0\x08\x01" + np.array([count], ">i4").tobytes() + bytes(range(count))
        files = {f"{prefix}-images-idx3-ubyte": header + pixels, f"{prefix}-labels-idx1-ubyte": labels}
        put("FashionMNIST/raw", files)
    found = labelled("fashionmnist", root=".")
    assert found.train.labels.tolist() == [0, 1, 2]
    with found.train.source.open(0) as image:
        assert np.asarray(image)[1, 2].tolist() == [30, 30, 30]
    put("FashionMNIST/processed", dict.fromkeys(("training.pt", "test.pt"), pickle.dumps(print)))
    with pytest.raises(DataError, match="pickled files"):
        labelled("fashionmnist", root=".")


def test_file_sets_through_torchvisions_readers():
    root = Path("data")  # a folder dtd/ in the working folder would be meant before the set of that name
    write(root / "dtd/dtd/images", *[f"{name}/{index}.jpg" for name in ("dotted", "banded") for index in range(3)])
    for index, part in enumerate(["train", "val", "test"]):
        put(root, {f"dtd/dtd/labels/{part}1.txt": f"dotted/{index}.jpg\nbanded/{index}.jpg\n".encode()})
    found = labelled("dtd", root=root)
    assert (found.train.classes, found.test.labels.tolist()) == (["banded", "dotted"], [1, 0])
    assert shade(found.test.source, 1) == 5
    write(root / "eurosat/2750", *[f"{name}/{name}_{index}.jpg" for name in ("River", "Sea") for index in range(5)])
    found = labelled("eurosat", root=root)
    assert np.bincount(found.test.labels).tolist() == [1, 1]
    assert "hash" in found.split_note
    assert len(unlabelled("eurosat", root=root)) == 10
    for part in ("train", "val"):
        write(root / "imagenette2-320" / part, "n01440764/1.JPEG", "n02102040/2.JPEG")
    assert labelled("imagenette", root=root).train.classes == ["tench", "English springer"]


class Reader:
    """A reader as torchvision has them, of a set that is there if `base/whole` is."""

    error: Exception | None = None
    downloads = 0

    def __init__(self, root: str, download: bool, train: bool) -> None:
        base = Path(root) / "base"
        if download:
            type(self).downloads += 1
            base.mkdir()
            if self.error:
                raise self.error
            time.sleep(0.1)
            (base / "whole").touch()
            (Path(root) / "archive").write_bytes(b"new")
            print("noise on stdout")
        elif not (base / "whole").exists():
            raise RuntimeError("Dataset not found or corrupted")
        self.data, self.targets, self.classes = np.zeros((2, 4, 4, 3), np.uint8), [0, 1], ["a", "b"]


@pytest.fixture
def reader(monkeypatch):
    from torchvision import datasets

    made = type("Made", (Reader,), {})
    monkeypatch.setattr(datasets, "CIFAR10", made)
    return made


def read(talk: Talk | None = None) -> Source:
    return read_named("cifar10", "train", data_root=Path("root"), offline=False, talk=talk or Talk())


def test_a_download_is_announced_and_whole_or_absent(reader):
    talk = Listener()
    reader.error = ConnectionResetError("connection reset")
    with pytest.raises(DataError, match=r"could not be downloaded from www\.cs\.toronto\.edu: connection reset"):
        read(talk)
    assert os.listdir("root") == [".lock"]
    reader.error = None
    assert read(talk).labels() == (["a", "b"], ["a", "b"])
    assert talk.lines == ["downloading cifar10 (170 MB) from www.cs.toronto.edu to root"] * 2  # once a try


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_damaged_set_is_kept_aside_and_the_download_is_not_lost(reader, kind):
    talk = Listener()
    put("root", {"archive": b"old"})
    if kind == "link":
        Path("root/base").symlink_to("../there")
    put("there" if kind == "link" else "root/base", {"cut": b"dear"})
    read(talk)
    assert os.listdir("root/base") == ["whole"]
    assert Path("root/archive").read_bytes() == b"new"
    (aside,) = Path("root").glob("base-old-*")
    assert str(aside) in talk.lines[-1]
    assert (aside / "cut").read_bytes() == b"dear"
    assert not list(Path("root").glob(".tmp-*"))


def test_one_process_downloads_and_the_others_find_it_there(reader):
    with ThreadPoolExecutor(4) as pool:  # as a process does, each thread opens the lock for itself
        assert [source.labels() for source in pool.map(read, [None] * 4)] == [(["a", "b"], ["a", "b"])] * 4
    assert reader.downloads == 1


@pytest.mark.parametrize("evil", [("../out.png", b""), ("link", "/etc")])
def test_archives_that_lead_elsewhere_write_nothing(reader, monkeypatch, evil):
    write_tar(Path("a.tar"), [("inside.png", b""), evil])

    def unpack(self, root: str, download: bool, train: bool) -> None:
        if not download:
            raise RuntimeError("Dataset not found or corrupted")
        with tarfile.open("a.tar") as tar:
            tar.extractall(root)  # without a filter, as torchvision does before 0.25

    monkeypatch.setattr(reader, "__init__", unpack)
    with pytest.raises(DataError, match=r"could not be downloaded from .* (outside the destination|absolute path)"):
        read()
    assert sorted(path.name for path in Path().rglob("*")) == [".lock", "a.tar", "root"]
    assert not hasattr(tarfile.TarFile.extraction_filter, "__name__")
