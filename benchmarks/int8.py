"""Compare int8 with bf16 on a CPU with VNNI: images per second, cosine to fp32, kNN accuracy.

    python benchmarks/int8.py LABELLED_PHOTOS [--run RUN --dataset FOLDER]

Throughput is measured on randomly initialized networks at 224 px, in one thread, on batches of eight in memory. kNN
accuracy is measured with these networks on the labelled photos, and with --run (default: the bundled network) on
--dataset. Both data sets are folders with train/ and test/, each with a subfolder per class.
"""

from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from torch import Tensor

from selfie_cli import runs
from selfie_cli.data.augment import OURS
from selfie_cli.data.labelled import open_labelled
from selfie_cli.data.pixels import read_pixels
from selfie_cli.data.sources import Subset
from selfie_cli.evaluation.knn import knn_predict
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import CALIBRATION
from selfie_cli.models.classifier import Encoder
from selfie_cli.talk import Talk

BATCH = 8
Part = tuple[Tensor, Tensor]


def parts(folder: Path, image_size: int, most: int) -> tuple[list[Part], int]:
    """Pixels and labels of at most `most` training and `most` test images, and the number of classes."""
    data = open_labelled(str(folder), data_root=Path("data"), offline=True, talk=Talk())
    found = []
    for part in (data.train, data.test):
        some = np.random.default_rng(0).permutation(len(part.source))[:most]
        source = Subset(part.source, some)
        store = read_pixels(source, size=OURS.storage_size(image_size), workers=2, max_bad=0, talk=Talk())
        found.append((store.pixels, torch.from_numpy(part.labels[some])))
    return found, len(data.train.classes)


def in_three(network: Network, sample: Tensor) -> dict[str, Network]:
    return {
        "fp32": network.lean(torch.float32),
        "bf16": network.lean(torch.bfloat16),
        "int8": network.in_int8(sample),
    }


def rate(lean: Network, pixels: Tensor) -> float:
    return BATCH * measure.calls_a_second(lambda: lean.vectors(pixels[:BATCH]))


def judged(lean: Network, exact: dict[str, Tensor], split: list[Part], num_classes: int) -> dict[str, Any]:
    """Cosines of the test images' vectors to the `exact` ones, which the first call stores, and kNN accuracy."""
    (train, labels), (test, truth) = split
    before, after = (torch.cat([lean.vectors(batch) for batch in pixels.split(BATCH * 4)]) for pixels in (train, test))
    cosines = torch.nn.functional.cosine_similarity(after, exact.setdefault("vectors", after))
    votes = knn_predict(before, labels, after, num_classes=num_classes, k=20, temperature=0.07)
    return {
        "lowest_cosine_to_fp32": cosines.min().item(),
        "mean_cosine_to_fp32": cosines.mean().item(),
        "knn_accuracy": topk_accuracy(votes, truth),
        "train_images": len(train),
        "test_images": len(test),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--run", default="bundled")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--backbones", default="resnet50,resnetv2_50,resnet18,resnetv2_18")
    parser.add_argument("--images", type=int, default=300, help="Of the photos, to vote and to be judged, each.")
    a = parser.parse_args()
    lines = measure.Lines("int8", a.results)
    torch.set_num_threads(1)
    photos, num_classes = parts(a.photos, 224, a.images)
    sample = photos[0][0][:CALIBRATION]
    for backbone in a.backbones.split(","):
        torch.manual_seed(0)
        three = in_three(Network(Encoder(backbone, stem="7x7").eval(), 224, "whole"), sample)
        rates = measure.turns(
            a.rounds, {f"{backbone}, {name}": partial(rate, lean, photos[1][0]) for name, lean in three.items()}
        )
        exact: dict[str, Tensor] = {}
        for name, lean in three.items():
            ratio = measure.against("bf16", rates[f"{backbone}, {name}"], rates[f"{backbone}, bf16"], 1.5)
            found = judged(lean, exact, photos, num_classes)
            lines.add(
                f"{backbone} as drawn, 224 px, {name}",
                rates[f"{backbone}, {name}"],
                "images/s",
                **(ratio if name == "int8" else {}),
                **found,
            )
    if a.dataset:
        network = networks.load_network(runs.open_run(a.run), features=None, device=torch.device("cpu"))
        split, num_classes = parts(a.dataset, network.image_size, 10 * a.images)
        exact = {}
        for name, lean in in_three(network, split[0][0][:CALIBRATION]).items():
            found = judged(lean, exact, split, num_classes)
            lines.add(f"{a.run} on {a.dataset.name}, {name}", found["knn_accuracy"], "kNN accuracy", **found)


if __name__ == "__main__":
    main()
