import os
import shutil
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import labelled, png, shade, shades, unlabelled, write, write_tar

from selfie_cli.data.folders import Folder
from selfie_cli.data.lists import expand_braces
from selfie_cli.data.shards import GAP, Shards
from selfie_cli.data.sources import Files, Subset, below_shared_folder, fingerprint
from selfie_cli.errors import DataError, UnreadableImage


def test_listing_is_deep_sorted_and_picks_images_alone():
    expected = write(Path("set"), "B.PNG", "a.jpg", "b/1.webp", "b/a/2.tif", "c.jpeg")
    write(Path("set"), ".hidden.jpg", ".git/x.jpg", "notes.txt", "jpg", "b/model.bin")
    assert Folder("set").names == Folder("set/").names == expected


def test_links_are_followed_and_loops_survived():
    write(Path(), "a/b/1.jpg", "other/2.jpg")
    links = {"a/b/up": "..", "a/b/self": "self", "a/there": "../other", "a/link.jpg": "../other/2.jpg"}
    for name, target in {**links, "a/nowhere.jpg": "absent"}.items():
        Path(name).symlink_to(target)
    found = Folder("a")
    assert found.names == ["a/b/1.jpg", "a/link.jpg", "a/nowhere.jpg", "a/there/2.jpg"]
    with pytest.raises(UnreadableImage, match="No such file"):
        found.open(2)


@pytest.mark.skipif(sys.platform != "linux", reason="file names there are Unicode")
def test_any_file_name_survives():
    names = ["new\nline.jpg", "\N{SLICE OF PIZZA}.jpg", os.fsdecode(b"\xff\xfe.jpg"), " space .jpg", "u\u2028sep.jpg"]
    write(Path("images"), *names)
    source = unlabelled("images")
    assert {os.path.basename(name) for name in source.names} == set(names)
    assert sorted(shades(source)) == list(range(len(names)))
    assert len(fingerprint(source)) == 16
    shard = write_tar(Path("a.tar"), {name: png(index) for index, name in enumerate(names)})
    assert unlabelled(shard).names == [f"a.tar/{name}" for name in names]
    Path("list.txt").write_bytes(b"".join(os.fsencode(f"images/{name}\n") for name in names[1:]))
    assert [os.path.basename(name) for name in unlabelled("list.txt").names] == names[1:]
    for part in ("one", os.fsdecode(b"two\xff")):
        write(Path("tree", part), *names)
    assert len(labelled("tree").test.source) == 2


def test_paths_in_a_list_are_relative_to_it(tmp_path):
    write(tmp_path, "a.jpg", "sub/b.jpg")
    Path("sub/list.txt").write_text(f"# comment\r\n\nb.jpg\r\n../a.jpg\n{tmp_path}/a.jpg\nmissing.jpg\n")
    source = unlabelled("sub/list.txt")
    assert source.names == ["sub/b.jpg", "sub/../a.jpg", "sub/missing.jpg"]
    assert [shade(source, index) for index in range(2)] == [1, 0]


def test_shards_are_read_in_place_by_many_threads(tmp_path):
    long = "deep/" * 40 + "long.png"  # beyond the 100 bytes of a plain tar header
    members = {"1.png": png(1), "1.json": b"{}", ".x.png": png(9), long: png(2), "zero.png": b""}
    path = write_tar(tmp_path / "s.tar", {**members, "../out/evil.PNG": png(3)})
    shards = Shards([path])
    assert sorted(shards.folders()) == ["", "", long.rpartition("/")[0], "out"]  # a name leads nowhere else
    assert shards.names == [f"{path}/{name}" for name in ("1.png", long, "zero.png", "../out/evil.PNG")]
    with pytest.raises(UnreadableImage, match="empty file"):
        shards.open(2)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: shade(shards, index), [0, 1, 3] * 50)) == [1, 2, 3] * 50
    assert [path.name for path in tmp_path.rglob("*")] == ["s.tar"]


def test_a_film_between_images_is_not_read():
    members = {"0.png": png(0), "1.mp4": bytes(2 * GAP), "2.png": png(2), "3.png": png(3)}
    shards = Shards([write_tar(Path("s.tar"), members)])
    tracemalloc.start()
    assert shards.read(0, 3) == [png(0), png(2), png(3)]
    assert tracemalloc.get_traced_memory()[1] < GAP
    tracemalloc.stop()


def test_brace_patterns_and_shards_that_follow_each_other():
    assert expand_braces("a-{008..011}.tar") == [f"a-{number}.tar" for number in ("008", "009", "010", "011")]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain") == ["plain"]
    shards = [write_tar(Path(f"{number}.tar"), {f"{number}.png": png(number)}) for number in range(4)]
    source = unlabelled(*shards[:2], "{2,3}.tar")
    assert isinstance(source, Shards)
    assert shades(source) == [0, 1, 2, 3]
    write(Path(), "folder.tar/0.png")
    assert shades(unlabelled(shards[3], "folder.tar", *shards[1:3])) == [3, 0, 1, 2]
    shutil.copy(shards[0], "odd{1..9}.tar")
    assert len(unlabelled("odd{1..9}.tar")) == 1  # what exists under its very name wins


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("docs", r"no images in docs \(looked for .*\.jpg"),
        ("absent", "absent: no such file or folder.*cifar10, cifar100, stl10"),
        ("{0..4}.tar", r"3 of 5 files are missing, the first is .*2\.tar"),
        ("{2..1}.tar", r"no images in .*\{2\.\.1\}\.tar"),
        ("s.tar", r"cannot read .*s\.tar .an uncompressed tar file is expected.: [^\n]*$"),
        ("s.parquet", r"cannot read .*s\.parquet .a parquet file is expected.: [^\n]*$"),
    ],
)
def test_what_is_missing_empty_or_damaged_is_named(name, message):
    Path("docs").mkdir()
    for file in ("docs/a.pdf", "0.tar", "1.tar", "s.tar", "s.parquet"):
        Path(file).write_bytes(b"nonsense\n" * 100)
    for verb in (unlabelled, labelled):
        with pytest.raises(DataError, match=message):
            verb(name)


def test_the_fingerprint_ignores_where_a_folder_lies():
    for folder in ("one", "two/deeper"):
        write(Path(folder), "ab/1.jpg", "ac/2.jpg")
    one, two = unlabelled("one"), unlabelled("two/deeper")
    assert fingerprint(one) == fingerprint(two) != fingerprint(Subset(one, np.array([0])))
    assert one.keys() == two.keys() == ["ab/1.jpg", "ac/2.jpg"]  # of which the hash split takes hashes
    shard = write_tar(Path("s.tar"), {"cat/a.1.png": png(1), "cat/a.2.png": png(2)})  # no .cls: the whole stem
    assert unlabelled(shard).keys() == ["s.tar/cat/a.1", "s.tar/cat/a.2"]
    assert fingerprint(Files(["a/ä.jpg", "a/x\udcff.png"])) == "555f5c27156b2d62"
    below = {"": "", "/a/b/c.jpg": "c.jpg", "/a/b/1 /a/c/2 /a/b/3": "b/1 c/2 b/3", "/aa/1 /a/1": "aa/1 a/1"}
    below |= {"a1 a2": "a1 a2", "a/x/a/x a/x/a/y": "x y"}
    for names, inside in below.items():
        assert list(below_shared_folder(names.split())) == inside.split()
    assert list(below_shared_folder(["a/", "a/b"])) == ["", "b"]
