"""What the paper leaves open, settled on held-out training data of CIFAR-10 (never by pretext accuracy).

    python benchmarks/open_options.py CIFAR10_TREE WORK_FOLDER [--only NAME,NAME] > docs/results/open-options.jsonl

CIFAR10_TREE is a folder with train/<class>/; its test part is not looked at. Of each class the last 500 training images
by name are held out, and stand in for a test part. Every variant differs from the default in one option. It is
pretrained on the other images, then judged by linear probe and by finetuning with 5 % of their labels. A variant that is
finished in WORK_FOLDER is not run again. One JSON line a variant.
"""

import argparse
import json
from pathlib import Path

from selfie_cli.config import EvalOptions, FinetuneOptions, PretrainOptions, SelfieOptions
from selfie_cli.runs import open_run
from selfie_cli.talk import Talk

STEPS = 600
FINETUNE_STEPS = 200
VARIANTS: dict[str, tuple[SelfieOptions, float]] = {
    "default": (SelfieOptions(), 0.1),
    "no encoder positions": (SelfieOptions(encoder_positions=False), 0.1),
    "no final norm": (SelfieOptions(final_norm=False), 0.1),
    "dot": (SelfieOptions(logit_scale="dot"), 0.1),
    "cosine": (SelfieOptions(logit_scale="cosine"), 0.1),
    "mask 0.1875": (SelfieOptions(mask_ratio=0.1875), 0.1),
    "mask 0.5": (SelfieOptions(mask_ratio=0.5), 0.1),
    "no flip": (SelfieOptions(flip=False), 0.1),
    "lr 0.2": (SelfieOptions(), 0.2),
}


def development_tree(cifar10: Path, work: Path) -> Path:
    """Links to the training images: `test/` holds the last 500 of each class, `train/` the rest."""
    tree = work / "tree"
    if tree.exists():
        return tree
    for folder in sorted((cifar10 / "train").iterdir()):
        files = sorted(folder.iterdir())
        for part, members in (("train", files[:-500]), ("test", files[-500:])):
            target = tree / part / folder.name
            target.mkdir(parents=True)
            for file in members:
                (target / file.name).symlink_to(file.resolve())
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", help="names of variants, separated by commas")
    parser.add_argument("--pretrain-only", action="store_true")
    arguments = parser.parse_args()
    tree = development_tree(arguments.cifar10, arguments.work)
    from selfie_cli.recipes.pretrain import pretrain

    for name in arguments.only.split(",") if arguments.only else VARIANTS:
        selfie, lr = VARIANTS[name]
        folder = arguments.work / name.replace(" ", "-")
        if not (folder / "model.safetensors").exists():
            pretrain(
                PretrainOptions(
                    data=(str(tree / "train"),), backbone="resnetv2_18_w16", steps=STEPS, lr=lr, selfie=selfie,
                    out=str(folder), overwrite=True,
                ),
                Talk(),
            )
        if arguments.pretrain_only:
            continue
        from selfie_cli.recipes.eval import evaluate
        from selfie_cli.recipes.finetune import finetune

        run = open_run(folder)
        probes = {
            features: evaluate(EvalOptions(run=str(folder), dataset=str(tree), features=features), Talk())
            for features in ("whole", "patches", "pooled")
        }
        tuned = finetune(
            FinetuneOptions(
                dataset=str(tree), fraction=0.05, from_=str(folder), seeds=2, steps=FINETUNE_STEPS,
                baseline=name == "default", out=str(folder / "finetune"), overwrite=True,
            ),
            Talk(),
        )
        line = {
            "variant": name,
            "steps": STEPS,
            "pretext_accuracy": run.config["measured"]["last"]["pretext_accuracy"],
            "linear_probe": {features: result.trained.linear for features, result in probes.items()},
            "untrained_linear_probe": {features: result.untrained.linear for features, result in probes.items()},
            "knn": {features: result.trained.knn for features, result in probes.items()},
            "finetuned": {arm.name: arm.accuracies for arm in tuned.arms},
            "finetune_steps": FINETUNE_STEPS,
            "versions": run.config["versions"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
