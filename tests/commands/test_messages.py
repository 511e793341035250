"""What commands say: refusals of one line, after which nothing is made, and advice that can be followed as printed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from running import SMALL, change, error_of, selfie

# Words that stand for what fixtures make.
FIXTURES = {"RUN": "pretrained", "TUNED": "finetuned", "IMAGES": "images"}
PAPER = "--recipe paper"
FINETUNE = "finetune --dataset IMAGES"
BY_ITSELF = "leaves an image by itself"  # at 8 px the last feature map has one pixel, and batch norm one number

# Options that the error begins with or names, and commands that refuse them.
OPTIONS = {
    f"pretrain IMAGES {' '.join(SMALL)}": (
        *("--steps 0", "--epochs nan", "--budget soon", "--steps 1 --epochs 1", "--lr inf", "--mask-ratio 0.5"),
        *("--patch-size 8", f"--image-size 33 {PAPER}", f"--image-size 8 {PAPER}"),
        *(f"--patch-size 7 {PAPER}", f"--image-size 1056 --patch-size 8 {PAPER}"),
        *("--budget 1m --deterministic", "--compile on --deterministic"),
    ),
    "embed IMAGES --from RUN": (
        *("--batch-size 0", "--json", "--out v.arrow", "--out empty.csv", "--out taken.csv/v.csv", "--out /proc/v.csv"),
    ),
    "embed IMAGES --from TUNED": ("--features whole",),
    "predict TUNED IMAGES": ("--out p.npy",),
    f"{FINETUNE} --from RUN": ("--backbone resnet18", "--image-size 64", "--fraction 1.5"),
    "eval bundled --dataset IMAGES": ("--exclude-seen",),
    "demo": ("--seeds 0",),
}
FROZEN = ("--steps 5", "--epochs 2", "--budget 1h", "--lr 0.1", "--lr 0.1,0.3", "--weight-decay 0", "--batch-size 8")
FROZEN += ("--no-check-length",)
USAGE = [
    ("pretrain IMAGES --num-views 1", "--num-views must be at least 2 and at most 64, got 1"),
    ("pretrain IMAGES --mask-ratio 0", "--mask-ratio must be above 0 and at most 0.95, got 0"),
    (f"pretrain IMAGES {' '.join(SMALL)} --batch-size 1", BY_ITSELF),
    (f"pretrain IMAGES {' '.join(SMALL)} --batch-size 9 --micro-batch 4 --method byol", BY_ITSELF),
    *((f"{command} {given}", given.split()[0]) for command, wrong in OPTIONS.items() for given in wrong),
    *(
        (f"{verb} --frozen {given} --dataset IMAGES --from RUN", f"{given.split()[0]} has no meaning with --frozen")
        for given in FROZEN
        for verb in ("finetune", "curve")
    ),
    (f"{FINETUNE} --frozen --arch hybrid --from RUN", "--arch has no meaning with --frozen, which trains no network"),
    ("pretrain IMAGES --min-crop 0.9", "--min-crop 0.9 is more than --max-crop 0.7: give both"),
    (f"{FINETUNE} --from RUN --min-crop 0.5", "--min-crop has no meaning at 32 px"),
    ("pretrain", "name the images"),
    ("doctor", "name the images"),
    ("embed --from RUN", "name the images"),
    ("embed IMAGES --from none", "needs trained weights"),
    ("predict", "name a finetuned run"),
    ("predict TUNED", "name the images"),
    ("predict TUNED IMAGES --out taken.csv", "--overwrite"),
    ("eval RUN", "--dataset is missing"),
    ("finetune --from RUN", "--dataset is missing"),
    (f"{FINETUNE} --from none --no-baseline", "leaves nothing"),
    (f"{FINETUNE} --from none --image-size 8 --batch-size 33 --micro-batch 8", BY_ITSELF),
    (f"{FINETUNE} --from none --image-size 8 --batch-size 1", BY_ITSELF),
    (f"{FINETUNE} --from none --arch hybrid", "--arch hybrid needs a run of Selfie with --recipe paper"),
    (f"{FINETUNE} --from TUNED --arch hybrid", "--arch hybrid needs a run of Selfie with --recipe paper"),
    (f"{FINETUNE} --from none --frozen", "--frozen needs a pretrained network"),
    (f"{FINETUNE} --from imagenet --backbone resnetv2_10_w32", "no ImageNet weights of resnetv2_10_w32: choose --ba"),
    ("curve --dataset IMAGES --from none --frozen", "--frozen needs a pretrained network"),
    ("curve --dataset IMAGES --from RUN --from RUN", "two runs the name 'pretrained'"),
    ("curve --dataset IMAGES --from RUN --from none", "--from none must be used alone"),
    ("curve --dataset IMAGES --from RUN --out RUN --overwrite", "is, or holds, a run that --from names"),
    ("similar --in v.npy", "name query images"),
    ("similar a.png", "--in is missing"),
    ("similar a.png --in v.npy --duplicates", "name query images, or give --duplicates without"),
    ("similar a.png --in v.npy --threshold 0.5", "--threshold"),
    ("similar --in v.npy --duplicates --from bundled", "leave --from"),
    ("export", "needs trained weights"),
    ("export RUN", "--to timm, torchvision, onnx, safetensors"),
    ("export RUN", "onnx and safetensors fit"),
    ("export RUN --to onnx --out x.safetensors", ".onnx"),
    ("report", "name a run"),
    ("report bundled", "--out"),
    ("report RUN --out empty", "folder"),
    (f"push bundled acme/net@{40 * '0'} --public", "is a commit"),
]
NOT_THERE = [
    ("pretrain nowhere", "no such file"),
    ("pretrain empty", "no images in empty"),
    ("pretrain blank.txt", "blank.txt"),
    ("pretrain cifar10 --offline", "--offline"),
    ("embed IMAGES --from nowhere", "no run at nowhere"),
    ("embed empty --from RUN", "no images in empty"),
    ("predict RUN IMAGES", "selfie finetune --from"),
    ("eval RUN --dataset nowhere", "no such file"),
    (f"{FINETUNE} --from nowhere", "no run at nowhere"),
    (f"{FINETUNE} --from IMAGES", "no run at"),
    *(
        (f"{verb} pack.tgz --from none", "pack.tgz is compressed: unpack it")
        for verb in ("pretrain", "finetune --dataset")
    ),
    ("curve --dataset IMAGES --from RUN --from nowhere", "no run at nowhere"),
    ("similar a.png --in nowhere.npy", "no file nowhere.npy"),
    ("report RUN --dataset nowhere", "nowhere"),
    ("report acme/net", "hf://acme/net for one on the Hub"),
]


@pytest.mark.parametrize(
    ("code", "command", "words"), [*((2, *case) for case in USAGE), *((1, *case) for case in NOT_THERE)]
)
def test_refused_in_one_line(code: int, command: str, words: str, request: pytest.FixtureRequest) -> None:
    for folder in ("empty", "empty.csv"):
        Path(folder).mkdir()
    for name in ("blank.txt", "pack.tgz"):
        Path(name).write_text("\n")
    Path("taken.csv").write_text("dear")
    before = sorted(Path().iterdir())
    given = [request.getfixturevalue(FIXTURES[word]) if word in FIXTURES else word for word in command.split()]
    assert words in error_of(*given, code=code)
    assert sorted(Path().iterdir()) == before
    assert Path("taken.csv").read_text() == "dear"


STEPS = ("--steps", 1, "--device", "cpu")


@pytest.fixture
def run(pretrained: Path) -> str:
    shutil.copytree(pretrained, "my runs/it's")
    return "my runs/it's"


def follow(said: str, images: Path, *more: object) -> None:
    """Run each command in `said`, with images in place of the word that stands for them."""
    commands = re.findall(r"(?:: +|with )(selfie [^\n]*)", said)
    assert commands, said
    for command in commands:
        words = shlex.split(command.replace("FOLDER_WITH_A_SUBFOLDER_PER_CLASS", "FOLDER"))
        words = [str(images) if word == "FOLDER" else word for word in words]
        selfie(*words[1:], *more)


def test_what_comes_after_pretraining(run: str, images: Path) -> None:
    done = selfie("pretrain", images, *SMALL, *STEPS, "--out", "of mine/run 1").stdout
    asked = ("predict", run, images / "test")
    for number, said in enumerate((done, error_of("pretrain", "--resume", run), error_of(*asked))):
        follow(said, images, *STEPS, "--batch-size", 8, "--no-report", "--out", number)


def test_a_folder_that_is_taken_and_a_run_that_is_not_finished(run: str, images: Path) -> None:
    again = ("pretrain", images, *SMALL, *STEPS, "--out", run)
    assert "replace it with --overwrite, or choose another --out" in error_of(*again)
    selfie(*again, "--overwrite")
    change(run, progress={"status": "running"})
    assert f", continue it (selfie pretrain --resume {shlex.quote(run)}), or" in error_of(*again)
    for refused in (("embed", images / "test", "--from", run), ("finetune", "--resume", run)):
        said = error_of(*refused)
        assert f"selfie pretrain --resume {shlex.quote(run)}" in said
    follow(said, images)


def test_the_home_folder_is_meant_by_a_tilde(run: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.cwd() / "home"
    shutil.copytree(run, home / "run")
    shutil.copytree(images, home / "images")
    monkeypatch.setenv("HOME", str(home))
    selfie("embed", "~/images/test/cat", "--from=~/run", "--out=~/v.npy")
    assert (home / "v.npy").is_file()
    selfie("eval", "~/run", "--dataset=~/images")
    assert (home / "run/eval-images.json").is_file()
    assert not Path("~").exists()
