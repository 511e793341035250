"""Broken and strange images, files that go away, and decoders that die."""

import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from injection import Fault, Lost
from PIL import Image, ImageOps
from running import COMMAND, ENVIRONMENT, SMALL, selfie

from selfie_cli.data import synthetic
from tests.data.corpus import LOSSY, Entry, corpus, saved, write_names, write_no_files
from tests.data.pictures import write_parquet, write_tar

PATIENCE = 300  # seconds
NETWORK = (*SMALL, "--image-size", 32)
BAD = "bad_files.jsonl"
# As if the smallest set were too large for memory.
STREAMED = "from selfie_cli.data import pixels; pixels.SMALL = 0; from selfie_cli.cli.app import main; main()"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def bad_in(out: Path) -> dict[str, str]:
    """What is listed in a run's folder, or beside a file."""
    listed = out / BAD if out.is_dir() else out.with_name(f"{out.name}.{BAD}")
    return {line["path"]: line["reason"] for line in lines_of(listed)}


def doctored(data: Path) -> dict[str, str]:
    """What `doctor` finds to be unreadable."""
    words = (data, "--no-time", "--json", "--max-bad", 1)
    try:
        found = json.loads(selfie("doctor", *words).stdout)
    except AssertionError:  # there is something else about them that it calls a problem
        found = json.loads(selfie("doctor", *words, code=1).stdout)
    kinds = {each["kind"]: each["items"] for each in found["problems"] + found["remarks"]}
    return {item["name"]: item["note"] for item in kinds.get("cannot be read", [])}


def embedded(names: Iterable[Path | str], out: Path) -> dict[str, np.ndarray]:
    """The vector of each image that `embed` can read; those it cannot are listed beside `out`."""
    listed = "".join(f"{name}\n" for name in names)
    selfie("embed", "-", "--batch-size", 8, "--precision", "fp32", "--out", out, stdin=listed)
    vectors, rows = np.load(out), lines_of(out.with_name(out.name + ".rows.jsonl"))
    if len(vectors) != len(rows):
        raise Lost(f"embed wrote {len(vectors)} vectors and {len(rows)} names")
    return {row["path"]: vector for row, vector in zip(rows, vectors, strict=True)}


def same(found: Iterable[str], expected: Iterable[str], who: str) -> None:
    if different := {*found} ^ {*expected}:
        raise Lost(f"{who} finds other files bad, such as {min(different)}")


def kind_of_entry(*kinds: str) -> Callable[[Path, random.Random], str]:
    """Every image of the corpus of these kinds, through embed and doctor, beside lossless copies of what they show."""

    def inject(folder: Path, chance: random.Random) -> str:
        entries = [entry for entry in corpus() if entry.kind in kinds]
        chance.shuffle(entries)
        names = [folder / "images" / entry.name for entry in entries]
        shown = [folder / "shown" / f"{entry.name}.png" for entry in entries]
        for each in ("images", "shown"):
            (folder / each).mkdir()
        for entry, name, copy in zip(entries, names, shown, strict=True):
            name.write_bytes(entry.data)
            copy.write_bytes(saved(shows(entry), "PNG"))
        (folder / "out").mkdir()
        vectors = embedded([*names, shown[0]], folder / "out" / "images.npy")
        bad = bad_in(folder / "out" / "images.npy")
        copies = embedded(shown, folder / "out" / "shown.npy")
        same(doctored(folder / "images"), bad, "doctor")
        counts = Counter(
            outcome(entry, vectors.get(str(name)), bad.get(str(name)), copies[str(copy)])
            for entry, name, copy in zip(entries, names, shown, strict=True)
        )
        return ", ".join(f"{count} {words}" for words, count in counts.most_common())

    return inject


def shows(entry: Entry) -> Image.Image:
    """What an entry is to show; of what is lossy, which tests compare with the original, Pillow's own decoding."""
    if entry.loss == LOSSY:
        with Image.open(io.BytesIO(entry.data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    return Image.fromarray(entry.pixels) if entry.pixels is not None else Image.new("RGB", (9, 9))


def outcome(entry: Entry, vector: np.ndarray | None, reason: str | None, shown: np.ndarray) -> str:
    """In words; `shown` is the vector of what the entry is to show."""
    if (vector is None) != (reason is not None):
        raise Lost(f"{entry.name} is neither read nor refused with a reason")
    if vector is None:
        if entry.sure and entry.pixels is not None:
            raise Lost(f"{entry.name} is refused: {reason}")
        return "refused with a reason"
    if entry.pixels is None:
        if entry.sure:
            raise Lost(f"{entry.name} is read")
        return "read all the same"
    cosine = float(vector @ shown / np.linalg.norm(vector) / np.linalg.norm(shown))
    if cosine < 0.9999:
        raise Lost(f"{entry.name} is read as another picture: the cosine of the vectors is {cosine:.4f}")
    return "read as they should be"


def bombs(folder: Path, chance: random.Random) -> str:
    """Peak memory of embed on a picture, and on the same picture among bombs."""
    (folder / "images").mkdir()
    picture = folder / "images" / "picture.png"
    picture.write_bytes(corpus()[0].data)
    alone = peak("embed", folder / "images", "--out", folder / "alone.npy")
    for entry in corpus():
        if entry.kind == "bomb":
            (folder / "images" / entry.name).write_bytes(entry.data)
    more = peak("embed", folder / "images", "--out", folder / "all.npy") - alone
    if more > 100:
        raise Lost(f"bombs take {more:.0f} MB")
    if len(bad_in(folder / "all.npy")) + len(np.load(folder / "all.npy")) != len([*(folder / "images").iterdir()]):
        raise Lost("a bomb is neither read nor refused")
    return "refused with a reason, in less than 100 MB"


def peak(*arguments: object) -> float:
    """MB that a command takes at most."""
    argv = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Lost(f"{arguments[0]} ends with {process.returncode}")
    return usage.ru_maxrss / 1000


@functools.cache
def photos() -> list[bytes]:
    """Real ones where they are, else drawn."""
    archive = Path(os.environ.get("SELFIE_TEST_DATA", "")) / "clothing256.tar"
    if not archive.is_file():
        return [saved(np.asarray(each), "PNG") for each in synthetic.draw(200, seed=3, size=64)[0]]
    found: list[bytes] = []
    with tarfile.open(archive, "r|") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(found) < 200 and (file := tar.extractfile(member)):
                found.append(file.read())
    return found


def one_in_five(folder: Path, chance: random.Random) -> str:
    """A folder, a shard and a parquet file of which every fifth image is broken, through every command that decodes."""
    broken = [entry for entry in corpus() if entry.pixels is None or not entry.sure]
    sure: set[str] = set()
    data, out = folder / "images", folder / "out"
    out.mkdir()
    good, images = [], {}
    chosen = chance.sample(photos(), 32)
    for number in range(40):
        entry = chance.choice(broken) if number % 5 == 4 else None
        name = data / "ab"[number % 2] / (f"{number:02d}-{entry.name}" if entry else f"{number:02d}.jpg")
        images[str(name)] = entry.data if entry else chosen.pop()
        if entry is None:
            good.append(name)
        elif entry.sure:
            sure.add(str(name))
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(images[str(name)])

    vectors, bad = embedded(images, out / "all.npy"), bad_in(out / "all.npy")
    if bad.keys() & {*map(str, good)} or sure - bad.keys():
        raise Lost("embed takes a sound image for broken, or a broken one for sound")
    alone = embedded(good, out / "alone.npy")
    if [*vectors] != [name for name in images if name not in bad]:
        raise Lost("embed puts rows into another order than files")
    if any(not np.allclose(vectors[name], vector, atol=1e-4) for name, vector in alone.items()):
        raise Lost("embed gives an image the vector of another")

    def pretrained(what: Path, run: str, *more: object, small: int = 10**9) -> dict[str, str]:
        steps = ("--steps", 6, "--max-bad", 0.5, "--store", out / "store")  # all images, and some again
        with mock.patch("selfie_cli.data.pixels.SMALL", small):
            selfie("pretrain", what, *NETWORK, *steps, *more, "--out", out / run)
        return bad_in(out / run)

    def finetuned(what: Path, run: str) -> dict[str, str]:
        words = ("--from", out / "in-memory", "--fraction", 1, "--no-baseline")
        words = (*words, "--steps", 2, "--batch-size", 8, "--precision", "fp32", "--max-bad", 0.5, "--no-report")
        selfie("finetune", "--dataset", what, *words, "--out", out / run)
        return bad_in(out / run)

    same(doctored(data), bad, "doctor")
    same(pretrained(data, "in-memory"), bad, "pretrain")
    same(pretrained(data, "kept", small=0), bad, "pretrain that decodes while it trains")
    same(pretrained(data, "kept-again", small=0), bad, "pretrain on pixels that were kept")
    same(pretrained(data, "streamed", "--store-gb", 0, small=0), bad, "pretrain that keeps nothing")
    same(finetuned(data, "finetuned"), bad, "finetune")
    words = ("--out", out / "labels.jsonl", "--overwrite")
    selfie("predict", out / "finetuned", data, *words)
    same(bad_in(out / "labels.jsonl"), bad, "predict")

    members = {}
    for number, (name, content) in enumerate(images.items()):
        members[f"{number:02d}{Path(name).suffix}"] = content
        members[f"{number:02d}.cls"] = Path(name).parent.name.encode()
    shard = Path(write_tar(folder / "shard.tar", members))
    where = {f"{shard}/{number:02d}{Path(name).suffix}" for number, name in enumerate(images) if name in bad}
    same(pretrained(shard, "shard"), where, "pretrain on a shard")
    same(pretrained(shard, "shard-streamed", "--store-gb", 0, small=0), where, "pretrain on a shard that is streamed")
    same(doctored(shard), where, "doctor on a shard")
    same(finetuned(shard, "finetuned-shard"), where, "finetune on a shard")
    table = Path(write_parquet(folder / "rows.parquet", [*images.values()]))
    where = {f"{table}/row-{number:06d}" for number, name in enumerate(images) if name in bad}
    same(pretrained(table, "parquet"), where, "pretrain on a parquet file")
    same(doctored(table), where, "doctor on a parquet file")
    return "all commands find the same files bad; vectors are those of the others alone"


def names_and_no_files(folder: Path, chance: random.Random) -> str:
    """Files of any name beside what only looks like a file; first in a process of its own, as it might hang."""
    data = folder / "images"
    data.mkdir()
    write_names(data)
    sound = len(list(data.iterdir())) - 1  # one is no image by its name
    write_no_files(data)
    refused = len([*data.glob("link-*")])
    vectors = folder / "vectors.npy"
    ended("embed", data, "--out", vectors, code=0)
    selfie("pretrain", data, *NETWORK, "--steps", 2, "--max-bad", 0.9, "--out", folder / "run")
    if len(np.load(vectors)) != sound:
        raise Lost("embed does not read every file that has a strange name")
    found = {"embed": bad_in(vectors), "pretrain": bad_in(folder / "run"), "doctor": doctored(data)}
    for who, bad in found.items():
        if len(bad) != refused or not all(Path(name).name.startswith("link-") for name in bad):
            raise Lost(f"{who} does not refuse what is no file")
    return "names read, the rest refused with a reason or left out"


def ended(*arguments: object, code: int) -> bytes:
    """What a command in a process of its own prints; it has to end with `code`, and some day."""
    argv = [*COMMAND, *map(str, arguments)]
    try:
        ran = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise Lost(f"{arguments[0]} does not end") from None
    if ran.returncode != code:
        raise Lost(f"{arguments[0]} ends with {ran.returncode}: {ran.stderr.decode()[-300:]}")
    return ran.stdout


def spoil(file: Path, chance: random.Random) -> None:
    how = chance.randrange(5)
    if how == 0:
        file.unlink()
    elif how == 1:
        os.truncate(file, chance.randrange(file.stat().st_size // 2))
    elif how == 2:
        other = file.with_suffix(".new")
        other.write_bytes(b"no image")
        other.replace(file)
    elif how == 3:
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_bytes(chance.randbytes(3000))


def vanishing(folder: Path, chance: random.Random) -> str:
    """Pretraining that decodes in every epoch: files go away, are cut, overwritten, and grow under it; then it is
    stopped and resumed."""
    data, run = folder / "images", folder / "run"
    data.mkdir()
    files = [data / f"{number:02d}.jpg" for number in range(24)]
    for file, content in zip(files, chance.sample(photos(), 24), strict=True):
        file.write_bytes(content)
    words = ("pretrain", data, *NETWORK, "--steps", 5000, "--max-bad", 0.9, "--store-gb", 0, "--out", run)
    process = started(STREAMED, *words, log=folder / "first.log")
    metrics = run / "metrics.jsonl"
    until(process, lambda: bool(lines_of(metrics)), folder / "first.log")
    spoiled = chance.sample(files, 10)
    for file in spoiled:
        spoil(file, chance)
        time.sleep(chance.random() / 10)
    grown = next(file for file in files if file not in spoiled)
    with grown.open("ab") as file:  # what follows a picture is not looked at
        file.write(chance.randbytes(5000))
    here = lines_of(metrics)[-1]["step"]
    until(process, lambda: lines_of(metrics)[-1]["step"] >= here + 20, folder / "first.log")  # six epochs
    stop(process, folder / "first.log")
    same(bad_in(run), map(str, spoiled), "pretrain while files go away")
    if not all(bad_in(run).values()):
        raise Lost("a file is bad without a reason")

    gone = [file for file in spoiled if not file.is_file()]
    victim = gone[0] if gone else spoiled[0]
    for file in {victim, *gone}:
        file.unlink(missing_ok=True)
    error = selfie("pretrain", "--resume", run, code=1).stderr
    if "the images have changed" not in error:
        raise Lost(f"--resume with files missing says {error[-300:]}")
    for file in {victim, *gone}:
        file.write_bytes(b"another")
    process = started(STREAMED, "pretrain", "--resume", run, log=folder / "second.log")
    here = lines_of(metrics)[-1]["step"]
    until(process, lambda: lines_of(metrics)[-1]["step"] > here, folder / "second.log")
    stop(process, folder / "second.log")
    same(bad_in(run), map(str, spoiled), "pretrain that was resumed")
    return "listed with reasons, replaced by other images, resumed"


def vanishing_from_embed(folder: Path, chance: random.Random) -> str:
    """Files go away, are cut and overwritten while embed reads."""
    data = folder / "images"
    data.mkdir()
    pictures = photos()
    files = [data / f"{number:04d}.jpg" for number in range(1000)]
    for number, file in enumerate(files):
        file.write_bytes(pictures[number % len(pictures)])
    out, log = folder / "vectors.jsonl", folder / "log"
    process = started(
        "from selfie_cli.cli.app import main; main()",
        *("embed", data, "--batch-size", 8, "--precision", "fp32", "--workers", 2, "--out", out),
        log=log,
    )
    until(process, lambda: any(folder.glob(".*vectors.jsonl*")) or out.exists(), log)
    spoiled = chance.sample(files, 150)
    for file in spoiled:
        spoil(file, chance)
    if process.wait(PATIENCE):
        raise Lost(f"embed ends with {process.returncode}: {log.read_text()[-300:]}")
    bad, rows = bad_in(out), lines_of(out)
    read = [row["path"] for row in rows]
    if read != [str(file) for file in files if str(file) not in bad] or bad.keys() - {*map(str, spoiled)}:
        raise Lost("rows and files do not belong together")
    if not all(bad.values()):
        raise Lost("a file is bad without a reason")
    sound = {row["path"]: row["vector"] for row in rows if Path(row["path"]) not in spoiled}
    for number, file in enumerate(files):
        first = str(files[number % len(pictures)])
        if str(file) in sound and first in sound and not np.allclose(sound[str(file)], sound[first], atol=1e-4):
            raise Lost("a row holds the vector of another image")
    return "listed with reasons; every other row belongs to its file"


def started(code: str, *arguments: object, log: Path) -> "subprocess.Popen[bytes]":
    """A command in a process of its own, run by a line of Python; what it prints goes to `log`."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    with log.open("wb") as file:
        return subprocess.Popen(argv, env=ENVIRONMENT, stdout=file, stderr=file)


def until(process: "subprocess.Popen[bytes]", condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Lost(f"the process is not at work, exit code {process.returncode}: {log.read_text()[-300:]}")
        time.sleep(0.01)


def stop(process: "subprocess.Popen[bytes]", log: Path) -> None:
    process.send_signal(signal.SIGINT)
    if process.wait(PATIENCE) != 130 or "Traceback" in log.read_text():
        raise Lost(f"SIGINT ends pretrain with {process.returncode}: {log.read_text()[-300:]}")


SLOW = """
import time
from selfie_cli.data import images
decode = images.decode_square
def slow(image, size):
    time.sleep(0.05)
    return decode(image, size)
images.decode_square = slow
from selfie_cli.cli.app import main
main()
"""


def stopped_while_decoding(folder: Path, chance: random.Random) -> str:
    """SIGINT, SIGTERM, or a reader that has seen enough, while images are decoded: it shows no traceback."""
    data = folder / "images"
    data.mkdir()
    for number in range(200):
        (data / f"{number:03d}.jpg").write_bytes(photos()[number % len(photos())])
    how = chance.choice([signal.SIGINT, signal.SIGTERM, None])
    words = ("embed", data, "--batch-size", 2, "--precision", "fp32")
    argv = [sys.executable, "-c", SLOW, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env=ENVIRONMENT, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        time.sleep(chance.random() / 2)
        if how is None:
            process.stdout.close()
        else:
            os.killpg(process.pid, how)  # as a terminal does: all of its processes
        told = process.stderr.read()  # to the end, when nobody holds it any more
        code = process.wait(PATIENCE)
    if code != (0 if how is None else 128 + how):
        raise Lost(f"embed ends with {code} after {how}")
    if b"Traceback" in told:
        raise Lost(f"after {how}, embed says {told.decode()[-300:]}")
    return "ends at once, with its exit code and without alarm"


def no_parquet() -> str | None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return "pyarrow is not installed"
    return None


FAULTS: list[Fault] = [
    Fault(
        name="images of every format, turned, with profiles, of odd sizes",
        inject=kind_of_entry("format", "exif", "profile", "size", "name"),
    ),
    Fault(
        name="what is no picture: other files, more bands than colours, floats",
        inject=kind_of_entry("foreign", "bands", "range"),
    ),
    Fault(name="images cut at every structure and within", inject=kind_of_entry("cut")),
    Fault(name="images with flipped bytes", inject=kind_of_entry("flip")),
    Fault(name="decompression bombs", inject=bombs),
    Fault(name="strange names, pipes, sockets, devices and circles of links among images", inject=names_and_no_files),
    Fault(name="one image in five is broken", inject=one_in_five, times=20, unfit=no_parquet),
    Fault(name="images vanish and change while pretrain reads them", inject=vanishing, times=20),
    Fault(name="images vanish and change while embed reads them", inject=vanishing_from_embed, times=20),
    Fault(name="stopped while images are decoded", inject=stopped_while_decoding, times=20),
]
