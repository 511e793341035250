import contextlib
import json
import math
import os

import pytest

from selfie_cli import files
from selfie_cli.files import (
    json_line,
    read_json,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_json,
    write_json_lines,
    write_text,
)


def test_a_file_is_replaced_in_one_step(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent  # another file system could not be renamed from
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with contextlib.suppress(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError), replacing(target) as temporary:  # noqa: PT011 - its kind depends on the system
        temporary.write_text("a file does not replace a folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    with replacing_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert os.listdir(target) == ["a"]
    assert os.listdir(target.parent) == ["folder"]


def test_a_folder_that_fails_leaves_nothing_behind(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_occupied_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError), replacing_folder(tmp_path / "folder") as temporary:  # noqa: PT011
        (temporary / "new").touch()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["old"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / f"{files.TEMPORARY}99-file").touch()
    (tmp_path / f"{files.TEMPORARY}99-folder").mkdir()
    (tmp_path / f"{files.TEMPORARY}99-folder" / "inside").touch()
    (tmp_path / "kept").touch()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
    remove_leftovers(tmp_path / "nowhere")


def test_json_comes_back(tmp_path):
    value = {"name": "Käse", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Käse" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_what_json_does_not_have_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", {"value": value})
        with pytest.raises(ValueError, match="JSON"):
            json_line({"value": value})
    assert read_json(tmp_path / "a.json") == {"old": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1', b"[" * 100_000])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        read_json(tmp_path / "a.json")


def test_a_line_is_one_line_whatever_the_name(tmp_path):
    names = ["a\nb", "\u2028", "Käse", os.fsdecode(b"\xff.jpg")]
    write_json_lines(tmp_path / "a.jsonl", [{"path": name} for name in names])
    content = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["path"] for line in content] == names
