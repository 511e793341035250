"""selfie embed: a vector for every readable image, rows in input order."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfie_cli import runs
from selfie_cli.config import EmbedOptions
from selfie_cli.data.images import open_image
from selfie_cli.data.store import storage_size
from selfie_cli.errors import UnreadableImage, UsageError
from selfie_cli.files import check_room, replacing_folder
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.inference.stream import BAD_FILES, Emit, check_out, check_writable, conclude, expand, run_through
from selfie_cli.inference.vector_files import AT_LEAST, HEADERS, need_arrow, table_writer, writing
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import prepare

PART = re.compile(r"part-\d{5,}\.parquet")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """`--json` prints it. images: rows that were written. out: None where rows went to `emit`."""

    out: Path | None
    images: int
    unreadable: int
    left_out: dict[str, int]


def embed(options: EmbedOptions, *, stdin: Iterable[str], emit: Emit, talk: Talk) -> Embedded:
    """Vectors of all readable images, in input order, to `options.out` or, as they come, to `emit`."""
    out = check_table(options)
    in_parts = out is not None and not out.suffix
    names, left_out = expand(options.paths, stdin, talk)
    run, line = runs.resolve_from(options.from_, talk=talk)
    if run is None:
        raise UsageError("embed needs trained weights: --from a run's folder, or bundled")
    talk.say(line)
    device = prepare(options.device)
    made_by = networks.provenance(run, networks.choose_features(run.derived, options.features))
    network = networks.load_network(run, features=options.features, device=device)
    talk.say(f"vectors: {network.features}, from images resized to {network.image_size} px")
    if run.address == "bundled":
        tell_of_size(names, network.image_size, talk)
    width = width_of(network)
    if out is not None:
        check_room(out, len(names) * width * AT_LEAST[out.suffix or ".parquet"])

    @contextlib.contextmanager
    def opened(precision: str) -> Iterator[Emit]:
        about = {"network": made_by | {"precision": precision}}
        if out is None:
            yield emit
        elif in_parts:
            with parts_folder(out, overwrite=options.overwrite) as folder:
                with table_writer(folder / f"part-{group().rank:05d}.parquet", width=width, about=about) as write:
                    yield write
                group().wait()
        else:
            with table_writer(out, width=width, about=about) if out.suffix == ".parquet" else writing(out) as write:
                yield write

    bad = run_through(
        names, network, Network.vectors, opened, options=options, what="embedding", talk=talk, in_parts=in_parts
    )
    conclude(bad, len(names), out, left_out=left_out, strict=options.strict, talk=talk)
    return Embedded(out=out, images=len(names) - len(bad), unreadable=len(bad), left_out=left_out.counts)


def check_table(options: EmbedOptions) -> Path | None:
    """--out, tried before the work begins: a file, or a folder if the name has no suffix. Raises UsageError."""
    out = None if not options.out else Path(options.out)
    if out is None or out.suffix:
        out = check_out(options, tuple(AT_LEAST))
        rows = None if out is None or out.suffix not in HEADERS else Path(f"{out}.rows.jsonl")
        if rows is not None and rows.exists() and not options.overwrite:
            raise UsageError(f"{rows} exists: replace it with --overwrite")
    else:
        there = [file.name for file in out.iterdir()] if out.is_dir() else [out.name] if out.exists() else []
        others = [name for name in there if name != BAD_FILES and not PART.fullmatch(name)]
        if others:
            raise UsageError(f"--out {out} holds other things ({others[0]}): name an empty or a new folder")
        if there and not options.overwrite:
            raise UsageError(f"{out} exists: replace it with --overwrite")
        check_writable(out, out.parent)
    if out is not None and out.suffix in ("", ".parquet"):
        need_arrow()
    return out


@contextlib.contextmanager
def parts_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder for all processes, which becomes `out` at the end."""
    here = group()
    with replacing_folder(out, overwrite=overwrite) if here.first else contextlib.nullcontext() as made:
        folder = here.from_first(made)
        assert folder is not None  # the first process has made it
        yield folder


def width_of(network: Network) -> int:
    """D of the network's vectors."""
    side = storage_size(network.image_size)
    return network.vectors(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=network.device)).shape[1]


def tell_of_size(names: Sequence[str], image_size: int, talk: Talk) -> None:
    """Warn if the small bundled network is to look at pictures far larger than what it was made for."""
    for name in names:
        with contextlib.suppress(UnreadableImage), open_image(name) as image:
            if min(image.size) > 2 * image_size:
                talk.warn(
                    f"{name} is {image.width} x {image.height}; the bundled network was made for {image_size} px and "
                    "sees a small copy. For photos, pretrain on your own: selfie pretrain FOLDER --image-size 224"
                )
            return
