import os
import shutil
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from listening import Listener
from pictures import labelled, png, shade, unlabelled, write, write_tar

from selfie_cli.data.folders import Folder
from selfie_cli.data.lists import expand_braces
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Array, Files, Joined, Subset, fingerprint
from selfie_cli.errors import DataError, UnreadableImage


def test_listing_is_deep_sorted_and_picks_images_alone(tmp_path):
    expected = write(tmp_path, "B.PNG", "a.jpg", "b/1.webp", "b/a/2.tif", "c.jpeg")
    write(tmp_path, ".hidden.jpg", ".git/x.jpg", "notes.txt", "jpg", "b/model.bin")
    assert list(Folder(str(tmp_path)).names) == expected
    assert list(Folder(f"{tmp_path}/").names) == expected


def test_links_are_followed_and_loops_survived(tmp_path):
    write(tmp_path, "a/b/1.jpg", "other/2.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/self").symlink_to("self")
    (tmp_path / "a/there").symlink_to(tmp_path / "other")
    (tmp_path / "a/link.jpg").symlink_to(tmp_path / "other/2.jpg")
    (tmp_path / "a/nowhere.jpg").symlink_to(tmp_path / "absent")
    found = list(Folder(str(tmp_path / "a")).names)
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
    shard = write_tar(tmp_path / "a.tar", {name: png(index) for index, name in enumerate(names)})
    assert unlabelled(shard).names == [f"{shard}/{name}" for name in names]
    (tmp_path / "list.txt").write_bytes(b"".join(os.fsencode(f"images/{name}\n") for name in names[1:]))
    assert [os.path.basename(name) for name in unlabelled(tmp_path / "list.txt").names] == names[1:]
    for part in ("one", os.fsdecode(b"two\xff")):
        write(tmp_path / "tree" / part, *names)
    assert len(labelled(tmp_path / "tree").test.source) == 2


def test_a_training_folder_without_other_parts_is_warned_of(tmp_path):
    write(tmp_path, "train/a/1.jpg", "extra/4.jpg")
    talk = Listener()
    assert len(unlabelled(tmp_path, talk=talk)) == 2
    assert "train/ is called like a training part" in talk.warned[0]


def test_lists(tmp_path):
    write(tmp_path, "a.jpg", "sub/b.jpg")
    absolute = str(tmp_path / "a.jpg")
    (tmp_path / "sub/list.txt").write_text(f"\ufeff# comment\r\n\nb.jpg\r\n../a.jpg\n{absolute}\nmissing.jpg\n")
    source = unlabelled(tmp_path / "sub/list.txt")
    assert source.names == [
        f"{tmp_path}/sub/b.jpg",
        f"{tmp_path}/sub/../a.jpg",  # which is named once more
        f"{tmp_path}/sub/missing.jpg",
    ]
    assert [shade(source, index) for index in range(2)] == [1, 0]
    assert source.left_out.counts == {"repeated": 1}
    (tmp_path / "empty.lst").write_text("# nothing\n")
    with pytest.raises(DataError, match="no paths in the list"):
        unlabelled(tmp_path / "empty.lst")


def test_shards_are_read_in_place_by_many_threads(tmp_path):
    long = "deep/" * 40 + "long.png"  # beyond the 100 bytes of a plain tar header
    members = {
        "1.png": png(1),
        "1.json": b"{}",
        ".x.png": png(9),
        long: png(2),
        "zero.png": b"",
        "../evil.PNG": png(3),
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
        write_tar(tmp_path / f"t-{number:04d}.tar", {f"{number}.png": png(number)})
    source = unlabelled(tmp_path / "t-{0000..0002}.tar")
    assert [shade(source, index) for index in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"2 of 5 shards are missing, the first is .*t-0003.tar"):
        unlabelled(tmp_path / "t-{0000..0004}.tar")
    with pytest.raises(DataError, match=r"no images in .*t-\{2\.\.1\}\.tar"):
        unlabelled(tmp_path / "t-{2..1}.tar")
    shutil.copy(tmp_path / "t-0001.tar", tmp_path / "odd{1..9}.tar")
    assert len(unlabelled(tmp_path / "odd{1..9}.tar")) == 1  # what exists under its very name wins


def test_damaged_shards_are_named(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar", {"1.png": png(1) * 10, "2.png": png(2) * 10}))
    whole = path.read_bytes()
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(DataError, match=r"cannot read .*s\.tar .an uncompressed tar file"):
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


def test_array_joined_and_subset():
    array = Array(np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3), list("abc"))
    assert [shade(array, index) for index in range(3)] == [0, 1, 2]
    other = Array(array.pixels + 10, ["x", "y", "z"])
    subset = Subset(Joined([other, array]), np.array([4, 0, 2]))
    assert subset.names == ["b", "x", "z"]
    assert [shade(subset, index) for index in range(3)] == [1, 10, 12]


def test_the_fingerprint_ignores_where_a_folder_lies(tmp_path):
    for folder in ("one", "two/deeper"):
        write(tmp_path / folder, "ab/1.jpg", "ac/2.jpg")
    one, two = (unlabelled(tmp_path / folder) for folder in ("one", "two/deeper"))
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(Subset(one, np.array([0])))
    assert fingerprint(Files(["a/1.jpg"])) != fingerprint(Files(["a/2.jpg"]))
    assert fingerprint(Files(["a/1", "b/2"])) != fingerprint(Files(["a/1", "b/3"]))


def test_what_lies_between_images_is_not_read(tmp_path):
    """More than one call of read() returns on Linux, 2,147,479,552 bytes."""
    between = 2_200_000_000
    with (tmp_path / "s.tar").open("wb") as file:
        for name, size in (("0.png", len(png(0))), ("1.mp4", between), ("2.png", len(png(2))), ("3.png", len(png(3)))):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf())
            data = png(int(name[0])) if name.endswith("png") else b""
            file.write(data)
            file.seek(-(-size // 512) * 512 - len(data), os.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    shards = Shards([str(tmp_path / "s.tar")])
    tracemalloc.start()
    assert shards.read(0, 3) == [png(0), png(2), png(3)]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_names_that_lead_out_of_a_shard_make_no_class(tmp_path):
    names = ["a/0.png", "../b/1.png", "/c/2.png", "a/../../3.png"]
    shards = Shards([write_tar(tmp_path / "s.tar", {name: png(0) for name in names})])
    assert sorted(shards.folders()) == ["", "a", "b", "c"]


def test_shards_that_follow_each_other_are_one_source(tmp_path):
    shards = [write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(number)}) for number in range(4)]
    source = unlabelled(*shards[:2], tmp_path / "{2,3}.tar")
    assert isinstance(source, Shards)
    assert [shade(source, index) for index in range(4)] == [0, 1, 2, 3]
    (folder,) = write(tmp_path, "folder.tar/0.png")
    mixed = unlabelled(shards[3], tmp_path / "folder.tar", *shards[1:3])
    assert [type(one) for one in mixed.sources] == [Shards, Folder, Shards]
    assert mixed.names[1] == folder
    assert [shade(mixed, index) for index in range(4)] == [3, 0, 1, 2]
    with pytest.raises(DataError, match=r"1 of 3 shards are missing, the first is .*absent\.tar"):
        unlabelled(*shards[:2], tmp_path / "absent.tar")
