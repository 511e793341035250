"""The cache of decoded images on disk: what is kept, what makes room, and what survives kills."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from listening import Listener
from pictures import png, write, write_tar

from selfie_cli.data import cache as cache_module
from selfie_cli.data.cache import PixelCache, cache_key, open_cache
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Array, Files, Joined, Subset

SIZE = 4
ROW = SIZE * SIZE * 3
A, B, C, D = (Path(f"{digit * 16}-{SIZE}px") for digit in "abcd")


def images(*shades: int) -> np.ndarray:
    return np.stack([np.full((SIZE, SIZE, 3), shade, np.uint8) for shade in shades])


def opened(entry: Path, num_images: int = 10, rows: float = 1000) -> PixelCache:
    return PixelCache(num_images, SIZE, entry, int(rows * ROW))


def kept(cache: PixelCache, num_images: int = 10) -> list[int]:
    """The images whose pixels are there, after a look at each."""
    into = np.empty((SIZE, SIZE, 3), np.uint8)
    found = [index for index in range(num_images) if cache.read(index, into)]
    assert all(cache.read(index, into) and (into == index).all() for index in found)
    return found


def fill(entry: Path, rows: float = 1000) -> None:
    with closing(opened(entry, rows=rows)) as cache:
        cache.write(np.arange(10), images(*range(10)))


def test_images_are_there_for_others_at_once_unless_a_part_was_lost():
    with closing(opened(A)) as one, closing(opened(A)) as other:
        assert kept(one) == []
        one.write(np.array([0, 3, 8]), images(0, 3, 8))
        assert kept(one) == kept(other) == [0, 3, 8]
        assert other.num_kept() == len(other.marks()) == 3
        np.testing.assert_array_equal(other.marks().exact, one.marks().exact)
    with (A / "pixels").open("r+b") as file:  # as a power cut leaves it
        file.seek(3 * ROW + 5)
        file.write(bytes(20))
        file.truncate(8 * ROW + 5)
    with closing(opened(A)) as cache:
        assert kept(cache) == [0]


def test_the_entry_unused_for_longest_makes_room_but_never_one_in_use():
    theirs = [Path(name) for name in ("mine/pixels", f"x{A}/lock", f"{'e' * 16}-4px/diary")]
    for file in theirs:
        file.parent.mkdir()
        file.touch()
    fill(A, rows=25)
    fill(B, rows=25)
    opened(A, rows=25).close()  # now B is the older one
    with closing(opened(C, rows=25)) as third:
        assert (third.capacity, B.exists()) == (10, False)
        with closing(opened(A, rows=25)) as first, closing(opened(D, rows=25)) as fourth:
            assert kept(first) == list(range(10))
            assert fourth.capacity == 5  # what the two leave
    assert all(file.exists() for file in theirs)


def test_a_lower_limit_gives_room_back(monkeypatch):
    fill(A)
    opened(A, rows=3.5).close()
    assert (A / "pixels").stat().st_size == 3 * ROW
    with closing(opened(A, rows=6)) as cache:
        assert kept(cache) == [0, 1, 2]
        assert (cache.num_kept(), len(cache.marks())) == (3, 10)
    for free, most, capacity in ((40, 100, 20), (10**9, 30, 30)):  # at most half of the disk
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free * ROW))
        monkeypatch.setattr(cache_module, "MOST", most * ROW)
        with closing(PixelCache(100, SIZE, Path(str(free), A), None)) as cache:
            assert cache.capacity == capacity


FILL = """
import sys, time
import numpy as np
from pathlib import Path
from selfie_cli.data.cache import PixelCache
cache = PixelCache(100, 4, Path(sys.argv[1]), 10**6)
for index in np.random.default_rng(int(sys.argv[2])).permutation(100).tolist():
    cache.write(np.array([index]), np.full((1, 4, 4, 3), index, np.uint8))
    time.sleep(0.002)
    print(index, flush=True)
"""


def test_processes_fill_one_entry_and_a_killed_one_leaves_nothing_wrong():
    command = [sys.executable, "-c", FILL, A]
    one, other = (subprocess.Popen([*command, seed], stdout=subprocess.PIPE, text=True) for seed in "12")
    for _ in range(9):
        assert one.stdout.readline()
    one.send_signal(signal.SIGKILL)
    one.communicate()
    with closing(opened(A, 100)) as cache:
        assert len(kept(cache, 100)) >= 9
        other.communicate(timeout=60)
        assert other.returncode == 0
        assert kept(cache, 100) == list(range(100))


ANOTHER_USER = """
import os, sys
from pathlib import Path
from selfie_cli.data.cache import PixelCache
os.setuid(65534)
print(PixelCache(10, 4, Path(sys.argv[1]), 800).capacity)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_entries_of_other_users_are_left_alone():
    with tempfile.TemporaryDirectory() as folder:  # other users do not get into pytest's
        store = Path(folder) / "store"
        fill(store / A)
        (store / f"{'e' * 16}-4px").mkdir(mode=0o700)
        for name, mode in ((".", 0o1777), ("..", 0o755), ("lock", 0o644), (A / "records", 0o644)):
            (store / name).chmod(mode)
        done = subprocess.run([sys.executable, "-c", ANOTHER_USER, store / B], capture_output=True, text=True)
        assert done.stdout == "6\n", done.stderr  # 800 bytes less the 480 that root has
        assert (store / A / "pixels").stat().st_size == 480


def test_the_key_depends_on_all_that_pixels_depend_on(tmp_path, monkeypatch):
    files = Files(write(tmp_path, "a.png", "b.png"))
    shard = write_tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
    array, ones = (Array(np.full((2, 4, 4, 3), value, np.uint8), ["x", "y"]) for value in (0, 1))
    sources = [files, array, ones, Shards([shard]), Subset(files, np.array([1])), Joined([files, array])]
    keys = {*(cache_key(source, SIZE) for source in sources), cache_key(files, 8), cache_key(files, SIZE, "bilinear")}
    assert cache_key(Files(files.names), SIZE) in keys
    for version in ("DECODING", "VERSION", "LAYOUT"):
        with monkeypatch.context() as patch:
            patch.setattr(cache_module, version, "0")
            keys.add(cache_key(files, SIZE))
    for file, source in ((shard, sources[3]), ("a.png", files)):
        os.utime(file, (1, 1))
        keys.add(cache_key(source, SIZE))
    assert len(keys) == len(sources) + 7


def test_where_the_cache_is_and_why_there_is_none(monkeypatch):
    source = Array(np.zeros((2, 4, 4, 3), np.uint8), ["x", "y"])

    def said(folder: str | None, limit_gb: float | None = None) -> str:
        talk = Listener()
        open_cache(source, size=SIZE, folder=folder, limit_gb=limit_gb, talk=talk).close()
        return talk.lines[0]

    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    assert "cached in xdg/selfie/" in said(None)
    assert "0 of 2 images are there" in said("asked")
    assert "not cached" in said("nothing", 0)
    assert not Path("nothing").exists()
    Path("file").touch()
    assert "cannot be cached in file/cache" in said("file/cache")
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in many containers
    assert "there is no home folder: name a folder with --store" in said(None)
    assert "are not cached" in said(None, 0)
