"""A run that was stopped, whenever and however, and resumed ends as one that never was, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import selfie_cli
from selfie_cli.config import CurveOptions, FinetuneOptions, PretrainOptions, SelfieOptions
from selfie_cli.data import synthetic
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import read_json, write_json
from selfie_cli.recipes.curve import curve
from selfie_cli.recipes.finetune import finetune
from selfie_cli.recipes.pretrain import pretrain
from selfie_cli.talk import Talk
from selfie_cli.training.state import saved_states

STEPS = 40
PATIENCE = 180  # seconds; a process that does not get anywhere in that time never will


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten folders of ten drawn images, a class each."""
    folder = tmp_path_factory.mktemp("images")
    for index, (picture, label) in enumerate(zip(*synthetic.draw(100, seed=0), strict=True)):
        path = folder / synthetic.CLASSES[label] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """A pretraining run that nothing interrupted, and that saved no state on its way."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(
        PretrainOptions(
            data=(str(images),),
            out=str(out),
            backbone="resnetv2_18_w16",
            steps=STEPS,
            batch_size=8,
            device="cpu",
            precision="fp32",
        ),
        Talk(),
    )
    return out


@pytest.fixture(scope="module")
def finetuned(images, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetuned") / "run"
    finetune(
        FinetuneOptions(
            dataset=str(images), from_=str(pretrained), out=str(out), fraction=0.5, seeds=2, steps=10, batch_size=16,
            device="cpu", precision="fp32",
        ),
        Talk(),
    )  # fmt: skip
    return out


@pytest.fixture
def stopped(pretrained, tmp_path):
    """The pretraining run as if it had been killed before its first state."""
    out = tmp_path / "stopped"
    shutil.copytree(pretrained, out)
    (out / "model.safetensors").unlink()
    config = read_json(out / "config.json")
    write_json(out / "config.json", config | {"progress": {"status": "running"}})
    return out


class Selfie:
    """`selfie` in a process of its own."""

    def __init__(self, *words, log):
        self.log = log
        root = str(Path(selfie_cli.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "selfie_cli", *map(str, words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
            )

    def until(self, condition):
        """Wait until `condition()` is true; the process must be at work all the while."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.002)

    def end(self, number=None):
        """Send a signal, if any, and wait; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def pretrain_words(images, out):
    return (
        "pretrain", images, "--out", out, "--backbone", "resnetv2_18_w16", "--steps", STEPS, "--batch-size", 8,
        "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip


def last_step(run):
    """The last one in metrics.jsonl, 0 if there is none."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (FileNotFoundError, ValueError):  # not begun, or caught in the middle of a line
        return 0


def assert_same_weights(run, other):
    tensors, others = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.equal(others[name]), name


def assert_finished(run):
    assert read_json(run / "config.json")["progress"]["status"] == "finished"
    assert not (run / "state").exists()
    assert not list(run.rglob(".tmp-*"))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def test_pretraining_stopped_by_ctrl_c(images, pretrained, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    with Selfie(*pretrain_words(images, run), "--save-every", 0.2, log=log) as selfie:
        selfie.until(lambda: last_step(run) >= 2)
        assert selfie.end(signal.SIGINT) == 130, log.read_text()
    assert f"selfie pretrain --resume {run}" in log.read_text()
    assert "Traceback" not in log.read_text()
    step = last_step(run)
    assert 2 <= step < STEPS
    assert saved_states(run / "state")[-1].name == f"{step:08d}"
    assert not (run / "model.safetensors").exists()

    with Selfie("pretrain", "--resume", run, log=log) as selfie:
        assert selfie.end() == 0, log.read_text()
    assert_same_weights(run, pretrained)
    assert_finished(run)


def test_pretraining_killed_again_and_again(images, pretrained, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    moments = random.Random(0)
    words = pretrain_words(images, run)
    enough = 3
    for _ in range(3):
        with Selfie(*words, "--save-every", 0.1, log=log) as selfie:
            selfie.until(lambda enough=enough: last_step(run) >= enough)
            time.sleep(moments.uniform(0, 0.1))
            assert selfie.end(signal.SIGKILL) == -signal.SIGKILL, log.read_text()
        enough = last_step(run) + 3
        words = ("pretrain", "--resume", run)
    pretrain(PretrainOptions(resume=str(run)), Talk())
    assert_same_weights(run, pretrained)
    assert_finished(run)


def test_finetuning_killed_in_a_cell(images, pretrained, finetuned, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = (
        "finetune", "--dataset", images, "--from", pretrained, "--out", run, "--fraction", 0.5, "--seeds", 2,
        "--steps", 10, "--batch-size", 16, "--device", "cpu", "--precision", "fp32", "--save-every", 0,
    )  # fmt: skip
    finished, killed = run / "cells" / "supervised-f0.5-s0", run / "cells" / "selfie-f0.5-s0"
    with Selfie(*words, log=log) as selfie:
        selfie.until(lambda: saved_states(killed / "state"))
        assert selfie.end(signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    assert not (killed / "results.json").exists()
    untouched = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert finished / "results.json" in untouched

    finetune(FinetuneOptions(resume=str(run)), Talk())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == untouched
    cells = sorted(path.name for path in (finetuned / "cells").iterdir())
    assert cells == [f"{arm}-f0.5-s{seed}" for arm in ("selfie", "supervised") for seed in (0, 1)]
    assert sorted(path.name for path in (run / "cells").iterdir()) == cells
    for cell in cells:
        assert_same_weights(run / "cells" / cell, finetuned / "cells" / cell)
        here, there = (read_json(folder / "cells" / cell / "results.json") for folder in (run, finetuned))
        assert here == there
    assert_same_weights(run, finetuned)
    here, there = (read_json(folder / "results.json") for folder in (run, finetuned))
    assert here | {"run": ""} == there | {"run": ""}
    for seed in (0, 1):
        name = f"labels-f0.5-s{seed}.jsonl"
        assert (run / name).read_text() == (finetuned / name).read_text()


def test_a_run_killed_before_its_first_state_starts_again(pretrained, stopped):
    pretrain(PretrainOptions(resume=str(stopped)), Talk())
    assert_same_weights(stopped, pretrained)
    assert_finished(stopped)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"lr": 0.3},
        {"steps": STEPS + 1},
        {"batch_size": 16},
        {"backbone": "resnet18"},
        {"weight_decay": 0.0},
        {"data": ("elsewhere",)},
        {"selfie": SelfieOptions(mask_ratio=0.5)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_changed_options_are_refused(stopped, changed):
    with pytest.raises(UsageError, match="cannot change") as caught:
        pretrain(PretrainOptions(resume=str(stopped), **changed), Talk())
    assert caught.value.exit_code == 2


def test_the_same_options_may_be_given_again(stopped, images):
    config = read_json(stopped / "config.json")
    write_json(stopped / "config.json", config | {"data": {"fingerprint": "another"}})
    with pytest.raises(RunError, match="images have changed"):  # so it got past the options
        pretrain(PretrainOptions(resume=str(stopped), data=(str(images),), steps=STEPS, batch_size=8), Talk())


def test_changed_images_are_refused(stopped, images):
    other = images / "one_more.png"
    Image.new("RGB", (32, 32)).save(other)
    try:
        with pytest.raises(RunError, match="images have changed") as caught:
            pretrain(PretrainOptions(resume=str(stopped)), Talk())
    finally:
        other.unlink()
    assert caught.value.exit_code == 1


def test_finished_runs_are_refused(pretrained, finetuned):
    with pytest.raises(RunError, match="is finished") as caught:
        pretrain(PretrainOptions(resume=str(pretrained)), Talk())
    assert caught.value.exit_code == 1
    with pytest.raises(RunError, match="is finished"):
        finetune(FinetuneOptions(resume=str(finetuned)), Talk())


def test_runs_of_another_verb_are_refused(stopped):
    with pytest.raises(RunError, match="selfie pretrain --resume"):
        finetune(FinetuneOptions(resume=str(stopped)), Talk())


def test_curve_killed_in_a_cell(images, pretrained, tmp_path):
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    options = {"fractions": "0.2,0.5", "seeds": "1", "steps": 6, "batch_size": 16, "device": "cpu", "precision": "fp32"}
    curve(CurveOptions(dataset=str(images), from_=(str(pretrained),), out=str(whole), **options), Talk())
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    killed = run / "cells" / "supervised-f0.5-s0"
    with Selfie(
        *("curve", "--dataset", images, "--from", pretrained, "--out", run, "--save-every", 0, *words), log=log
    ) as selfie:
        selfie.until(lambda: saved_states(killed / "state"))
        assert selfie.end(signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    assert not (killed / "results.json").exists()
    finished = run / "cells" / "selfie-f0.2-s0"
    untouched = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert finished / "results.json" in untouched

    result = curve(CurveOptions(resume=str(run)), Talk())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == untouched
    for cell in (whole / "cells").iterdir():
        assert_same_weights(run / "cells" / cell.name, cell)
    assert read_json(run / "results.json")["points"] == read_json(whole / "results.json")["points"]
    assert [point.fraction for point in result.points] == [0.2, 0.5]
