import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Listener
from PIL import Image
from running import leftover

from selfie_cli.data import mapped, rows
from selfie_cli.data.duplicates import joined, load_marks, marks_of, save_marks
from selfie_cli.data.images import decode_square, open_image
from selfie_cli.data.mapped import MappedStore, all_pixels, open_store, store_key
from selfie_cli.data.rows import MARKS, PIXELS, Rows
from selfie_cli.data.shards import Shards
from selfie_cli.data.sources import Array, Files, Joined, Subset
from selfie_cli.data.store import BadFile, Store, read_store
from selfie_cli.errors import DataError
from selfie_cli.talk import Talk
from tests.data.pictures import png, write_tar

ROW = 16 * 16 * 3
SIZE = 16


class Watched(Files):
    """Notes which images are opened."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.opened: list[int] = []

    def open(self, index: int) -> Image.Image:
        self.opened.append(index)
        return super().open(index)


def make_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = [str(folder / f"{index:03d}.png") for index in range(count)]
    for index, name in enumerate(names):
        pixels = generator.integers(0, 256, (20, 18, 3), np.uint8)
        pixels[:, :, 0] = index
        Image.fromarray(pixels).save(name)
    return names


@pytest.fixture
def source(tmp_path: Path) -> Watched:
    return Watched(make_images(tmp_path / "images", 100))


@pytest.fixture
def whole(source: Watched) -> torch.Tensor:
    """All pixels, decoded one by one: [100, 16, 16, 3]."""
    pixels = []
    for name in source.names:
        with open_image(name) as image:
            pixels.append(torch.from_numpy(decode_square(image, SIZE)))
    return torch.stack(pixels)


def opened(source, folder, *, max_bad=0.2, gb=1.0, talk=None, workers=3) -> closing[MappedStore]:
    talk = talk or Talk()
    return closing(
        MappedStore(source, size=SIZE, workers=workers, max_bad=max_bad, talk=talk, folder=str(folder), limit_gb=gb)
    )


def spoil(source: Files, *indices: int) -> None:
    for index in indices:
        Path(source.names[index]).write_bytes(b"no image")


def test_images_are_decoded_when_they_are_first_asked_for(source, whole, tmp_path):
    with opened(source, tmp_path / "store") as store:
        assert len(store) == 100
        assert source.opened == []
        asked = torch.tensor([5, 99, 5, 0, 7, 5])
        batch = store.take(asked)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, whole[asked])
        assert sorted(source.opened) == [0, 5, 7, 99]  # once each
        batch.zero_()
        assert torch.equal(store.take(asked), whole[asked])
        assert len(source.opened) == 4
        order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
        for part in order.split(17):
            assert torch.equal(store.take(part), whole[part])
    assert sorted(source.opened) == list(range(100))
    source.opened.clear()
    talk = Listener()
    with opened(source, tmp_path / "store", talk=talk) as store:
        assert torch.equal(store.take(order), whole[order])
        assert source.opened == []  # a later run decodes nothing
    assert "100 of 100 images are there" in talk.lines[0]
    assert "--store-gb" in talk.lines[0]


def test_marks_are_those_of_the_images_seen(source, whole, tmp_path):
    with opened(source, tmp_path / "store") as store:
        assert len(store.marks()) == 0
        store.take(torch.tensor([8, 3, 60]))
    with opened(source, tmp_path / "store") as store:
        store.take(torch.tensor([4, 3]))
        found, expected = store.marks(), marks_of(whole[[3, 4, 8, 60]])
    np.testing.assert_array_equal(found.exact, expected.exact)
    np.testing.assert_array_equal(found.perceptual, expected.perceptual)


def test_what_there_is_no_room_for_is_decoded_again(source, whole, tmp_path):
    with opened(source, tmp_path / "store", gb=40.5 * ROW / 1e9) as store:
        for _ in range(2):
            assert torch.equal(store.take(torch.arange(100)), whole)
        assert sorted(source.opened) == sorted([*range(100), *range(40, 100)])
        assert len(store.marks()) == 100
    assert (next((tmp_path / "store").glob("*/pixels"))).stat().st_size == 40 * ROW


def test_nothing_is_kept_if_nothing_may_be(source, whole, tmp_path):
    talk = Listener()
    with opened(source, tmp_path / "store", gb=0, talk=talk) as store:
        for _ in range(2):
            assert torch.equal(store.take(torch.arange(100)), whole)
        assert len(source.opened) == 200
        assert len(store.marks()) == 100
    assert not (tmp_path / "store").exists()
    assert "not kept" in talk.lines[0]


def test_a_folder_that_cannot_be_written_to_is_no_end(source, whole, tmp_path):
    (tmp_path / "file").touch()
    talk = Listener()
    with opened(source, tmp_path / "file/store", talk=talk) as store:
        assert torch.equal(store.take(torch.arange(9)), whole[:9])
    assert "cannot be kept" in talk.lines[0]
    assert "--store" in talk.lines[0]


@pytest.mark.parametrize("gb", [1.0, 0.0])
def test_the_next_readable_image_stands_in(source, whole, tmp_path, gb):
    spoil(source, 0, 40, 41, 99)
    stands = np.arange(100)
    stands[[0, 40, 41, 99]] = [1, 42, 42, 1]
    for _ in range(2):  # also when the others are there already
        with opened(source, tmp_path / "store", gb=gb) as store:
            assert torch.equal(store.take(torch.tensor([99, 40])), whole[[1, 42]])
            assert [bad.name for bad in store.bad][1:] == [source.names[index] for index in (40, 41, 99)]
            order = torch.randperm(100)
            assert torch.equal(store.take(order), whole[stands[order.numpy()]])
            assert [bad.name for bad in store.bad] == [source.names[index] for index in (0, 40, 41, 99)]
            assert "known format" in store.bad[0].reason
            assert len(store.marks()) == 96


def test_what_stands_in_for_unreadable_images_is_not_in_the_batch(source, whole, tmp_path):
    spoil(source, 10, 11, 13)
    with opened(source, tmp_path / "store") as store:
        for _ in range(2):
            taken = store.take(torch.arange(10, 15))
            assert torch.equal(taken, whole[[15, 16, 12, 17, 14]])
    with opened(source, tmp_path / "other", max_bad=0.99) as store:
        spoil(source, *range(98))
        assert len(store.take(torch.arange(100)).unique(dim=0)) == 2  # there are no more


def test_too_many_unreadable_images_stop_it(source, tmp_path):
    spoil(source, 0, 1, 2)
    with opened(source, tmp_path / "store", max_bad=0.02) as store:
        store.take(torch.tensor([1, 2, 50]))
        with pytest.raises(DataError, match=r"3 of the first .*2\.0%.*--max-bad"):
            store.take(torch.tensor([0]))
    spoil(source, *range(100))
    with opened(source, tmp_path / "store", max_bad=1) as store, pytest.raises(DataError, match="none of the 100"):
        store.take(torch.arange(0, 100, 9))  # which looks for those that stand in
    with pytest.raises(DataError, match="no images"):
        opened(Files([]), tmp_path / "store")


def test_a_changed_file_is_decoded_anew(source, whole, tmp_path):
    before = store_key(source, SIZE)
    assert before == store_key(Files(source.names), SIZE) != store_key(source, 8)
    with opened(source, tmp_path / "store") as store:
        store.take(torch.arange(100))
    Image.new("RGB", (20, 20), (1, 2, 3)).save(source.names[7])
    assert store_key(source, SIZE) != before
    with opened(source, tmp_path / "store") as store:
        assert store.take(torch.tensor([7]))[0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("version", ["DECODING", "VERSION"])
def test_what_was_kept_by_another_version_is_not_used(source, version, monkeypatch):
    before = store_key(source, SIZE)
    monkeypatch.setattr(mapped, version, "0")
    assert store_key(source, SIZE) != before


def test_every_kind_of_source_has_a_key(source, tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
    array = Array(np.zeros((2, 4, 4, 3), np.uint8), ["x", "y"])
    ones = Array(np.ones((2, 4, 4, 3), np.uint8), ["x", "y"])
    sources = [array, ones, Shards([shard]), Subset(source, np.array([3, 4])), Joined([source, array])]
    keys = [store_key(each, SIZE) for each in sources]
    os.utime(shard, (1, 1))
    assert len({*keys, store_key(sources[2], SIZE)}) == 6


def test_shards_had_better_be_asked_for_in_blocks(source, tmp_path):
    shard = write_tar(tmp_path / "s.tar", {f"{shade:03d}.png": png(shade) for shade in range(200)})
    with opened(Shards([shard]), tmp_path / "store", gb=0) as store:
        assert store.block == 64
        order = torch.randperm(200)
        assert store.take(order)[:, 0, 0, 0].tolist() == order.tolist()
    with opened(source, tmp_path / "store") as store:
        assert store.block == 1


def test_small_and_decoded_sets_are_read_at_once(source, whole, tmp_path, monkeypatch):
    settings = {"size": SIZE, "workers": 2, "max_bad": 0.1, "talk": Talk(), "folder": str(tmp_path / "store")}
    with closing(open_store(source, **settings)) as store:
        assert isinstance(store, Store)
        assert store.block == 1
        assert torch.equal(store.to(torch.device("cpu")).take(torch.tensor([2, 0])), whole[[2, 0]])
        np.testing.assert_array_equal(store.marks().exact, marks_of(whole).exact)
    monkeypatch.setattr(mapped, "SMALL", 100 * ROW - 1)
    assert isinstance(open_store(Array(whole.numpy(), source.names), **settings), Store)
    with closing(open_store(source, **settings, limit_gb=1.0)) as store:
        assert isinstance(store, MappedStore)
        assert torch.equal(store.take(torch.tensor([2, 0])), whole[[2, 0]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with closing(open_store(source, **settings | {"folder": None})):
        assert len(list((tmp_path / "cache/selfie").glob("*/pixels"))) == 1


def test_all_pixels_at_once_are_those_of_read_store_and_decoded_once(source, tmp_path, monkeypatch):
    spoil(source, 0, 40, 99)
    settings = {"size": SIZE, "workers": 2, "max_bad": 0.1, "talk": Talk()}
    expected = read_store(source, **settings)
    monkeypatch.setattr(mapped, "SMALL", 0)
    for times in (100, 3):  # the second time the unreadable ones alone
        source.opened.clear()
        found = all_pixels(open_store(source, **settings, folder=str(tmp_path / "store")))
        assert torch.equal(found.pixels, expected.pixels)
        assert found.kept.tolist() == expected.kept.tolist()
        assert found.bad == expected.bad
        assert len(source.opened) == times


def stores(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/pixels")}


def test_the_store_unused_for_longest_makes_room_but_never_one_in_use(tmp_path):
    sets = [Files(make_images(tmp_path / name, 10)) for name in "abcd"]
    names = [f"{store_key(each, SIZE)}-{SIZE}px" for each in sets]
    folder, gb = tmp_path / "store", 25 * ROW / 1e9
    folder.mkdir()
    mine = folder / "mine"  # what is no store is left alone
    mine.mkdir()
    (mine / "pixels").write_bytes(bytes(10**6))
    (mine / "lock").touch()
    for each in sets[:2]:
        with opened(each, folder, gb=gb) as store:
            store.take(torch.arange(10))
    with opened(sets[0], folder, gb=gb):  # now b is the older one
        pass
    with opened(sets[2], folder, gb=gb) as third:
        third.take(torch.arange(10))
        assert stores(folder) == {names[0], names[2], "mine"}
        with opened(sets[0], folder, gb=gb) as first, opened(sets[3], folder, gb=gb) as fourth:
            assert stores(folder) == {names[0], names[2], names[3], "mine"}  # all in use
            assert fourth.rows.capacity == 5  # what the two leave
            for store in (first, fourth):
                assert store.take(torch.arange(10))[:, 0, 0, 0].tolist() == list(range(10))
    used = sum(path.stat().st_size for path in folder.glob("*px/pixels"))
    assert used <= 25 * ROW


def test_a_lower_limit_gives_room_back(source, whole, tmp_path):
    with opened(source, tmp_path / "store") as store:
        store.take(torch.arange(100))
    for rows_left, there in ((30, 30), (60, 30)):
        source.opened.clear()
        with opened(source, tmp_path / "store", gb=(rows_left + 0.5) * ROW / 1e9) as store:
            assert next((tmp_path / "store").glob("*/pixels")).stat().st_size == rows_left * ROW
            assert torch.equal(store.take(torch.arange(there, there + 1)), whole[there : there + 1])
            assert source.opened == [there]
            assert torch.equal(store.take(torch.arange(30)), whole[:30])
            assert source.opened == [there]


def test_nothing_is_flagged_before_it_is_on_the_disk(tmp_path, monkeypatch):
    pixels, perceptual = np.full((4, 4, 3), 7, np.uint8), np.zeros(32, np.uint8)
    events = []
    kept = Rows(10, 4, tmp_path / "store/a", 10**6)
    other = Rows(10, 4, tmp_path / "store/a", 10**6)
    index = np.array([3])
    kept.write(3, pixels, np.int64(1), perceptual)
    assert kept.flags(index)[0] == PIXELS | MARKS
    assert other.flags(index)[0] == 0
    assert not any((tmp_path / "store/a/flags").read_bytes())
    fsync, pwrite = os.fsync, os.pwrite
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("flush"), fsync(file)))
    monkeypatch.setattr(os, "pwrite", lambda *given: (events.append("flag"), pwrite(*given))[1])
    kept.flush()
    assert events == ["flush", "flush", "flag"]
    assert other.flags(index)[0] == PIXELS | MARKS  # seen at once
    into = np.empty((4, 4, 3), np.uint8)
    other.read(3, into)
    np.testing.assert_array_equal(into, pixels)
    kept.close()
    other.close()


FILL = """
import sys, time, torch
from selfie_cli.data import mapped
from selfie_cli.data.folders import Folder
from selfie_cli.talk import Talk
mapped.FLUSH_SECONDS = 0.0
images, folder, seed, rounds = sys.argv[1:]
store = mapped.MappedStore(
    Folder(images), size=16, workers=2, max_bad=0, talk=Talk(), folder=folder, limit_gb=1
)
generator = torch.Generator().manual_seed(int(seed))
print("ready", flush=True)
for _ in range(int(rounds)):
    for part in torch.randperm(len(store), generator=generator).split(4):
        assert store.take(part)[:, 0, 0, 0].tolist() == part.tolist()
        time.sleep(0.002)
        print(part[0].item(), flush=True)
store.close()
"""


def fill(images: Path, folder: Path, seed: int, rounds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", FILL, str(images), str(folder), str(seed), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_at_any_moment_leaves_nothing_wrong(source, whole, tmp_path):
    kept = []
    for steps in (2, 9, 15):
        process = fill(tmp_path / "images", tmp_path / "store", steps, 1000)
        for _ in range(steps):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        source.opened.clear()
        with opened(source, tmp_path / "store") as store:
            kept.append(np.flatnonzero(store.rows.flags(np.arange(100)) & PIXELS))
            assert torch.equal(store.take(torch.from_numpy(kept[-1])), whole[kept[-1]])
            assert source.opened == []
            assert len(store.marks()) == len(kept[-1])
            np.testing.assert_array_equal(store.marks().exact, marks_of(whole[kept[-1]]).exact)
    assert set(kept[0]) <= set(kept[1]) <= set(kept[2])
    assert len(kept[-1]) > 20


def test_two_processes_fill_one_store(source, whole, tmp_path):
    processes = [fill(tmp_path / "images", tmp_path / "store", seed, 2) for seed in (1, 2)]
    for process in processes:
        assert process.wait(60) == 0, process.stderr.read()
        process.communicate()
    with opened(source, tmp_path / "store") as store:
        assert torch.equal(store.take(torch.arange(100)), whole)
        assert source.opened == []
    assert len(stores(tmp_path / "store")) == 1


def test_a_process_sees_what_another_has_flushed(source, tmp_path):
    with opened(source, tmp_path / "store") as one, opened(source, tmp_path / "store") as other:
        one.take(torch.arange(10))
        one.flush()
        source.opened.clear()
        other.take(torch.arange(12))
        assert sorted(source.opened) == [10, 11]


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_keeping_and_nothing_else(source, whole, tmp_path):
    talk = Listener()
    with small_disk(tmp_path / "disk", 2**16), opened(source, tmp_path / "disk/store", talk=talk) as store:
        for _ in range(2):
            for part in torch.randperm(100).split(7):
                assert torch.equal(store.take(part), whole[part])
        assert 100 < len(source.opened) < 190  # some were kept
        assert [line for line in talk.lines if "No space left" in line] == talk.lines[1:]
        assert len(talk.lines) == 2
        store.rows.flush()


LIMITED = """
import resource, sys, torch
from selfie_cli.data import mapped
from selfie_cli.data.folders import Folder
from selfie_cli.talk import Talk

class Said(Talk):
    def warn(self, line):
        print(line)

resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
source = Folder(sys.argv[1])
store = mapped.MappedStore(
    source, size=16, workers=2, max_bad=0, talk=Said(), folder=sys.argv[2], limit_gb=1
)
for part in torch.arange(100).split(10):
    assert store.take(part)[:, 0, 0, 0].tolist() == part.tolist()
print(len(store.marks()))
store.close()
"""


def test_a_limit_on_file_sizes_is_no_end(source, tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "images"), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be kept" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.endswith("\n100\n")


def test_a_store_cut_from_outside_is_decoded_again(source, whole, tmp_path):
    talk = Listener()
    with opened(source, tmp_path / "store", talk=talk) as store:
        store.take(torch.arange(100))
        os.truncate(next((tmp_path / "store").glob("*/pixels")), 10 * ROW + 5)
        for _ in range(2):
            assert torch.equal(store.take(torch.arange(100)), whole)
    assert [line for line in talk.lines if "has been cut" in line] == talk.lines[1:]
    assert len(talk.lines) == 2


def test_an_interrupt_leaves_no_thread(source, tmp_path):
    class Slow(Watched):
        def open(self, index):
            time.sleep(0.02)
            if index == 7:
                raise KeyboardInterrupt
            return super().open(index)

    slow = Slow(list(source.names))
    with pytest.raises(KeyboardInterrupt), opened(slow, tmp_path / "store") as store:
        store.take(torch.arange(100))
    assert not any(thread.is_alive() for thread in store._pool._threads)
    assert len(slow.opened) < 100


def test_room_is_limited_to_half_of_the_disk_by_default(source, tmp_path, monkeypatch):
    free = 40 * ROW
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    with opened(source, tmp_path / "store", gb=None) as store:
        assert store.rows.capacity == 20
    monkeypatch.setattr(rows.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10**15))
    monkeypatch.setattr(rows, "MOST", 30 * ROW)
    with opened(source, tmp_path / "store", gb=None) as store:
        assert store.rows.capacity == 30


def test_a_folder_named_by_mistake_loses_nothing(source, tmp_path):
    folder, key = tmp_path / "store", f"{store_key(source, SIZE)}-{SIZE}px"
    theirs = [".tmp-1-mine/pixels", ".tmp-2", f".tmp-3-{key}/diary", ".tmp-x/lock", "a/lock/pixels"]
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    ours = folder / leftover(key)
    ours.mkdir()
    (ours / "flags").touch()
    with opened(source, folder):
        assert all((folder / name).is_file() for name in theirs)
        assert not ours.exists()


ANOTHER_USER = """
import os, sys
from pathlib import Path
from selfie_cli.data.rows import Rows
os.setuid(65534)
rows = Rows(10, 4, Path(sys.argv[1]), 800)
print(rows.capacity)
"""


@pytest.fixture
def everyones() -> Iterator[Path]:
    """Other users do not get into pytest's folders."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_belongs_to_other_users_is_left_alone(everyones):
    folder = everyones / "store"
    Rows(10, 4, folder / "roots", 10**6).close()
    (folder / "lost+found").mkdir(mode=0o700)
    folder.chmod(0o1777)
    for name in ("roots/lock", "lock"):
        (folder / name).chmod(0o644)
    command = [sys.executable, "-c", ANOTHER_USER, str(folder / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "6\n", done.stderr  # 800 bytes less the 480 that root has
    assert (folder / "roots/pixels").stat().st_size == 480
    assert (folder / "lost+found").is_dir()


def test_without_a_home_nothing_is_kept(source, whole, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for gb, line in ((None, "there is no home folder: name one with --store"), (0.0, "are not kept")):
        talk = Listener()
        with closing(MappedStore(source, size=SIZE, workers=2, max_bad=0, talk=talk, limit_gb=gb)) as store:
            assert torch.equal(store.take(torch.arange(9)), whole[:9])
        assert line in talk.lines[0]


def test_the_parts_of_a_run_and_its_processes_have_all_marks_together(source, whole, tmp_path):
    seen = [[[3, 8], [8, 60]], [[5], [3, 99]]]  # of each process, by the part of the run
    for part in (0, 1):
        for rank in (0, 1):
            file = tmp_path / f"seen-{rank}.safetensors"
            with opened(source, tmp_path / "store", gb=0) as store:
                store.recall(marks=load_marks(file) if file.exists() else None, bad=[])
                store.take(torch.tensor(seen[rank][part]))
                save_marks(file, store.marks())
    found = joined(load_marks(tmp_path / f"seen-{rank}.safetensors") for rank in (0, 1))
    expected = marks_of(whole[[3, 8, 60, 5, 99]])
    np.testing.assert_array_equal(found.exact, expected.exact)
    np.testing.assert_array_equal(found.perceptual, expected.perceptual)


def test_files_known_to_be_unreadable_count_from_the_start(source, whole, tmp_path):
    known = [BadFile(source.names[index], "was damaged") for index in (40, 7)]
    spoil(source, 7, 9, 40)
    with opened(source, tmp_path / "store", max_bad=0.02) as store:
        store.recall(marks=None, bad=known)
        assert store.bad == known[::-1]
        assert torch.equal(store.take(torch.tensor([7])), whole[[8]])
        with pytest.raises(DataError, match=r"3 of the first .*2\.0%"):
            store.take(torch.tensor([9]))
    with opened(source, tmp_path / "store", max_bad=0.01) as store, pytest.raises(DataError, match="2 of the first 2"):
        store.recall(marks=None, bad=known)


def test_flags_are_cleared_on_the_disk_before_the_rows_go(source, tmp_path, monkeypatch):
    with opened(source, tmp_path / "store") as store:
        store.take(torch.arange(100))
    flags, events = next((tmp_path / "store").glob("*/flags")), []
    fsync, truncate = os.fsync, os.truncate

    def noted_fsync(file: int) -> None:
        if os.path.sameopenfile(file, watched):
            events.append(("flags flushed", np.count_nonzero(np.fromfile(flags, np.uint8) & PIXELS)))
        fsync(file)

    def noted_truncate(file, size: int) -> None:
        events.append(("cut", size))
        truncate(file, size)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "truncate", noted_truncate)
    with flags.open("rb") as file:
        watched = file.fileno()
        with opened(source, tmp_path / "store", gb=30.5 * ROW / 1e9):
            pass
    assert events[:2] == [("flags flushed", 30), ("cut", 30 * ROW)]
