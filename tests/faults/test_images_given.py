"""Broken and strange images, and files that go away while they are read."""

import itertools
import os
import subprocess
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from processes import Process, lines_of
from running import COMMAND, ENVIRONMENT

from selfie_cli.data import synthetic
from tests.data.corpus import corpus, saved

EMBED = ("--batch-size", 8, "--precision", "fp32", "--workers", 2)


def bad_in(out: Path) -> dict[str, str]:
    """The unreadable files listed in a run's folder, or beside a file, with reasons."""
    listed = out / "bad_files.jsonl" if out.is_dir() else out.with_name(f"{out.name}.bad_files.jsonl")
    bad = {line["path"]: line["reason"] for line in lines_of(listed)}
    assert all(bad.values()), "a file is bad without a reason"
    return bad


def peak(*arguments: object) -> float:
    """Peak memory of a command, in MB."""
    argv = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        _, status, usage = os.wait4(command.pid, 0)
        command.returncode = os.waitstatus_to_exitcode(status)
    assert command.returncode == 0
    return usage.ru_maxrss / 1000


@pytest.mark.fault("decompression bombs")
def test_bombs(tmp_path: Path, chance: Random) -> None:
    """Compare the peak memory of embed on a picture, and on the same picture among bombs."""
    images, out = tmp_path / "images", tmp_path / "all.npy"
    images.mkdir()
    (images / "picture.png").write_bytes(corpus()[0].data)
    alone = peak("embed", images, "--out", tmp_path / "alone.npy")
    for entry in corpus():
        if entry.kind == "bomb":
            (images / entry.name).write_bytes(entry.data)
    assert peak("embed", images, "--out", out) - alone < 100
    assert len(bad_in(out)) + len(np.load(out)) == len([*images.iterdir()])


def photos() -> list[bytes]:
    """Real photos where they are, else drawn ones."""
    archive = Path(os.environ.get("SELFIE_TEST_DATA", "")) / "clothing256.tar"
    if not archive.is_file():
        return [saved(np.asarray(each), "PNG") for each in synthetic.draw(200, seed=3, size=64)[0]]
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:200]
        return [file.read() for member in members if (file := tar.extractfile(member))]


def spoil(file: Path, chance: Random) -> None:
    match chance.randrange(5):
        case 0:
            file.unlink()
        case 1:
            os.truncate(file, chance.randrange(file.stat().st_size // 2))
        case 2:
            other = file.with_suffix(".new")
            other.write_bytes(b"no image")
            other.replace(file)
        case 3:
            file.unlink()
            os.mkfifo(file)
        case 4:
            file.write_bytes(chance.randbytes(3000))


@pytest.mark.fault("images vanish and change while embed reads them", times=20)
def test_vanishing_from_embed(tmp_path: Path, chance: Random) -> None:
    folder, out = tmp_path / "images", tmp_path / "vectors.jsonl"
    folder.mkdir()
    files = dict(zip((folder / f"{number:04d}.jpg" for number in range(1000)), itertools.cycle(photos())))
    for file, photo in files.items():
        file.write_bytes(photo)
    spoiled = {*chance.sample([*files], 150)}
    with Process("embed", folder, *EMBED, "--out", out, log=tmp_path / "log") as embed:
        embed.until(lambda: any(tmp_path.glob(".*vectors.jsonl*")) or out.exists())
        for file in spoiled:
            spoil(file, chance)
        assert embed.end() == 0
    bad, rows = bad_in(out), {row["path"]: row["vector"] for row in lines_of(out)}
    assert [*rows] == [str(file) for file in files if str(file) not in bad]
    assert bad.keys() <= {*map(str, spoiled)}
    first: dict[bytes, list[float]] = {}
    for file in files.keys() - spoiled:
        assert np.allclose(rows[str(file)], first.setdefault(files[file], rows[str(file)]), atol=1e-4)
