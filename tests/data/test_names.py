import sys

import numpy as np
import pytest

from selfie_cli.data.names import CHUNK, Names

ODD = ["", "a", "ä/ü.jpg", "x\udcff.png", "line\nbreak", "日本/写真.jpg", "a" * 300]


@pytest.mark.parametrize("names", [[], ["one"], ODD, [f"{index}.jpg" for index in range(CHUNK + 3)]])
def test_names_are_a_sequence_of_the_strings_given(names):
    found = Names(iter(names))
    assert len(found) == len(names)
    assert list(found) == names
    assert found == names
    assert found == Names(names)
    assert found != [*names, "more"]
    assert [found[index] for index in range(-len(names), len(names))] == names * 2
    assert found[1:5:2] == names[1:5:2]
    assert [found[index] for index in np.arange(len(names))] == names
    for outside in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            found[outside]


def test_they_are_small():
    names = [f"/data/photos/{index:08d}.jpg" for index in range(10_000)]
    compact = Names(names)
    held = len(compact._text) + compact._ends.nbytes
    assert held <= sum(len(name) + 9 for name in names) + 8
    assert held < sum(sys.getsizeof(name) + 8 for name in names) / 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], b""),
        (["/a/b/c.jpg"], b"c.jpg\0"),
        (["/a/b/1", "/a/c/2", "/a/b/3"], b"b/1\0c/2\0b/3\0"),
        (["/aa/1", "/a/1"], b"aa/1\0a/1\0"),
        (["a1", "a2"], b"a1\0a2\0"),
        (["a/x/a/x", "a/x/a/y"], b"x\0y\0"),
        (["a/", "a/b"], b"\0b\0"),
    ],
)
def test_the_shared_folder_is_left_out(names, expected):
    assert b"".join(Names(names).below_shared_folder()) == expected


def test_the_shared_folder_is_left_out_of_every_chunk():
    names = [f"/data/folder/{index}.jpg" for index in range(2 * CHUNK + 5)]
    expected = b"".join(name[13:].encode() + b"\0" for name in names)
    assert b"".join(Names(names).below_shared_folder()) == b"".join([expected])
