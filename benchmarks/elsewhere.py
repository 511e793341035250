"""Compare exported networks with `selfie embed`, and the effect of other preprocessing on their features.

    python benchmarks/elsewhere.py PHOTOS --runs RUN... [--count 100]

For each run and each export target that fits it, execute the code that `selfie export` prints, on evenly chosen photos
below PHOTOS. Report the largest deviation over the largest number, and the lowest cosine. If timm or torchvision has
the network, do the same with the transforms that their users would write.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from selfie_cli.data.augment import MEAN, OURS, STD

Vectors = NDArray[np.float32]
Transform = Callable[[Image.Image], torch.Tensor]


def deviation(found: Vectors, exact: Vectors) -> dict[str, float]:
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    largest = float(np.abs(found - exact).max() / np.abs(exact).max())
    return {"value": largest, "lowest_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


def transforms(size: int) -> dict[str, Transform]:
    """Transforms that users of timm and torchvision would write."""
    import timm
    from torchvision.transforms import InterpolationMode, v2

    stored = OURS.storage_size(size)
    rest = [v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return {
        "torchvision, bicubic": v2.Compose([v2.Resize(stored, interpolation=InterpolationMode.BICUBIC), *rest]),
        "torchvision, bilinear": v2.Compose([v2.Resize(stored), *rest]),
        "timm, bicubic": timm.data.create_transform(
            (3, size, size), crop_pct=size / stored, interpolation="bicubic", mean=MEAN, std=STD
        ),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.set_defaults(results=measure.RESULTS.parent)
    options = parser.parse_args()
    lines = measure.Lines("elsewhere", options.results)
    found = measure.images_below(options.photos)
    photos = [str(found[number * len(found) // options.count]) for number in range(options.count)]
    options.work.mkdir(parents=True, exist_ok=True)
    for run in options.runs:
        finished = measure.run(
            [*measure.SELFIE, "embed", *photos, "--from", run, "--precision", "fp32", "--quiet"],
            PYTHONPATH=str(measure.ROOT),
        )
        exact = np.array([json.loads(line)["vector"] for line in finished.stdout.splitlines()], np.float32)
        derived = json.loads((run / "config.json").read_text())["derived"]
        about = {"run": run.name, "method": derived["method"], "backbone": derived["backbone"]}
        about |= {"image_size": derived["image_size"], "photos": len(photos)}
        for to in ("timm", "torchvision", "onnx", "safetensors"):
            out = options.work / f"{run.name}-{to}{'.onnx' if to == 'onnx' else '.safetensors'}"
            try:
                _, document = measure.selfie("export", run, "--to", to, "--out", out, "--overwrite")
            except RuntimeError as error:
                print(error)  # why the target does not fit
                continue
            names: dict[str, Any] = {}
            exec(document["code"], names)  # the code printed for the user to paste
            features = names["features"]
            vectors = np.concatenate([np.asarray(features(names["preprocess"](photo))) for photo in photos])
            lines.add(
                f"{run.name}, {to}", unit="relative", **deviation(vectors, exact), **about, preprocessing="printed"
            )
            if to in ("timm", "torchvision"):
                for name, transform in transforms(derived["image_size"]).items():
                    images = [transform(Image.open(photo).convert("RGB"))[None] for photo in photos]
                    vectors = np.concatenate([np.asarray(features(image)) for image in images])
                    more = deviation(vectors, exact)
                    lines.add(f"{run.name}, {to}", unit="relative", **more, **about, preprocessing=name)


if __name__ == "__main__":
    main()
