import errno
import fcntl
import os
import subprocess
import sys

import pytest
from listening import Listener
from running import ENVIRONMENT, error_of, leftover

from selfie_cli import runs
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import TEMPORARY, read_json, write_json
from selfie_cli.training import start

DERIVED = {"method": "selfie", "image_size": 32, "steps": 9, "batch_size": 8, "micro_batch": 8, "selfie": {}}
DERIVED |= {"backbone": "resnet18", "recipe": "best", "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
DERIVED |= {"warmup_steps": 1}


def make(path, *, verb="pretrain", finished=True, overwrite=False):
    run = runs.create(path, verb=verb, asked={"seed": 0}, derived=DERIVED, overwrite=overwrite)
    if finished:
        run.finish({"seconds": 1.0})
    return run


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run", finished=False)


def test_a_run_comes_back_updates_merge_and_finishing_removes_states(tmp_path):
    made = make(tmp_path / "deep" / "run", finished=False)
    run = runs.open_run(tmp_path / "deep" / "run")
    assert run.config == made.config == read_json(run.path / "config.json")
    assert (run.verb, run.finished, run.derived["image_size"]) == ("pretrain", False, 32)
    assert {"selfie-cli", "torch"} <= run.config["versions"].keys()
    run.update(measured={"a": 1}, new={"b": 2})
    (run.path / "state" / "00000003").mkdir(parents=True)
    run.finish({"seconds": 1.0})
    run = runs.open_run(run.path)
    assert run.finished
    assert (run.config["measured"], run.config["new"]) == ({"a": 1, "seconds": 1.0}, {"b": 2})
    assert os.listdir(run.path) == ["config.json"]


def test_a_name_is_taken_once(tmp_path):
    names = [start.claimed(tmp_path / "runs" / "pretrain").name for _ in range(3)]
    assert names == ["pretrain", "pretrain-2", "pretrain-3"] == sorted(os.listdir(tmp_path / "runs"))


def test_an_occupied_folder_is_replaced_only_when_asked(tmp_path):
    run = make(tmp_path / "run")
    (run.path / "model.safetensors").touch()
    for attempt in (make, lambda path: runs.check_free(path, overwrite=False)):
        with pytest.raises(RunError, match="--overwrite"):
            attempt(run.path)
    runs.check_free(run.path, overwrite=True)
    assert (run.path / "model.safetensors").exists()  # asking changes nothing
    runs.create(run.path, verb="finetune", asked={}, overwrite=True)
    assert runs.open_run(run.path).verb == "finetune"
    assert os.listdir(run.path) == ["config.json"]


@pytest.mark.parametrize("name", ["images/a.png", "inner/config.json", "model.safetensors.old", "config.json"])
def test_overwrite_deletes_no_file_that_is_no_part_of_a_run(tmp_path, name):
    run, part = make(tmp_path / "run"), name.partition("/")[0]
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text("mine")
    for attempt in (runs.check_free, make):
        said = "no run that this version reads" if name == "config.json" else f"run/{part} is no part of a run"
        with pytest.raises(RunError, match=said):
            attempt(run.path, overwrite=True)
    assert (run.path / name).read_text() == "mine"


def test_overwriting_keeps_the_config_until_the_new_one_is_there(run, tmp_path, monkeypatch):
    """Otherwise a kill in between would leave a folder that is no run's."""
    (run.path / "state" / "00000003").mkdir(parents=True)
    (run.path / "report.html").symlink_to(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_json", lambda path, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(run.path, overwrite=True)
    assert os.listdir(run.path) == ["config.json"]
    make(run.path, overwrite=True)


def test_which_folders_are_free_and_have_room(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="is a file"):
            runs.check_free(path, overwrite=True)
    runs.check_free(tmp_path / "new", overwrite=False)
    (tmp_path / "file").rename(tmp_path / f"{TEMPORARY}12-config.json")  # left by a kill
    old = make(tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]
    for path in (tmp_path / "new", old.path):  # on a disk without room
        with pytest.raises(OSError, match="will be written") as raised:
            runs.create(path, verb="pretrain", asked={}, overwrite=True, room=2**60)
        assert raised.value.filename == str(path)
    assert runs.open_run(old.path).finished
    assert not (tmp_path / "new").exists()


def test_a_link_or_a_mounted_disk_is_filled_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("link", "dangling"):
        (tmp_path / name).symlink_to("real" if name == "link" else "not/yet")
        make(tmp_path / name)
        (tmp_path / name / "metrics.jsonl").touch()
        make(tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()
        assert os.listdir(tmp_path / name) == ["config.json"]


ELSEWHERE = """
import sys
from pathlib import Path
from selfie_cli import runs
path = Path(sys.argv[1])
for attempt in (
    lambda: runs.check_free(path, overwrite=True),
    lambda: runs.check_free(path, overwrite=False),
    lambda: runs.create(path, verb="pretrain", asked={}, overwrite=True),
    lambda: runs.open_to_resume(str(path), "pretrain"),
):
    try:
        print(attempt() or "free")
    except runs.RunError as error:
        print(error)
"""


def attempts_elsewhere(path, **environment):
    """The answers that another process gets."""
    argv = [sys.executable, "-c", ELSEWHERE, path]
    done = subprocess.run(argv, env=ENVIRONMENT | environment, capture_output=True, check=True, text=True)
    return done.stdout.splitlines()


def test_one_process_works_on_a_run(run):
    half = run.path / leftover("model.safetensors")
    half.touch()
    refused = [f"another process is working on {run.path}: wait for it, or stop it first"] * 4
    assert attempts_elsewhere(run.path) == refused
    assert half.exists()  # it may be in the making
    runs.open_to_resume(str(run.path), "pretrain")  # this process may
    assert not half.exists()
    run.finish({})
    assert not [line for line in attempts_elsewhere(run.path) if "another process" in line]


def test_the_first_process_of_a_job_holds_a_run_for_all_until_its_command_fails(run, tmp_path):
    assert attempts_elsewhere(run.path, RANK="1", WORLD_SIZE="2")[0] == "free"
    assert "another process" in attempts_elsewhere(run.path, RANK="0", WORLD_SIZE="2")[0]
    assert "another process" in attempts_elsewhere(run.path, RANK="1", WORLD_SIZE="1")[0]  # it is alone
    run.update(asked={"data": [str(tmp_path / "nowhere")]})
    assert "nowhere" in error_of("pretrain", "--resume", run.path)
    assert attempts_elsewhere(run.path)[0] == "free"


@pytest.mark.parametrize("locks", [True, False])
def test_the_run_that_was_begun_is_the_one_to_go_on_with_also_where_there_are_no_locks(tmp_path, monkeypatch, locks):
    def unsupported(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    if not locks:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(runs, "_held", {})
    assert runs.begun() is None
    run = make(tmp_path / "run", finished=False)
    cell = make(run.path / "cells" / "supervised", verb="finetune-cell", finished=False)
    assert runs.begun().path == runs.open_to_resume(str(run.path), "pretrain").path == run.path
    with pytest.raises(RunError, match="resume the run of finetune or curve"):
        runs.open_to_resume(str(cell.path), "finetune")
    cell.finish({})
    run.finish({})
    assert runs.begun() is None


def test_a_resumed_run_is_tidied_and_so_is_one_killed_at_its_very_end(run, tmp_path):
    (run.path / leftover("model.safetensors")).touch()
    (run.path / "state" / "00000003").mkdir(parents=True)
    (run.path / "state" / leftover("00000006")).mkdir()
    assert runs.open_to_resume(str(run.path), "pretrain").path == run.path
    assert sorted(os.listdir(run.path)) == ["config.json", "state"]
    assert os.listdir(run.path / "state") == ["00000003"]
    finished = make(tmp_path / "finished")
    (finished.path / "state" / "00000003").mkdir(parents=True)
    with pytest.raises(RunError, match="is finished"):
        runs.open_to_resume(str(finished.path), "pretrain")
    assert os.listdir(finished.path) == ["config.json"]


DAMAGED = [b"", b'{"format": 1', b"\xff\xfe\x00", b"[]", b"{}", b'{"format": 1, "z": 1e999}']
DAMAGED += [b'{"format": %s}' % value for value in (b'"1"', b"1.0", b"true", b"null")]


def test_what_is_no_run_and_a_damaged_config_are_named(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for where in ("nowhere", "file", "folder"):
        with pytest.raises(RunError, match="no run at"):
            runs.open_run(tmp_path / where)
    for content in DAMAGED:
        (run.path / "config.json").write_bytes(content)
        with pytest.raises(RunError, match=r"config\.json"):
            runs.open_run(run.path)


@pytest.mark.parametrize("format", [-1, 2, 10**30])
def test_another_format_is_refused_whatever_else_it_has(tmp_path, format):
    for versions, writer in ({"selfie-cli": "9.1"}, ", 9.1"), ({}, ""), ([3], ""):
        write_json(tmp_path / "config.json", {"format": format, "versions": versions})
        said = rf"run format {format}, this selfie \([\w.]+\) reads 1: use the selfie-cli that wrote it{writer}, or"
        with pytest.raises(RunError, match=said):
            runs.open_run(tmp_path)


def test_where_weights_come_from(tmp_path):
    here, listener = tmp_path / "runs", Listener()
    assert runs.newest_pretraining() is None
    assert runs.resolve_from("none", talk=listener) is None
    made = [make(here / "old"), make(here / "new"), make(here / "unfinished", finished=False)]
    made += [make(here / "finetuned", verb="finetune"), make(here / "demo" / "pretrain"), make(here / "damaged")]
    (here / "damaged" / "config.json").write_text("{")
    for time, run in enumerate(made):
        os.utime(run.path / "config.json", (time, time))
    assert runs.resolve_from(None, talk=listener).path.name == "new"
    assert runs.resolve_from("runs/old", talk=listener).path.name == "old"
    told = ("none, a freshly initialized", "runs/new (", "runs/old (")
    assert all(line.startswith(f"weights: {words}") for words, line in zip(told, listener.said, strict=True))
    assert "the newest finished pretraining" in listener.said[1]
    with pytest.raises(RunError, match="not finished: selfie pretrain --resume runs/unfinished"):
        runs.resolve_from("runs/unfinished")
    with pytest.raises(UsageError, match="embed needs trained weights"):
        runs.weights_for("embed", "none")
