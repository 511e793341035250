"""What fuzzing and reading have found, one by one: files that were no error of the program's own, or did harm."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import error_of, selfie
from safetensors.torch import save_file
from targets import photo
from typer.testing import CliRunner

from selfie_cli import runs
from selfie_cli.cli.app import app
from selfie_cli.comparison.trainer import known_accuracy
from selfie_cli.config import FinetuneOptions
from selfie_cli.data.parquet import Parquet
from selfie_cli.data.shards import Shards
from selfie_cli.data.store import load_bad
from selfie_cli.errors import DataError, RunError, UnreadableImage, UsageError
from selfie_cli.files import read_json, write_json
from selfie_cli.inference.vector_files import open_vectors
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import checksums, load_state, save_state
from selfie_cli.training.metrics import cut_metrics
from selfie_cli.weights import load_weights, save_weights


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar file that says so."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0")
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


MINUS = b"\xff" * 10 + b"\xfc\x00"  # -1024: back to this header
GOOD = header("a.png", b"00000001000") + bytes(512)


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(header("b.png", MINUS), id="a negative size, over which it goes in circles"),
        pytest.param(header("b", MINUS, b"x"), id="an extension of negative size, which would be all of the file"),
        pytest.param(header("b", b"77777777777", b"x"), id="an extension of 8 GB, which would be allocated"),
        pytest.param(header("b", b"77777777777", b"L"), id="a name of 8 GB"),
        pytest.param(header("b", b"00000000000", b"x") * 5000, id="extensions of extensions, deeper than the stack"),
        pytest.param(header("b.png", b"00000007777") + bytes(512), id="more bytes than the file has"),
    ],
)
def test_shards_that_lie_about_sizes(blocks: bytes) -> None:
    Path("s.tar").write_bytes(GOOD + blocks + bytes(1024))
    with pytest.raises(DataError, match=r"cannot read s\.tar"):
        Shards(["s.tar"])


def test_a_shard_reads_and_writes_nothing_but_itself() -> None:
    Path("secret.png").write_bytes(photo())
    with tarfile.open("s.tar", "w") as tar:
        for name in ("../up.png", f"{Path.cwd()}/absolute.png", "in.png"):
            member = tarfile.TarInfo(name)
            member.size = len(photo())
            tar.addfile(member, io.BytesIO(photo()))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "secret.png"
            tar.addfile(member)
    source = Shards(["s.tar"])
    assert len(source) == 3  # names are shown, and lead nowhere
    assert source.read(0, 3) == [photo()] * 3
    assert sorted(path.name for path in Path().iterdir()) == ["s.tar", "secret.png"]
    assert not Path("../up.png").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.jsonl", b'{"path": "a", "vector": [1%s]}' % (b"0" * 400)),
        ("v.jsonl", b'{"path": "a", "vector": []}'),
        ("v.jsonl", b'{"path": 3, "vector": [1]}'),
        ("v.npy", b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'shape': (".ljust(74) + bytes(64)),
        (
            "v.npy",
            b"\x93NUMPY\x01\x00\x60\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9%s, 2)}" % (b"9" * 30),
        ),
    ],
)
def test_vectors_that_are_none(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match="holds no vectors that can be read"):
        list(open_vectors(name).pieces())


def test_a_path_in_a_table_of_images_that_is_no_text() -> None:
    paths = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff"))
    cells = pa.StructArray.from_arrays([pa.array([photo()]), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": cells}), "t.parquet")
    with pytest.raises(UnreadableImage, match=r"t\.parquet is damaged: 'utf-8' codec"):
        Parquet(["t.parquet"]).open(0)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (1e38, "too large")],
)
def test_weights_that_give_no_vectors(value: float, words: str) -> None:
    shutil.copytree(runs.bundled_folder(), "run")
    tensors, about = load_weights(Path("run/model.safetensors"))
    for tensor in tensors.values():
        if tensor.ndim == 4:
            tensor.fill_(value)
    save_weights(Path("run/model.safetensors"), tensors, about)
    Path("a.png").write_bytes(photo())
    assert words in error_of("embed", "a.png", "--from", "run")


def test_labels_that_are_no_positions_of_classes() -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = pa.table({"image": [photo()] * 2, "label": ["0", "a"]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), "t.parquet"
    )
    assert Parquet(["t.parquet"]).labels() == ([None, None], ["a", "b"])


@pytest.mark.parametrize("line", ["{", "[]", '{"path": 1, "reason": "x"}', '{"path": "x"}', "[" * 100_000])
def test_a_damaged_list_of_bad_files(line: str) -> None:
    Path("bad_files.jsonl").write_text('{"path": "a", "reason": "b"}\n' + line)
    with pytest.raises(DataError, match=r"is damaged.*remove it"):
        load_bad(Path("bad_files.jsonl"))


def test_lines_of_metrics_that_are_none_are_dropped() -> None:
    good = b'{"step": 1, "loss": 2.0}'
    others = (
        b"{",
        b"[]",
        b"3",
        b"{}",
        b'{"step": "1"}',
        b'{"step": 1, "loss": NaN}',
        b'{"step": 1, "loss": []}',
        b"\xff",
    )
    Path("metrics.jsonl").write_bytes(b"\n".join((*others, good, b'{"step": 1, "loss": 1e999}', b"[" * 100_000)))
    assert cut_metrics(Path("metrics.jsonl"), 5) == {"loss": 2.0}
    assert Path("metrics.jsonl").read_bytes() == good + b"\n"


@pytest.mark.parametrize("header", [{}, {"step": "x"}])
@pytest.mark.parametrize("name", ["0.momentum_buffer", "x", "9.y", "0.9.z"])
def test_a_state_that_says_no_step_or_belongs_to_nothing(header: dict[str, str], name: str) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    save_state(Path("state"), 3, module, optimizer)
    tensors = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    save_file(tensors, "state/00000003/weights.safetensors", {"format_version": "1", **header})
    save_file({name: torch.zeros(7)}, "state/00000003/optimizer.safetensors", {"format_version": "1"})
    write_json(Path("state/00000003/checksums.json"), checksums(Path("state/00000003")))
    with pytest.raises(RunError, match="no state in state can be read"):
        load_state(Path("state"), module, optimizer, Talk())


@pytest.mark.parametrize("content", ['{"accuracy": 0.', "[]", "{}", '{"accuracy": "x"}', '{"accuracy": NaN}'])
def test_a_cell_whose_result_is_cut(content: str) -> None:
    Path("results.json").write_text(content)
    with pytest.raises(RunError, match=r"results\.json is damaged"):
        known_accuracy(Path("results.json"))


def test_numbers_that_no_float_holds() -> None:
    with pytest.raises(UsageError, match="--seeds 1000"):
        FinetuneOptions(seeds=10**400)


def test_names_that_are_not_utf8_survive_in_json() -> None:
    write_json(Path("a.json"), {"\udcff": ["b\ud800", "ü"]})
    assert read_json(Path("a.json")) == {"\udcff": ["b\ud800", "ü"]}
    assert "ü" in Path("a.json").read_text("utf-8")


EVIL = "\x1b[2J\x1b]0;x\x07\r\n\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        ("similar", "--in", EVIL, "--duplicates"),
        ("similar", EVIL, "--in", "v.jsonl"),
        ("similar", "--duplicates", "--in", "v.jsonl"),
        ("doctor", EVIL),
        ("push", EVIL, EVIL),
        ("pull", EVIL),
        ("export", EVIL, "--to", "onnx"),
        ("export", "bundled", "--to", EVIL),
        ("report", EVIL),
        ("embed", "--from", "bundled", EVIL),
        ("predict", EVIL, "x"),
        ("pretrain", EVIL),
        ("pretrain", "x", "--steps", EVIL),
        ("finetune", "--from", EVIL, "--dataset", "x"),
        (f"--{EVIL}",),
        (EVIL,),
    ],
)
def test_terminals_are_not_controlled_by_names(arguments: tuple[str, ...]) -> None:
    lines = [json.dumps({"path": f"{EVIL}{row}", "vector": [1.0, row * 1e-9]}) for row in range(2)]
    Path("v.jsonl").write_text("\n".join(lines) + "\n")
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, SystemExit | None)
    said = result.stdout + result.stderr
    assert said
    turned = "\u202e" * (not arguments[0].startswith("--"))  # click shows what was typed, but for what controls
    assert not set(said) & set(f"\x1b\x07\r{turned}"), said


def test_what_is_wrong_with_a_file_is_told_in_words(tmp_path: Path) -> None:
    Path("bad\x1b[2J.png").write_bytes(b"no image")
    result = selfie("doctor", ".", code=1)
    assert "\x1b" not in result.stdout + result.stderr
    assert "\\x1b[2J" in error_of("embed", "bad\x1b[2J.png", "--from", "bundled")
