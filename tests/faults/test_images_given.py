"""Files that go away or change while they are read."""

import itertools
import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
from processes import Process, lines_of

from selfie_cli.data import synthetic
from tests.data.corpus import saved

EMBED = ("--batch-size", 8, "--precision", "fp32", "--workers", 2)


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
    photos = [saved(picture, "JPEG") for picture in synthetic.draw(200, seed=3, size=64)[0]]
    files = dict(zip((folder / f"{number:04d}.jpg" for number in range(1000)), itertools.cycle(photos)))
    for file, photo in files.items():
        file.write_bytes(photo)
    spoiled = {*chance.sample([*files], 150)}
    with Process("embed", folder, *EMBED, "--out", out, log=tmp_path / "log") as embed:
        embed.until(lambda: any(tmp_path.glob(".*vectors.jsonl*")) or out.exists())
        for file in spoiled:
            spoil(file, chance)
        assert embed.end() == 0
    bad = {line["path"]: line["reason"] for line in lines_of(tmp_path / "vectors.jsonl.bad_files.jsonl")}
    rows = {row["path"]: row["vector"] for row in lines_of(out)}
    assert all(bad.values()), "a file is bad without a reason"
    assert [*rows] == [str(file) for file in files if str(file) not in bad]
    assert bad.keys() <= {*map(str, spoiled)}
    first: dict[bytes, list[float]] = {}
    for file in files.keys() - spoiled:
        assert np.allclose(rows[str(file)], first.setdefault(files[file], rows[str(file)]), atol=1e-4)
