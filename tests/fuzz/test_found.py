"""Files found by fuzzing and reading that once ended in other errors than the program's own, or did harm."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import error_of
from safetensors.torch import save_file
from targets import photo, read_shard, read_vectors
from typer.testing import CliRunner

from selfie_cli import runs
from selfie_cli.cli.app import app
from selfie_cli.config import FinetuneOptions
from selfie_cli.data.bad_files import load_bad
from selfie_cli.data.parquet import Parquet
from selfie_cli.errors import RunError, SelfieError, UsageError
from selfie_cli.files import read_json, write_json
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import checksums, load_state, optimizer_tensors, save_state
from selfie_cli.training.metrics import cut_metrics
from selfie_cli.weights import load_weights, save_weights


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """The header of a member of a tar file, with a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0")
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


MINUS = b"\xff" * 10 + b"\xfc\x00"  # -1024: back to this header
GOOD = header("a.png", b"00000001000") + bytes(512)
SHARDS = {
    "a negative size, over which it goes in circles": header("b.png", MINUS),
    "an extension of negative size, which would be all of the file": header("b", MINUS, b"x"),
    "an extension of 8 GB, which would be allocated": header("b", b"77777777777", b"x"),
    "a name of 8 GB": header("b", b"77777777777", b"L"),
    "extensions of extensions, deeper than the stack": header("b", b"00000000000", b"x") * 5000,
    "more bytes than the file has": header("b.png", b"00000007777") + bytes(512),
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


def test_text_in_a_table_of_images() -> None:
    """A path that is no text, and labels that are no positions of classes."""
    paths = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff"))
    cells = pa.StructArray.from_arrays([pa.array([photo()]), paths], ["bytes", "path"])
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
    Path("a.png").write_bytes(photo())
    assert "not finite" in error_of("embed", "a.png", "--from", "run")


def test_lines_of_metrics_that_are_none_are_dropped() -> None:
    good = b'{"step": 1, "loss": 2.0}'
    others = [b"{", b"[]", b"3", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": NaN}', b'{"step": 1, "loss": []}']
    others += [b"\xff", b'{"step": 1, "loss": 1e999}', b"[" * 100_000]
    Path("metrics.jsonl").write_bytes(b"\n".join((*others[:4], good, *others[4:])))
    assert cut_metrics(Path("metrics.jsonl"), 5) == {"loss": 2.0}
    assert Path("metrics.jsonl").read_bytes() == good + b"\n"


@pytest.mark.parametrize("step", [{}, {"step": "x"}])
@pytest.mark.parametrize("name", ["0.momentum_buffer", "x", "9.y", "0.9.z"])
def test_a_state_that_says_no_step_or_belongs_to_nothing(step: dict[str, str], name: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    save_state(Path("state"), 3, module.state_dict(), optimizer_tensors(optimizer))
    state = Path("state/00000003")
    tensors = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    save_file(tensors, state / "weights.safetensors", {"format_version": "1", **step})
    save_file({name: torch.zeros(7)}, state / "optimizer.safetensors", {"format_version": "1"})
    write_json(state / "checksums.json", checksums(state))
    with pytest.raises(RunError, match="no state in state can be read"):
        load_state(Path("state"), module, optimizer, Talk())


def test_numbers_that_no_float_holds() -> None:
    with pytest.raises(UsageError, match="--seeds must be"):
        FinetuneOptions(seeds=10**400)


def test_names_that_are_not_utf8_survive_in_json() -> None:
    write_json(Path("a.json"), {"\udcff": ["b\ud800", "ü"]})
    assert read_json(Path("a.json")) == {"\udcff": ["b\ud800", "ü"]}
    assert "ü" in Path("a.json").read_text("utf-8")


EVIL = "\x1b[2J\x1b]0;x\x07\r\n\u202e"
COMMANDS = """similar --in EVIL --duplicates | similar EVIL --in v.jsonl | similar --duplicates --in v.jsonl
doctor EVIL | push EVIL EVIL | pull EVIL | export EVIL --to onnx | export bundled --to EVIL
report EVIL | embed --from bundled EVIL | predict EVIL x | pretrain EVIL
pretrain x --steps EVIL | finetune --from EVIL --dataset x | --EVIL | EVIL"""


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
