"""torchrun -m selfie_cli ...: real processes, two of them, on the CPU. One run, one voice, and the same end however
often it was stopped."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from running import SMALL, config_of, document, error_of, lines_of, process, read, same_weights, stopped, two

from selfie_cli.data.duplicates import load_marks
from selfie_cli.training.checkpoint import saved_states
from tests.faults.processes import Job

pytestmark = pytest.mark.slow

STEPS = 60


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in lines_of(run / "metrics.jsonl")]


def succeeded(*arguments: object) -> tuple[str, str]:
    """stdout and stderr of the first of two processes; the other one must be silent."""
    (code, out, err), (code_of_other, *said_by_other) = two(*arguments)
    assert (code, code_of_other) == (0, 0), (err, said_by_other)
    assert said_by_other == ["", ""]
    return out, err


@pytest.fixture(scope="module")
def asked(images: Path) -> tuple[object, ...]:
    return ("pretrain", images, *SMALL, "--steps", STEPS, "--device", "cpu", "--seed", 3)


@pytest.fixture(scope="module")
def whole(asked: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing interrupted, and all that was said."""
    folder = tmp_path_factory.mktemp("whole")
    with Job(*asked, "--out", folder / "run", "--save-every", "1e9", folder=folder) as job:
        assert job.end() == 0, job.said
    return folder / "run", job.said


def test_one_run_and_one_voice(whole: tuple[Path, str]) -> None:
    run, said = whole
    config, steps = config_of(run), steps_of(run)
    derived = {"processes": 2, "batch_size": 8, "micro_batch": 4}
    assert {name: config["derived"][name] for name in derived} == derived
    assert config["progress"]["status"] == "finished"
    assert not list(run.glob(".tmp*"))
    assert (steps, steps[-1]) == (sorted(set(steps)), STEPS)
    for line in lines_of(run / "metrics.jsonl"):
        assert line["chance"] == pytest.approx(1 / 8)  # among the images of both processes
    lines = ("next: selfie finetune", f"{run}: {STEPS} steps", "batch 8 as 2 x 4", f"run: {run}")
    for once in (*lines, "batch norm sees the 4 images of its own process", f"{STEPS} steps of 8 images ("):
        assert said.count(once) == 1
    assert "Traceback" not in said


def test_stopped_and_resumed_equals_uninterrupted(
    whole: tuple[Path, str], asked: tuple[object, ...], tmp_path: Path
) -> None:
    """Bit for bit. tests/faults/test_jobs.py kills one of the processes."""
    run = tmp_path / "run"
    with Job(*asked, "--out", run, "--save-every", 0, folder=tmp_path) as job:
        job.until(lambda: saved_states(run / "state"))
        job.popen.send_signal(signal.SIGTERM)
        assert job.end() != 0
    states = saved_states(run / "state")
    step = int(states[-1].name)
    assert 0 < step < STEPS
    assert not (run / "model.safetensors").exists()
    assert f"stopped after step {step}" in job.said
    assert steps_of(run)[-1] == step
    assert "was started with 2 processes, not 1" in error_of("pretrain", "--resume", run, code=2)
    out, _ = succeeded("pretrain", "--resume", run)
    assert out.count("next: selfie finetune") == 1
    assert same_weights(run, whole[0])
    assert config_of(run)["progress"]["status"] == "finished"
    assert not (run / "state").exists()
    assert steps_of(run) == sorted(set(steps_of(run)))


def test_two_processes_start_from_other_weights(whole: tuple[Path, str], images: Path, tmp_path: Path) -> None:
    """Both start from the same; killed before the first state, they read the origin again."""
    run, killed = tmp_path / "run", tmp_path / "killed"
    asked = ("pretrain", images / "test", "--from", whole[0], *SMALL[2:], "--steps", 4, "--device", "cpu")
    _, said = succeeded(*asked, "--out", run)
    assert said.count(f"from {whole[0]}: 3 of 3 stages; fresh: projector") == 1
    marks = [load_marks(each / "seen.safetensors") for each in (whole[0], run)]
    assert set(marks[0].exact) < set(marks[1].exact)
    assert len(marks[1]) == 90  # 60 for training the origin, 30 here
    succeeded("pretrain", "--resume", stopped(run, killed))
    assert same_weights(run, killed)


def test_a_batch_that_cannot_be_divided_is_refused(images: Path) -> None:
    ended = two("pretrain", images, *SMALL, "--batch-size", 9, "--steps", 1, "--device", "cpu", "--out", "run")
    for code, out, err in ended:
        assert (code, out) == (2, "")
        assert "a batch of 9 cannot be divided among 2 processes evenly" in err
    assert ended[1][2].startswith("error: process 1: ")
    assert not Path("run").exists()


def test_pieces_of_a_default_batch(images: Path) -> None:
    """The default batch of nine images is one that divides."""
    nine = sorted((images / "train").rglob("*.png"))[:9]
    small = ("--backbone", "resnetv2_18_w16", "--precision", "fp32", "--device", "cpu", "--no-report")
    asked = (*small, "--method", "byol", "--steps", 3, "--micro-batch", 2, "--out", "run", "--json")
    out, said = succeeded("pretrain", *nine, *asked)
    assert json.loads(out)["step"] == 3
    assert "batch 8 as 2 x 4" in said
    assert config_of("run")["derived"]["batch_size"] == 8


def test_finetune(images: Path, pretrained: Path) -> None:
    out, err = succeeded(
        *("finetune", "--dataset", images, "--from", pretrained, "--fraction", 0.5, "--seeds", 2, "--steps", 3),
        *("--lr", 0.03, "--batch-size", 8, "--precision", "fp32", "--device", "cpu", "--out", "run", "--json"),
    )
    result = json.loads(out)
    assert result == read("run/results.json")
    assert len(result["arms"]) == 2
    assert config_of("run")["derived"]["processes"] == 2
    assert err.count("run: run") == 1
    for arm in result["arms"]:  # the network that is kept was judged, not what each process made of it
        for cell, accuracy in zip(sorted(Path("run/cells").glob(f"{arm['name']}-*")), arm["accuracies"], strict=True):
            judged = document("eval", cell, "--dataset", images, "--precision", "fp32", "--device", "cpu")
            assert judged["classified"]["top1"] == pytest.approx(accuracy)
    assert "resume it with as many" in error_of("finetune", "--resume", stopped("run", "part"), code=2)


def test_eval(images: Path, pretrained: Path) -> None:
    """The same numbers as in one process."""
    run = shutil.copytree(pretrained, "run")
    asked = ("eval", run, "--dataset", images, "--precision", "fp32", "--device", "cpu")
    alone = process(*asked, "--json")
    out, _ = succeeded(*asked, "--json")
    assert json.loads(out) == json.loads(alone.stdout)
