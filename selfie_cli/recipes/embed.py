"""selfie embed: a vector for every readable image, rows in input order."""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfie_cli import runs
from selfie_cli.config import EmbedOptions
from selfie_cli.data.images import open_image
from selfie_cli.data.store import BadFile
from selfie_cli.errors import UnreadableImage, UsageError
from selfie_cli.files import json_line, replacing
from selfie_cli.recipes import networks
from selfie_cli.recipes.inference import Emit, Result, check_out, conclude, expand, line_writer, run_through
from selfie_cli.recipes.networks import Network
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.machine import prepare

SUFFIXES = (".npy", ".jsonl", ".csv", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What `embed` did. `out` is None where rows went to `emit`."""

    out: Path | None
    num_images: int
    features: str
    bad: list[BadFile]


def embed(options: EmbedOptions, *, stdin: Iterable[str], emit: Emit, talk: Talk) -> Embedded:
    """Vectors of all readable images, in input order, to `options.out` or, as they come, to `emit`."""
    out = check_out(options, SUFFIXES)
    names = expand(options.paths, stdin)
    run, line = runs.resolve_from(options.from_)
    if run is None:
        raise UsageError("embed needs trained weights: --from a run's folder, or bundled")
    talk.say(line)
    device, _, _ = prepare(options.device, options.precision)
    network = networks.load_network(run, features=options.features, device=device)
    talk.say(f"vectors: {network.features}, from images resized to {network.image_size} px")
    if run.path == runs.bundled_folder():
        tell_of_size(names, network.image_size, talk)

    with contextlib.nullcontext(emit) if out is None or not group().first else writing(out) as write:
        bad = run_through(names, network, Network.vectors, write, options=options, what="embedding", talk=talk)
    conclude(bad, len(names), out, strict=options.strict, talk=talk)
    return Embedded(out=out, num_images=len(names) - len(bad), features=network.features, bad=bad)


def tell_of_size(names: list[str], image_size: int, talk: Talk) -> None:
    """Warn if the small bundled network is to look at pictures far larger than what it was made for."""
    for name in names:
        with contextlib.suppress(UnreadableImage), open_image(name) as image:
            if min(image.size) > 2 * image_size:
                talk.warn(
                    f"{name} is {image.width} x {image.height}; the bundled network was made for {image_size} px and "
                    "sees a small copy. For photos, pretrain on your own: selfie pretrain FOLDER --image-size 224"
                )
            return


def as_json(result: Result) -> str:
    """One line of JSON Lines; nine digits give every float32 back exactly."""
    name, vector = result
    return json_line({"path": name, "vector": [float(f"{value:.9g}") for value in vector]})


@contextlib.contextmanager
def writing(out: Path) -> Iterator[Emit]:
    """A writer of results for the suffix of `out`, which appears whole, at the end, or not at all.

    .npy and .safetensors hold float32 [N, D] (in the latter as 'vectors'); beside them lies <out>.rows.jsonl, which
    says which image each row is. Rows are written as they come: memory use does not grow with their number.
    """
    if out.suffix in HEADERS:
        with matrix_writer(out, HEADERS[out.suffix]) as write:
            yield write
        return
    with line_writer(out) as file:
        if out.suffix == ".jsonl":
            yield lambda result: file.write(as_json(result) + "\n")
        else:
            table = csv.writer(file)
            width = 0

            def write_row(result: Result) -> None:
                nonlocal width
                if not width:
                    width = len(result[1])
                    table.writerow(["path", *(f"v{i}" for i in range(width))])
                table.writerow([result[0], *(f"{value:.9g}" for value in result[1])])

            yield write_row


@contextlib.contextmanager
def matrix_writer(out: Path, header: Callable[[int, int], bytes]) -> Iterator[Emit]:
    """Vectors behind a header, which is only known at the end and as long whatever it says; names in .rows.jsonl."""
    height = width = 0
    with (
        replacing(out) as temporary,
        line_writer(out.with_name(out.name + ".rows.jsonl")) as names,
        temporary.open("wb") as file,
    ):

        def write(result: Result) -> None:
            nonlocal height, width
            name, vector = result
            if not height:
                width = len(vector)
                file.write(header(0, width))
            file.write(vector.astype("<f4").tobytes())
            names.write(json_line({"row": height, "path": name}) + "\n")
            height += 1

        yield write
        file.seek(0)
        file.write(header(height, width))


def npy_header(height: int, width: int) -> bytes:
    """NumPy pads it, so that there is room for any height."""
    file = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (height, width)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def safetensors_header(height: int, width: int) -> bytes:
    """The length of what follows, then JSON, which may end in spaces: 128 bytes."""
    vectors = {"dtype": "F32", "shape": [height, width], "data_offsets": [0, 4 * height * width]}
    return (120).to_bytes(8, "little") + json.dumps({"vectors": vectors}).ljust(120).encode("ascii")


HEADERS = {".npy": npy_header, ".safetensors": safetensors_header}
