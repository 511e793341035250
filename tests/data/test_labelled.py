import shutil
from pathlib import Path

import numpy as np
from listening import Listener
from pictures import labelled, write


def test_folder_of_classes_is_split_by_hash(tmp_path):
    images = [f"{name}/{index}.png" for name in ("dog", "cat") for index in range(10)]
    write(tmp_path, *images, "Dog /0.png", "loose.png")
    talk = Listener()
    found = labelled(tmp_path, talk=talk)
    assert found.train.classes == found.test.classes == ["Dog ", "cat", "dog"]
    assert np.bincount(found.test.labels).tolist() == [0, 2, 2]
    assert np.bincount(found.train.labels).tolist() == [1, 8, 8]
    for part in (found.train, found.test):
        assert [Path(name).parent.name for name in part.source.names] == [part.classes[label] for label in part.labels]
    assert len({*found.train.source.names, *found.test.source.names}) == 21
    assert (found.name, "hash" in found.split_note) == (tmp_path.name, True)
    assert "1 image outside the folders of the classes" in talk.warned[-1]
    moved = labelled(shutil.copytree(tmp_path, tmp_path.parent / "elsewhere"))
    chosen = [[Path(name).name for name in each.test.source.names] for each in (found, moved)]
    assert chosen[0] == chosen[1]
