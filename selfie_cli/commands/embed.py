"""selfie embed: a vector for every readable image, rows in input order."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from selfie_cli import runs
from selfie_cli.config import EmbedOptions
from selfie_cli.data.bad_files import BAD_FILES
from selfie_cli.data.parquet import need_pyarrow
from selfie_cli.data.sources import Files, warn_of_size
from selfie_cli.errors import UsageError
from selfie_cli.files import check_room, replacing_folder
from selfie_cli.inference.networks import Network, load_network, provenance
from selfie_cli.inference.outputs import Written, check_out, check_writable, conclude
from selfie_cli.inference.stream import Stream, named_images
from selfie_cli.inference.vector_files import FORMATS, Write, vector_writer
from selfie_cli.option import pick
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import prepare

PART = re.compile(r"part-\d{5,}\.parquet")


def embed(options: EmbedOptions, *, stdin: Iterable[str], emit: Write, talk: Talk) -> Written:
    """Compute vectors of all readable images, in input order. Write them to `options.out`, or pass each to `emit`."""
    if options.compile == "on" and options.precision == "int8":
        raise UsageError("--compile on does not work with --precision int8: leave one of them out")
    out = check_place(options)
    in_parts = out is not None and not out.suffix
    names, left_out = named_images(options.paths, stdin, talk)
    run = runs.weights_for("embed", options.from_, talk=talk)
    network = load_network(run, features=options.features, device=prepare(options.device))
    talk.say(f"vectors: {network.features}, from images resized to {network.image_size} px")
    if run.address == "bundled":
        warn_of_size(Files(names), network.image_size, talk)
    if out is not None:
        check_room(out, len(names) * network.width * FORMATS[out.suffix or ".parquet"])

    how = {"names": names, "network": network, "compute": Network.vectors, "what": "embedding", "in_parts": in_parts}
    with pick(Stream, options, **how, talk=talk) as stream, contextlib.ExitStack() as stack:
        write = emit if group().first else lambda result: None
        if out is not None and (in_parts or group().first):
            made_by = provenance(run, network.features, stream.precision)
            file = stack.enter_context(own_part(out, overwrite=options.overwrite)) if in_parts else out
            write = stack.enter_context(vector_writer(file, width=network.width, network=made_by))
        for result in stream:
            write(result)
    return conclude(stream.bad, len(names), out, left_out=left_out, strict=options.strict, talk=talk)


def check_place(options: EmbedOptions) -> Path | None:
    """Return --out, a file or, without a suffix, a folder. Raise UsageError if it cannot be written."""
    out = None if not options.out else Path(options.out)
    if out is None or out.suffix:
        out = check_out(options.out, tuple(FORMATS), overwrite=options.overwrite, json=options.json)
    else:
        if out.is_file():
            raise UsageError(f"--out {out} is a file: choose a folder, or a name with the suffix of a format")
        there = [file.name for file in out.iterdir()] if out.exists() else []
        others = [name for name in there if name != BAD_FILES and not PART.fullmatch(name)]
        if others:
            raise UsageError(f"--out {out} holds other files ({others[0]}): choose an empty or a new folder")
        if there and not options.overwrite:
            raise UsageError(f"{out} exists: replace it with --overwrite")
        check_writable(out)
    if out is not None and out.suffix in ("", ".parquet"):
        need_pyarrow()
    return out


@contextlib.contextmanager
def own_part(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield this process's file in a temporary folder of all processes, which becomes `out` when all are done."""
    here = group()
    with replacing_folder(out, overwrite=overwrite) if here.first else contextlib.nullcontext() as made:
        folder = here.from_first(made)
        assert folder is not None  # the first process has made it
        yield folder / f"part-{here.rank:05d}.parquet"
        here.wait()
