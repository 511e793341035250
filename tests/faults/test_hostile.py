"""Files that somebody else has made, to mislead, to break out, or to take more of the machine than they are worth."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from running import SMALL, draw_folder
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
