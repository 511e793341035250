"""Measure how well `selfie similar` finds planted copies at several thresholds, and how long searching takes.

    python benchmarks/similar.py IMAGES --from RUN [--count 20000] [--planted 200] [--thresholds 0.99,0.995,0.998]

Take --count of the images below IMAGES, and copy --planted of these: saved again, halved, brightened, mirrored, cut.
For each threshold and kind, report the share of copies whose cosine to their original reaches the threshold. Per
threshold, report how many images have another image, not a copy, that reaches it. Then time grouping, and 50 queries.
"""

from pathlib import Path

import measure
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageOps

from selfie_cli.inference.neighbours import unit


def copies_of(image: Image.Image) -> dict[str, tuple[Image.Image, int]]:
    """For each kind, a copy of `image` and the JPEG quality to save it with."""
    width, height = image.size
    return {
        "JPEG at quality 50": (image, 50),
        "half the size": (image.resize((width // 2, height // 2), Image.Resampling.BICUBIC), 92),
        "20 % brighter": (ImageEnhance.Brightness(image).enhance(1.2), 92),
        "mirrored": (ImageOps.mirror(image), 92),
        "cut by 5 %": (image.crop((round(width * 0.05), round(height * 0.05), width, height)), 92),
    }


def plant(files: list[Path], count: int, folder: Path) -> list[tuple[Path, int, str]]:
    """Save copies of `count` of `files`. Return the path of each, the index of its original, and its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = []
    for number, index in enumerate(np.random.default_rng(0).choice(len(files), count, replace=False).tolist()):
        with Image.open(files[index]) as opened:
            made = copies_of(opened.convert("RGB"))
        for place, (kind, (copy, quality)) in enumerate(made.items()):
            path = folder / f"{number:04d}-{place}.jpg"
            copy.save(path, quality=quality)
            planted.append((path, index, kind))
    return planted


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--from", dest="run", required=True)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--thresholds", default="0.99,0.995,0.998,0.999")
    parser.set_defaults(results=measure.RESULTS.parent)
    options = parser.parse_args()
    lines = measure.Lines("similar", options.results)
    found = measure.images_below(options.images)
    count = min(options.count, len(found))
    files = [found[number * len(found) // count] for number in range(count)]
    planted = plant(files, options.planted, options.work / "planted")
    names = options.work / "names.txt"
    names.write_text("".join(f"{path}\n" for path in [*files, *(path for path, _, _ in planted)]))
    table = options.work / "similar.parquet"
    shell = '"$@" < "$NAMES"'
    embed = [*measure.SELFIE, "embed", "-", "--from", options.run, "--out", str(table), "--overwrite", "--quiet"]
    measure.run(["sh", "-c", shell, "sh", *embed], PYTHONPATH=str(measure.ROOT), NAMES=str(names))

    vectors = unit(np.stack(pq.read_table(table, columns=["vector"])["vector"].to_numpy()))
    originals, copies = vectors[:count], vectors[count:]
    cosines = (copies * originals[[index for _, index, _ in planted]]).sum(axis=1)
    nearest = np.concatenate(
        [
            np.where(np.arange(count) == start + np.arange(len(part))[:, None], -1, part @ originals.T).max(axis=1)
            for start, part in ((start, originals[start : start + 512]) for start in range(0, count, 512))
        ]
    )
    kinds = np.array([kind for _, _, kind in planted])
    about = {"run": Path(options.run).name, "images": count, "planted": options.planted}
    for threshold in map(float, options.thresholds.split(",")):
        more = about | {"threshold": threshold}
        for kind in dict.fromkeys(kinds.tolist()):
            share = float((cosines[kinds == kind] >= threshold).mean())
            lines.add(f"{about['run']}, {kind}, {threshold:g}", share, "of the copies", kind=kind, **more)
        lines.add(f"{about['run']}, others, {threshold:g}", int((nearest >= threshold).sum()), "images", **more)
    finished, _ = measure.selfie("similar", "--duplicates", "--in", table)
    about |= {"width": vectors.shape[1], "vectors": len(vectors)}
    lines.add(f"{about['run']}, grouping all", finished.seconds, "s", **about)
    queries = [str(file) for file in files[:: -(-count // 50)]]
    finished, _ = measure.selfie("similar", *queries, "--in", table)
    lines.add(f"{about['run']}, queries", finished.seconds, "s", queries=len(queries), **about)


if __name__ == "__main__":
    main()
