"""Compare options that the paper leaves open, on held-out training data of CIFAR-10 (never by pretext accuracy).

    python benchmarks/open_options.py pretrain CIFAR10_TREE WORK_FOLDER
    python benchmarks/open_options.py probe    CIFAR10_TREE WORK_FOLDER >> docs/results/open-options-probe.jsonl

CIFAR10_TREE is a folder with train/<class>/; its test images are never read. The last 500 training images of each
class by name are held out and replace the test images; every variant is pretrained on the other 45,000 images.
`probe` fits a linear probe to 1,000 images per class and evaluates it on the 5,000 held-out images. --only 'NAME;NAME'
selects some of the variants.
"""

import argparse
import json
from pathlib import Path

from selfie_cli.commands.eval import evaluate
from selfie_cli.commands.pretrain import pretrain
from selfie_cli.config import EvalOptions, PretrainOptions
from selfie_cli.runs import open_run, versions
from selfie_cli.talk import Talk

STEPS = 600
# The default comes first. Each other variant differs from it, or from another variant, in one option.
VARIANTS = {
    "dot": dict(logit_scale="dot"),
    "sqrt": dict(logit_scale="sqrt"),
    "cosine": dict(logit_scale="cosine"),
    "sqrt, no final norm": dict(logit_scale="sqrt", final_norm=False),
    "dot, no final norm": dict(logit_scale="dot", final_norm=False),
    "dot, no encoder positions": dict(logit_scale="dot", encoder_positions=False),
    "dot, mask 0.5": dict(logit_scale="dot", mask_ratio=0.5),
    "dot, no flip": dict(logit_scale="dot", flip=False),
}


def development_trees(cifar10: Path, work: Path) -> tuple[Path, Path]:
    """Make two trees of links to training images, with the last 500 images of each class as `test/`. `train/` of the
    first tree has all other images, `train/` of the second the first 1,000 of each class."""
    trees = work / "tree", work / "probe-tree"
    for tree, last in zip(trees, (-500, 1000), strict=True):
        if tree.exists():
            continue
        for folder in sorted((cifar10 / "train").iterdir()):
            files = sorted(folder.iterdir())
            for part, members in (("train", files[:last]), ("test", files[-500:])):
                target = tree / part / folder.name
                target.mkdir(parents=True)
                for file in members:
                    (target / file.name).symlink_to(file.resolve())
    return trees


def pretrain_variant(name: str, tree: Path, folder: Path) -> None:
    if not (folder / "model.safetensors").exists():
        options = PretrainOptions(
            data=(str(tree / "train"),),
            backbone="resnetv2_18_w16",
            steps=STEPS,
            recipe="paper",
            **VARIANTS[name],
            out=str(folder),
            overwrite=True,
        )
        pretrain(options, Talk())


def probe_variant(tree: Path, folder: Path) -> dict[str, object]:
    judged = {
        features: evaluate(EvalOptions(run=str(folder), dataset=str(tree), features=features), Talk())
        for features in ("whole", "patches", "pooled")
    }
    return {
        "pretext_accuracy": judged["whole"].trained.pretext_accuracy,
        "pretext_accuracy_plain": judged["whole"].trained.pretext_accuracy_plain,
        "last_training_pretext_accuracy": open_run(folder).config["measured"]["last"]["pretext_accuracy"],
        "linear_probe": {features: result.trained.linear for features, result in judged.items()},
        "untrained_linear_probe": {features: result.untrained.linear for features, result in judged.items()},
        "knn": {features: result.trained.knn for features, result in judged.items()},
        "untrained_knn": {features: result.untrained.knn for features, result in judged.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pretrain", "probe"))
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default=";".join(VARIANTS))
    arguments = parser.parse_args()
    tree, probe_tree = development_trees(arguments.cifar10, arguments.work)
    for name in arguments.only.split(";"):
        folder = arguments.work / name.replace(",", "").replace(" ", "-")
        if arguments.stage == "pretrain":
            pretrain_variant(name, tree, folder)
            continue
        found = probe_variant(probe_tree, folder)
        print(json.dumps({"variant": name, "steps": STEPS, **found, "versions": versions()}), flush=True)


if __name__ == "__main__":
    main()
