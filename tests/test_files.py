"""Files and folders are whole or absent, whenever a process ends, and JSON holds what JSON has."""

import contextlib
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ENVIRONMENT, leftover

from selfie_cli import files
from selfie_cli.files import read_json, remove_leftovers, replacing, replacing_folder, write_json

WRITING = pytest.mark.parametrize("writing", [replacing, replacing_folder])


def put(path, text):
    """Write to a file, or to a file in a folder."""
    (path / "file" if path.is_dir() else path).write_text(text)


def content(path):
    return (path / "file" if path.is_dir() else path).read_text()


@WRITING
def test_a_file_or_folder_is_replaced_in_one_step(tmp_path, writing):
    target, again = tmp_path / "deep" / "target", {"overwrite": True} if writing is replacing_folder else {}
    with writing(target) as temporary:
        put(temporary, "old")
        assert not target.exists()
        assert temporary.parent == target.parent  # another file system could not be renamed from
    with contextlib.suppress(KeyboardInterrupt), writing(target, **again) as temporary:
        put(temporary, "half")
        raise KeyboardInterrupt
    assert content(target) == "old"
    with writing(target, **again) as temporary:
        put(temporary, "new")
        assert content(target) == "old"
    assert content(target) == "new"
    assert os.listdir(target.parent) == ["target"]


@WRITING
def test_an_occupied_folder_is_not_replaced(tmp_path, writing):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError), writing(tmp_path / "folder") as temporary:  # noqa: PT011 - its kind depends on the system
        put(temporary, "new")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["old"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    """Not what is being written, here or on another machine, and no names that are not ours."""
    elsewhere = "0badcafe"
    assert elsewhere != files.MACHINE
    alive = f"{files.TEMPORARY}{os.getppid()}-{files.MACHINE}-a"
    theirs = leftover("a").replace(files.MACHINE, elsewhere)
    kept = {alive, theirs, f"{files.TEMPORARY}a", f"{files.TEMPORARY}7-a", "a"}
    (folder := tmp_path / leftover("folder")).mkdir()
    for name in (*kept, leftover("file"), folder / "inside"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == kept
    long_ago = time.time() - 2 * files.FORGOTTEN
    for name in (alive, theirs):
        os.utime(tmp_path / name, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert kept - set(os.listdir(tmp_path)) == {theirs}  # a process of this machine is asked for, however long ago
    remove_leftovers(tmp_path / "nowhere")


def test_writing_a_file_again_removes_what_a_killed_process_left_of_it(tmp_path):
    other = leftover("another")
    for name in (leftover("file"), other):
        (tmp_path / name).touch()
    files.write_text(tmp_path / "file", "text")
    assert set(os.listdir(tmp_path)) == {"file", other}
    with replacing_folder(tmp_path / "another"):
        pass
    assert set(os.listdir(tmp_path)) == {"file", "another"}


KILLED = """
import os, sys
from pathlib import Path
from selfie_cli.files import replacing_folder
left = int(sys.argv[1])
def hook(event, args):
    global left
    left -= event == "os.rename"
    if not left:
        os._exit(9)
sys.addaudithook(hook)
with replacing_folder(Path("link"), overwrite=True) as temporary:
    (temporary / "new").write_text("new")
"""


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_folder_replaced_is_never_gone_and_a_link_to_it_stays(tmp_path, kept):
    """The process ends before the first, second or third renaming: one of the two is whole, under a plain name."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "folder" / "old").write_text("old")
    argv = [sys.executable, "-c", KILLED, str(kept)]
    assert subprocess.run(argv, cwd=tmp_path, env=ENVIRONMENT, check=False).returncode == 9
    plain = {path.name.partition("-old")[0]: os.listdir(path) for path in tmp_path.glob("folder*")}
    assert plain["folder"] in (["old"], ["new"])
    with replacing_folder(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "newer").touch()
    assert os.listdir(tmp_path / "folder") == ["newer"]
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob(".tmp-*"))


@WRITING
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, writing):
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only", str(tmp_path / leftover("a")))):
        with pytest.raises(OSError, match="a") as raised, writing(tmp_path / "a"):
            raise error
        assert (raised.value.filename, raised.value.strerror) == (str(tmp_path / "a"), os.strerror(error.errno))
    with pytest.raises(FileNotFoundError) as raised, writing(tmp_path / "a"):
        Path("/nowhere/b").read_bytes()
    assert raised.value.filename == "/nowhere/b"
    with pytest.raises(OSError, match="a link"), writing(tmp_path / "a"):  # it has no number
        raise OSError("cannot do this to a link")
    assert os.listdir(tmp_path) == []


def test_room_is_asked_for_where_the_file_will_lie(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    files.check_room(tmp_path / "deep" / "file", free // 2)
    with pytest.raises(OSError, match="will be written") as raised:
        files.check_room(tmp_path / "deep" / "file", 2 * free + 2**40)
    assert raised.value.errno == errno.ENOSPC
    (tmp_path / "link").symlink_to("/proc/self/nowhere")
    assert files.nearest(tmp_path / "link" / "deep") == Path(os.path.realpath("/proc/self"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"a" * 10_000)
    assert 10_000 <= files.size_of(tmp_path / "folder") < 50_000


def test_json_comes_back_and_what_json_does_not_have_is_refused():
    """Names that are not UTF-8 come back too."""
    file, value = Path("a.json"), {"name": "Käse", "list": [1, 2.5, None, True], "\udcff": ["b\ud800", "ü"]}
    write_json(file, value)
    for number in (math.nan, math.inf):
        for write in (lambda value: write_json(file, value), files.json_line):
            with pytest.raises(ValueError, match="JSON"):
                write({"value": number})
    assert read_json(file) == value
    assert "Käse" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"a": 1', b"[" * 100_000, b"[NaN]", b"[-Infinity]", b"[1e999]"])
def test_what_is_no_json_is_a_value_error(data):
    Path("a.json").write_bytes(data)
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        read_json(Path("a.json"))


def test_a_line_is_one_line_whatever_the_name():
    names = ["a\nb", "\u2028", "Käse", os.fsdecode(b"\xff.jpg")]
    files.write_json_lines(Path("a.jsonl"), [{"path": name} for name in names])
    assert [json.loads(line)["path"] for line in Path("a.jsonl").read_text("utf-8").splitlines()] == names
