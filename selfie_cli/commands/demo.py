"""selfie demo: the whole workflow on generated images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from selfie_cli import runs
from selfie_cli.commands.eval import Evaluated, evaluate
from selfie_cli.commands.finetune import finetune
from selfie_cli.commands.pretrain import pretrain
from selfie_cli.comparison.results import Finetuned
from selfie_cli.config import Backbone, DemoOptions, EvalOptions, FinetuneOptions, PretrainOptions
from selfie_cli.data import synthetic
from selfie_cli.data.layout import is_ours
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import replacing_folder, write_json
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import environment
from selfie_cli.training.hardware import bf16_pays

NUM_TRAIN, NUM_TEST = 8_000, 2_000
# Fixed steps instead of a time budget, so that results are comparable between machines; sized for two laptop cores.
PRETRAIN_STEPS, FINETUNE_STEPS = 300, 1_000
FRACTION = 0.01
BACKBONE: Backbone = "resnetv2_10_w32"
MARK = "demo.json"  # the file by which --overwrite recognizes a demo


@dataclass(frozen=True, kw_only=True)
class Demo:
    folder: Path
    evaluated: Evaluated
    finetuned: Finetuned


def demo(options: DemoOptions, talk: Talk) -> Demo:
    """Draw images, then run the real verbs: pretrain, eval, and finetune with and without pretraining."""
    if environment().world > 1:
        raise UsageError("the demo is for one process: start it without torchrun")
    folder = Path(options.out)
    images, pretraining, finetuning = (folder / name for name in ("images", "pretrain", "finetune"))
    if folder.exists() and any(folder.iterdir()):
        if not options.overwrite:
            raise RunError(f"{folder} is not empty: replace it with --overwrite, or choose another --out")
        if not is_ours(str(folder), [MARK]) or images.is_symlink():
            raise RunError(f"{folder} is not a demo, so --overwrite does not replace it: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    runs.hold(folder)
    write_json(folder / MARK, {"images": NUM_TRAIN + NUM_TEST, "seeds": options.seeds})
    minutes = "4 to 8" if bf16_pays(torch.device("cpu")) else "25"
    talk.say(f"the demo takes about {minutes} minutes on two CPU cores of this kind")
    talk.say(f"1/4 drawing {NUM_TRAIN + NUM_TEST:,} images of {len(synthetic.CLASSES)} classes into {images}")
    draw_tree(images, talk)
    talk.say(f"2/4 selfie pretrain {images} --backbone {BACKBONE} --steps {PRETRAIN_STEPS}")
    asked = PretrainOptions(
        data=(str(images),), backbone=BACKBONE, steps=PRETRAIN_STEPS, out=str(pretraining), overwrite=options.overwrite
    )
    pretrain(asked, talk)
    talk.say(f"3/4 selfie eval {pretraining} --dataset {images}")
    judged = evaluate(EvalOptions(run=str(pretraining), dataset=str(images)), talk)
    talk.say(
        f"4/4 selfie finetune --from {pretraining} --dataset {images} --fraction {FRACTION} --seeds {options.seeds} "
        f"--steps {FINETUNE_STEPS} --no-check-length"
    )
    labelled = FinetuneOptions(
        dataset=str(images),
        from_=str(pretraining),
        fraction=FRACTION,
        seeds=options.seeds,
        steps=FINETUNE_STEPS,
        check_length=False,  # a fifth of 80 labels is too few to tell
        out=str(finetuning),
        overwrite=options.overwrite,
    )
    compared = finetune(labelled, talk)
    return Demo(folder=folder, evaluated=judged, finetuned=compared)


def draw_tree(images: Path, talk: Talk) -> None:
    """Write generated images as PNG files into train/<class>/ and test/<class>/ of `images`."""
    pixels, labels = synthetic.draw(NUM_TRAIN + NUM_TEST, seed=0)
    with talk.track("writing images", len(pixels)) as advance, replacing_folder(images, overwrite=True) as temporary:
        for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            part = "train" if index < NUM_TRAIN else "test"
            folder = temporary / part / synthetic.CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{index:05d}.png")
            if index % 500 == 0:
                advance(index, "")
