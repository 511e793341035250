import shutil
from pathlib import Path

import numpy as np
from listening import Listener
from pictures import labelled, write


def test_folder_of_classes_is_split_by_hash(tmp_path):
    write(tmp_path, *[f"{name}/{index}.png" for name in ("dog", "cat") for index in range(10)], "Dog /0.png")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "loose.png")
    talk = Listener()
    found = labelled(tmp_path, talk=talk)
    assert found.train.classes == found.test.classes == ["Dog ", "cat", "dog"]
    assert np.bincount(found.test.labels).tolist() == [0, 2, 2]
    assert np.bincount(found.train.labels).tolist() == [1, 8, 8]
    names = [
        [str(Path(name).relative_to(tmp_path)) for name in part.source.names] for part in (found.train, found.test)
    ]
    for part, inside in zip((found.train, found.test), names, strict=True):
        assert [str(Path(name).parent) for name in inside] == [part.classes[label] for label in part.labels]
    assert not set(names[0]) & set(names[1])
    assert (found.name, "hash" in found.split_note) == (tmp_path.name, True)
    told, left_out = talk.warned
    assert "the classes 'Dog ' and 'dog' are told apart" in told
    assert "empty" in left_out
    assert "1 image outside the folders of the classes" in left_out
    moved = labelled(shutil.copytree(tmp_path, tmp_path.parent / "elsewhere"))
    chosen = [[Path(name).name for name in each.test.source.names] for each in (found, moved)]
    assert chosen[0] == chosen[1]
