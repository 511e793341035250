import shutil
from pathlib import Path

import numpy as np
import pytest
from listening import Listener
from pictures import labelled, png, write, write_tar

from selfie_cli.errors import DataError


def test_folder_of_classes_is_split_by_hash(tmp_path):
    write(tmp_path, *[f"{name}/{index}.png" for name in ("dog", "cat") for index in range(10)], "rare/0.png")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "loose.png")
    talk = Listener()
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
    assert found.name == tmp_path.name
    assert any("empty" in line for line in talk.lines)
    assert any("1 image outside the folders of the classes" in line for line in talk.lines)
    moved = labelled(shutil.copytree(tmp_path, tmp_path.parent / "elsewhere"))
    assert [Path(name).name for name in moved.test.source.names] == [
        Path(name).name for name in found.test.source.names
    ]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_parted_folders_of_classes(tmp_path, validation):
    write(tmp_path, "train/a/1.png", "train/b/2.png", f"{validation}/a/3.png", f"{validation}/b/4.png")
    found = labelled(tmp_path)
    assert [Path(name).name for name in found.test.source.names] == ["3.png", "4.png"]
    assert f"{validation}/" in found.split_note
    write(tmp_path, "test/b/5.png")
    found = labelled(tmp_path)
    assert found.test.labels.tolist() == [1]
    assert "test/" in found.split_note
    write(tmp_path, f"{validation}/zebra/7.png")  # nobody looks there any more
    assert labelled(tmp_path).train.classes == ["a", "b"]
    write(tmp_path, "test/zebra/6.png")
    with pytest.raises(DataError, match="training part lacks: zebra"):
        labelled(tmp_path)


def test_labelled_shards(tmp_path):
    for number in range(2):
        keys = [f"{number}{index:03d}" for index in range(10)]
        members = {f"{key}.cls": f"{[2, 10][index % 2]}\n".encode() for index, key in enumerate(keys)}
        members |= {f"{key}.png": png(10 * number + index) for index, key in enumerate(keys)}
        write_tar(tmp_path / f"s-{number}.tar", members)
    found = labelled(tmp_path / "s-{0..1}.tar")
    assert found.name == "s-{0..1}.tar"
    assert found.train.classes == ["2", "10"]  # numbers in the order of numbers
    assert np.bincount(found.test.labels).tolist() == [2, 2]
    for part in (found.train, found.test):
        assert [int(name[-5]) % 2 for name in part.source.names] == part.labels.tolist()
