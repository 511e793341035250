"""Broken and strange images, and files that go away while they are read."""

import functools
import itertools
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from processes import Process, lines_of
from running import COMMAND, ENVIRONMENT, SMALL, process, selfie

from selfie_cli.data import pixels, synthetic
from tests.data.corpus import corpus, saved
from tests.data.pictures import write_parquet, write_tar

EMBED = ("--batch-size", 8, "--precision", "fp32", "--workers", 2)
Say = Callable[[str], None]


def bad_in(out: Path) -> dict[str, str]:
    """The unreadable files listed in a run's folder, or beside a file, with reasons."""
    listed = out / "bad_files.jsonl" if out.is_dir() else out.with_name(f"{out.name}.bad_files.jsonl")
    bad = {line["path"]: line["reason"] for line in lines_of(listed)}
    assert all(bad.values()), "a file is bad without a reason"
    return bad


def doctored(data: Path) -> set[str]:
    """The files that `doctor` finds to be unreadable."""
    found = json.loads(process("doctor", data, "--no-time", "--json", "--max-bad", 1).stdout)
    kinds = {each["kind"]: each["items"] for each in found["problems"] + found["remarks"]}
    return {item["name"] for item in kinds.get("cannot be read", [])}


def embedded(names: Iterable[Path | str], out: Path) -> dict[str, np.ndarray]:
    """The vector of each image that `embed` can read."""
    selfie("embed", "-", *EMBED, "--out", out, stdin="".join(f"{name}\n" for name in names))
    rows = [row["path"] for row in lines_of(out.with_name(f"{out.name}.rows.jsonl"))]
    return dict(zip(rows, np.load(out), strict=True))


def peak(*arguments: object) -> float:
    """Peak memory of a command, in MB."""
    argv = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        _, status, usage = os.wait4(command.pid, 0)
        command.returncode = os.waitstatus_to_exitcode(status)
    assert command.returncode == 0
    return usage.ru_maxrss / 1000


@pytest.mark.fault("decompression bombs")
def test_bombs(tmp_path: Path, chance: Random, happened: Say) -> None:
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
    happened("refused with a reason, in less than 100 MB")


@functools.cache
def photos() -> list[bytes]:
    """Real photos where they are, else drawn ones."""
    archive = Path(os.environ.get("SELFIE_TEST_DATA", "")) / "clothing256.tar"
    if not archive.is_file():
        return [saved(np.asarray(each), "PNG") for each in synthetic.draw(200, seed=3, size=64)[0]]
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][:200]
        return [file.read() for member in members if (file := tar.extractfile(member))]


@pytest.mark.fault("one image in five is broken", times=20)
def test_one_in_five(tmp_path: Path, chance: Random, happened: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a shard and a parquet file, through every command that decodes."""
    broken = [entry for entry in corpus() if entry.pixels is None and entry.sure]
    data, bad, outs = tmp_path / "images", set(), (tmp_path / f"run{number}" for number in itertools.count())
    images: dict[str, bytes] = {}
    for number, photo in enumerate(chance.sample(photos(), 40)):
        entry = chance.choice(broken) if number % 5 == 4 else None
        file = data / "ab"[number % 2] / (f"{number:02d}-{entry.name}" if entry else f"{number:02d}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        images[str(file)] = entry.data if entry else photo
        file.write_bytes(images[str(file)])
        if entry:
            bad.add(str(file))

    def pretrained(what: Path, *more: object) -> set[str]:
        """The files that a pretraining of some steps, which see all images, finds bad."""
        words = ("--image-size", 32, "--steps", 6, "--store", tmp_path / "store", "--max-bad", 0.5, *more)
        selfie("pretrain", what, *SMALL, *words, "--out", out := next(outs))
        return {*bad_in(out)}

    def finetuned(what: Path) -> set[str]:
        words = ("--from", "bundled", "--no-baseline", "--steps", 2, *SMALL[2:], "--max-bad", 0.5)
        selfie("finetune", "--dataset", what, *words, "--out", out := next(outs))
        return {*bad_in(out)}

    vectors = embedded(images, tmp_path / "all.npy")
    assert [*vectors] == [name for name in images if name not in bad]
    alone = embedded(vectors, tmp_path / "alone.npy")
    assert all(np.allclose(vectors[name], vector, atol=1e-4) for name, vector in alone.items())
    assert bad_in(tmp_path / "all.npy").keys() == doctored(data) == pretrained(data) == finetuned(data) == bad
    selfie("predict", tmp_path / "run1", data, "--out", tmp_path / "labels.jsonl")
    assert bad_in(tmp_path / "labels.jsonl").keys() == bad
    members = {}
    for number, (name, content) in enumerate(images.items()):
        members[f"{number:02d}{Path(name).suffix}"] = content
        members[f"{number:02d}.cls"] = Path(name).parent.name.encode()
    shard = Path(write_tar(tmp_path / "shard.tar", members))
    in_shard = {f"{shard}/{number:02d}{Path(name).suffix}" for number, name in enumerate(images) if name in bad}
    assert doctored(shard) == pretrained(shard) == finetuned(shard) == in_shard
    table = Path(write_parquet(tmp_path / "rows.parquet", [*images.values()]))
    assert doctored(table) == {f"{table}/row-{number:06d}" for number, name in enumerate(images) if name in bad}
    assert doctored(table) == pretrained(table)
    monkeypatch.setattr(pixels, "SMALL", 0)
    assert pretrained(data) == pretrained(data) == pretrained(data, "--store-gb", 0) == bad
    happened("all commands find the same files bad; vectors are those of the others alone")


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
def test_vanishing_from_embed(tmp_path: Path, chance: Random, happened: Say) -> None:
    folder, out = tmp_path / "images", tmp_path / "vectors.jsonl"
    folder.mkdir()
    files = {folder / f"{number:04d}.jpg": number % len(photos()) for number in range(1000)}
    for file, number in files.items():
        file.write_bytes(photos()[number])
    spoiled = {*chance.sample([*files], 150)}
    with Process("embed", folder, *EMBED, "--out", out, log=tmp_path / "log") as embed:
        embed.until(lambda: any(tmp_path.glob(".*vectors.jsonl*")) or out.exists())
        for file in spoiled:
            spoil(file, chance)
        assert embed.end() == 0
    bad, rows = bad_in(out), {row["path"]: row["vector"] for row in lines_of(out)}
    assert [*rows] == [str(file) for file in files if str(file) not in bad]
    assert bad.keys() <= {*map(str, spoiled)}
    first: dict[int, list[float]] = {}
    for file in files.keys() - spoiled:
        assert np.allclose(rows[str(file)], first.setdefault(files[file], rows[str(file)]), atol=1e-4)
    happened("listed with reasons; every other row belongs to its file")
