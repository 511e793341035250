"""Files made to mislead, to break out or to break us; among them those found by fuzzing."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import error_of
from targets import read_shard, read_vectors
from typer.testing import CliRunner

from selfie_cli import runs
from selfie_cli.cli.app import app
from selfie_cli.data.bad_files import load_bad
from selfie_cli.data.parquet import Parquet
from selfie_cli.errors import SelfieError
from selfie_cli.training.metrics import cut_metrics
from selfie_cli.weights import load_weights, save_weights
from tests.data.pictures import png


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member of a tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


BACK = -1024  # to this header
GOOD = header("a.png", 512) + bytes(512)
SHARDS = {
    "a negative size, over which it goes in circles": header("b.png", BACK),
    "an extension of negative size, which would be all of the file": header("b", BACK, tarfile.XHDTYPE),
    "an extension of 8 GB, which would be allocated": header("b", 2**33 - 1, tarfile.XHDTYPE),
    "a name of 8 GB": header("b", 2**33 - 1, tarfile.GNUTYPE_LONGNAME),
    "extensions of extensions, deeper than the stack": header("b", 0, tarfile.XHDTYPE) * 5000,
    "more bytes than the file has": header("b.png", 4095) + bytes(512),
}
HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9%s, 2)}" % (b"9" * 30)
NPY = (b"\x40\x00{'descr': '<f4', 'shape': (".ljust(66) + bytes(64), b"\x60\x00" + HUGE)
ROWS = (b"[1%s]}" % (b"0" * 400), b"[]}", b'[1], "path": 3}')
BAD = (b"{", b"[]", b'{"path": 1, "reason": "x"}', b'{"path": "x"}', b"[" * 100_000)
REFUSED = [
    *(("s.tar", GOOD + blocks + bytes(1024)) for blocks in SHARDS.values()),
    *(("v.npy", b"\x93NUMPY\x01\x00" + rest) for rest in NPY),
    *(("v.jsonl", b'{"path": "a", "vector": ' + rest) for rest in ROWS),
    *(("bad_files.jsonl", b'{"path": "a", "reason": "b"}\n' + line) for line in BAD),
]
READERS: dict[str, Callable[[Path], object]] = {"bad_files.jsonl": load_bad}
READERS |= {"s.tar": partial(read_shard, rng=Random(0))}
READERS |= {name: partial(read_vectors, rng=Random(0)) for name in ("v.npy", "v.jsonl")}


@pytest.mark.parametrize(("name", "content"), REFUSED)
def test_it_is_refused(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(SelfieError, match=name.replace(".", r"\.")):
        READERS[name](Path(name))


class Bomb:
    """Creates the file `mark` when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("mark"),)


def test_no_pickle_is_loaded_under_the_name_of_a_file_that_is_read() -> None:
    bomb = pickle.dumps(Bomb())
    Path("a.png").write_bytes(png(200))
    for kind in ("model.safetensors", "config.json"):
        run = shutil.copytree(runs.bundled_folder(), Path(f"run-{kind}"))
        (run / kind).write_bytes(bomb)
        error_of("embed", "a.png", "--from", run)
    for kind in ("v.npy", "v.jsonl", "v.parquet"):
        Path(f"{kind}.rows.jsonl").write_text('{"path": "a.png"}\n' * 2)
        Path(kind).write_bytes(bomb)
        error_of("similar", "a.png", "--in", kind, "--from", "bundled")
    np.save("v.npy", np.array([[Bomb()], [Bomb()]], object), allow_pickle=True)
    error_of("similar", "a.png", "--in", "v.npy", "--from", "bundled")
    assert not Path("mark").exists()
    pickle.loads(bomb)
    assert Path("mark").exists()


def test_text_in_a_table_of_images() -> None:
    """A path that is no text, and labels that are no positions of classes."""
    paths = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff"))
    cells = pa.StructArray.from_arrays([pa.array([png(200)]), paths], ["bytes", "path"])
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({"image": cells, "label": ["a"]}).replace_schema_metadata(noted), "t.parquet")
    assert Parquet(["t.parquet"]).open(0).format == "PNG"
    assert Parquet(["t.parquet"]).labels() == ([None], ["a", "b"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_weights_that_give_no_vectors(value: float) -> None:
    shutil.copytree(runs.bundled_folder(), "run")
    tensors, about = load_weights(Path("run/model.safetensors"))
    for tensor in tensors.values():
        if tensor.ndim == 4:
            tensor.fill_(value)
    save_weights(Path("run/model.safetensors"), tensors, about)
    Path("a.png").write_bytes(png(200))
    assert "not finite" in error_of("embed", "a.png", "--from", "run")


def test_lines_of_metrics_that_are_none_or_of_later_steps_are_dropped() -> None:
    good = b'{"step": 1, "loss": 2.0}'
    others = [b"{", b"[]", b"3", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": NaN}', b'{"step": 1, "loss": []}']
    others += [b"\xff", b'{"step": 1, "loss": 1e999}', b"[" * 100_000, b'{"step": 6, "loss": 1.0}', b'{"step": 7, "lo']
    Path("metrics.jsonl").write_bytes(b"\n".join((*others[:4], good, *others[4:])))
    assert cut_metrics(Path("metrics.jsonl"), 5) == {"loss": 2.0}
    assert Path("metrics.jsonl").read_bytes() == good + b"\n"


EVIL = "\x1b[2J\x1b]0;x\x07\r\n\u202e"
COMMANDS = """similar --in EVIL --duplicates | similar --duplicates --in v.jsonl | doctor EVIL | push EVIL EVIL
export bundled --to EVIL | embed --from bundled EVIL | pretrain x --steps EVIL | --EVIL | EVIL"""


@pytest.mark.parametrize("command", COMMANDS.replace("\n", " | ").split(" | "))
def test_terminals_are_not_controlled_by_names(command: str) -> None:
    lines = [json.dumps({"path": f"{EVIL}{row}", "vector": [1.0, row * 1e-9]}) for row in range(2)]
    Path("v.jsonl").write_text("\n".join(lines) + "\n")
    result = CliRunner().invoke(app, [word.replace("EVIL", EVIL) for word in command.split()])
    assert isinstance(result.exception, SystemExit | None)
    said = result.stdout + result.stderr
    assert said
    turned = "\u202e" * (not command.startswith("--"))  # click shows what was typed, but for what controls
    assert not set(said) & set(f"\x1b\x07\r{turned}"), said
