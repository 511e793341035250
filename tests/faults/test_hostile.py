"""Files that somebody else has made, to mislead, to break out, or to take more of the machine than they are worth."""

import io
import json
import pickle
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from running import SMALL, bounded_memory, draw_folder
from typer.testing import CliRunner, Result

from selfie_cli.cli.app import app
from selfie_cli.runs import bundled_folder

REFUSED = "refused in one line"
ON_CPU = ("--device", "cpu")
TRAINING = (*SMALL, "--steps", 1, *ON_CPU, "--workers", 1, "--max-bad", 0.5)
Say = Callable[[str], None]


def run(*words: object) -> Result:
    """Run a command in this process, which may only end by an error of the program's own."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, SystemExit | None), f"{words[0]} ended by {result.exception!r}"
    return result


def succeeded(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, f"{words[0]} failed: {result.stderr}"
    return result


def refused(*words: object) -> Result:
    """Run a command that must fail, and say why in its last line."""
    result = run(*words)
    assert result.exit_code in (1, 2), f"{words[0]} ended with {result.exit_code}"
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: ")
    return result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("drawn") / "images", train=20, test=10)


@pytest.fixture
def photo(drawn: Path) -> Path:
    return min((drawn / "test").rglob("*.png"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the bundled run."""
    return shutil.copytree(bundled_folder(), tmp_path / "run")


def embed(photo: Path, run: Path) -> tuple[object, ...]:
    return ("embed", photo, "--from", run, *ON_CPU)


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.fault("weights or configs of absurd sizes", times=40)
def test_sizes(copy: Path, photo: Path, chance: Random, happened: Say) -> None:
    """Tensors, headers and networks that no machine holds."""
    config, weights = json.loads((copy / "config.json").read_text()), copy / "model.safetensors"
    data = weights.read_bytes()
    header, tensors = parted(data)
    name = next(each for each in header if each != "__metadata__")
    match chance.randrange(6):
        case 0:
            weights.write_bytes((2 ** chance.choice((31, 40, 62))).to_bytes(8, "little") + data[8:])
        case 1:
            weights.write_bytes((90_000_000).to_bytes(8, "little") + b"{" * 1000)
        case 2:
            header[name]["shape"] = [2**20, 2**20]
            weights.write_bytes(with_header(header, tensors))
        case 3:
            header[name]["data_offsets"] = [0, 2**50]
            weights.write_bytes(with_header(header, tensors))
        case 4:
            large = {"image_size": 10**6, "classes": ["x"] * 200_000, "batch_size": 2**40, "patch_size": 10**7}
            field = chance.choice(list(large))
            config["derived"][field] = large[field]
            (copy / "config.json").write_text(json.dumps(config))
        case 5:
            (copy / "config.json").write_text("[" * 3_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded_memory():
        refused(*embed(photo, copy))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "memory was taken before"
    happened(f"{REFUSED}, before memory was taken")


@pytest.mark.fault("a shard with names that lead out, links and devices", times=10)
def test_shard(tmp_path: Path, photo: Path, chance: Random, happened: Say) -> None:
    inside = tmp_path / "a/b"
    inside.mkdir(parents=True)
    secret = Path(shutil.copy(photo, tmp_path / "secret.png"))
    names = [f"{number:02}.png" for number in range(12)]
    names += ["../up.png", "../../secret.png", f"{tmp_path}/absolute.png", "a/../../b.png"]
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    members: list[tuple[str, bytes]] = [(name, tarfile.REGTYPE) for name in names]
    members += [(f"link{number}.png", kind) for number, kind in enumerate(kinds)]
    chance.shuffle(members)
    with tarfile.open(inside / "s.tar", "w", format=chance.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for name, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            member.size = photo.stat().st_size * (kind == tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(photo.read_bytes()))
    before = {*tmp_path.rglob("*")}
    # Folders in names look like classes, too small for finetune: doctor says so, and exits 1.
    document = json.loads(run("doctor", inside / "s.tar", "--no-time", "--json").stdout)
    succeeded("pretrain", inside / "s.tar", *TRAINING, "--out", inside / "run")
    assert sum(document["images"].values()) == len(names)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside / "run")} == before
    happened("nothing written, links passed over, images read in place")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.fault("pickles under names of files that are read", times=40)
def test_pickles(tmp_path: Path, copy: Path, photo: Path, chance: Random, happened: Say) -> None:
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    kind = chance.choice(("model.safetensors", "config.json", "v.npy", "v.jsonl", "v.parquet"))
    vectors = tmp_path / kind
    if kind.startswith("v."):
        vectors.with_name(f"{kind}.rows.jsonl").write_text('{"path": "a.png"}\n' * 2)
        vectors.write_bytes(bomb)
        if kind == "v.npy":
            np.save(vectors, np.array([[Bomb(mark)], [Bomb(mark)]], object), allow_pickle=True)
        refused("similar", photo, "--in", vectors, "--from", "bundled", *ON_CPU)
    else:
        (copy / kind).write_bytes(bomb)
        refused(*embed(photo, copy))
    assert not mark.exists(), f"a pickle in {kind} was run"
    pickle.loads(bomb)
    assert mark.exists()
    happened(REFUSED)
