"""What --resume takes, and what it refuses. Runs that are stopped, killed and damaged are those of tests/faults."""

import json
import shutil

import pytest
from PIL import Image
from running import same_weights

from selfie_cli.commands.finetune import finetune
from selfie_cli.commands.pretrain import pretrain
from selfie_cli.config import FinetuneOptions, PretrainOptions, SelfieOptions
from selfie_cli.data import synthetic
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import read_json, write_json
from selfie_cli.talk import Talk

STEPS = 40


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


def assert_finished(run):
    assert read_json(run / "config.json")["progress"]["status"] == "finished"
    assert not (run / "state").exists()
    assert not list(run.rglob(".tmp-*"))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def test_a_run_killed_before_its_first_state_starts_again(pretrained, stopped):
    pretrain(PretrainOptions(resume=str(stopped)), Talk())
    assert same_weights(stopped, pretrained)
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
