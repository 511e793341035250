import shutil
from pathlib import Path

import numpy as np
from listening import Listener
from pictures import labelled, write


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


def test_classes_that_differ_in_case_or_spaces_are_warned_of(tmp_path):
    names = [f"{name}/{index}.png" for name in ("cat", "Cat ", "dog") for index in range(4)]
    write(tmp_path, *names)
    talk = Listener()
    assert len(labelled(tmp_path, talk=talk).train.classes) == 3
    assert len(talk.warned) == 1
    assert "the classes 'Cat ' and 'cat' are told apart" in talk.warned[0]
