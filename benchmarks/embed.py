"""Compare `selfie embed` with LightlyTrain's embed, on real photos with torchvision's ResNet-50 at 224 px.

    python benchmarks/embed.py PHOTOS [--lightly LIGHTLY_TRAIN]

Whole commands run in turns, on a folder of --images photos and on one of --few. The difference of the two times gives
the steady throughput; the longer time is what a user waits for. Both networks are a ResNet-50 after one training step:
their weights differ, their work does not. Ours cuts the centre square, theirs squeezes the picture into a square. Our
vectors are compared with our own in fp32. Peak memory counts all processes of a command.
"""

import statistics
from pathlib import Path
from typing import Any

import lightly
import measure
import numpy as np
import work

from selfie_cli.inference import networks
from selfie_cli.runs import open_run


def network(a: Any, photos: Path) -> Path:
    """A run with ResNet-50, made on the first call."""
    out = Path(a.work) / f"resnet50-{a.image_size}"
    if not (out / "model.safetensors").exists():
        how = ["--method", "simclr", "--backbone", "resnet50", "--image-size", str(a.image_size), "--steps", "1"]
        measure.selfie("pretrain", photos, *how, "--batch-size", "8", "--out", out, "--overwrite")
    return out


def cosines(ours: Path, exact: Path) -> tuple[float, float]:
    """The smallest and the mean cosine, over rows."""
    a, b = np.load(ours), np.load(exact)
    found = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(found.min()), float(found.mean())


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--lightly", type=Path, help="The command lightly-train.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precisions", default="auto", help="Of ours, each in turn; LightlyTrain's is its default.")
    parser.add_argument("--options", default="", help="More options for selfie embed, in one string.")
    a = parser.parse_args()
    lines = measure.Lines("embed", a.results)
    folders = {n: measure.linked(a.photos, a.work / f"photos-{n}", n) for n in (a.images, a.few)}
    run = network(a, folders[a.few])
    precisions = a.precisions.split(",")
    ends: dict[str, dict[int, list[measure.Finished]]] = {}

    def ours(precision: str, n: int) -> measure.Finished:
        out = a.work / f"vectors-{precision}-{n}.npy"
        how = ["--from", run, "--precision", precision, "--out", out, "--overwrite", *a.options.split()]
        return measure.selfie("embed", folders[n], *how)[0]

    contestants = {precision: lambda n, precision=precision: ours(precision, n) for precision in precisions}
    if a.lightly:
        checkpoint = lightly.checkpoint(a.lightly, a.work, folders[a.few])
        contestants["LightlyTrain"] = lambda n: lightly.embed(a.lightly, a.work, folders[n], checkpoint)

    def seconds(name: str, n: int) -> float:
        finished = contestants[name](n)
        ends.setdefault(name, {}).setdefault(n, []).append(finished)
        return finished.seconds

    turns = {f"{name}, {n} photos": (name, n) for n in (a.images, a.few) for name in contestants}
    measure.turns(a.rounds, {what: lambda name=name, n=n: seconds(name, n) for what, (name, n) in turns.items()})
    ours("fp32", a.images)

    whole = {name: [a.images / each.seconds for each in found[a.images]] for name, found in ends.items()}
    steady = {
        name: [
            (a.images - a.few) / (more.seconds - fewer.seconds)
            for more, fewer in zip(found[a.images], found[a.few], strict=True)
        ]
        for name, found in ends.items()
    }
    memory = {name: statistics.median(each.peak_memory for each in found[a.images]) for name, found in ends.items()}
    loaded = networks.load_network(open_run(str(run)), features=None, device=work.torch.device("cpu"))
    gflop = work.forward_gflop(loaded.vectors, a.image_size)
    limits = {precision: measure.arithmetic_rate("cpu", precision) for precision in ("fp32", "bf16")}
    for name in ends:
        # "auto" takes the faster precision, which is assumed to be bf16.
        bound = "fp32" if name in ("fp32", "LightlyTrain") else "bf16"
        limit = {"limit": limits[bound] / gflop, "bound": f"{bound} arithmetic, {limits[bound]:,.0f} GFLOP/s"}
        more: dict[str, Any] = {"peak_memory_mb": memory[name] / 1e6}
        against_whole, against_steady = {}, {}
        if name != "LightlyTrain":
            exact = a.work / f"vectors-fp32-{a.images}.npy"
            lowest, mean = cosines(a.work / f"vectors-{name}-{a.images}.npy", exact)
            more |= {"lowest_cosine_to_fp32": lowest, "mean_cosine_to_fp32": mean}
            if a.lightly:
                more["memory_of_peer"] = memory[name] / memory["LightlyTrain"]
                against_whole = measure.against("LightlyTrain", whole[name], whole["LightlyTrain"], 2.5)
                against_steady = measure.against("LightlyTrain", steady[name], steady["LightlyTrain"], 3.0)
        shown = name if name == "LightlyTrain" else f"selfie embed --precision {name}"
        times = [each.seconds for each in ends[name][a.images]]
        lines.add(
            f"{shown}: {a.images:,} photos", whole[name], "images/s", seconds=times, **limit, **more, **against_whole
        )
        lines.add(f"{shown}: steady", steady[name], "images/s", **limit, **against_steady)


if __name__ == "__main__":
    main()
