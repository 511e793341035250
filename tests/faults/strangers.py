"""Files that somebody else has made, to mislead, to break out, or to take more of the machine than they are worth."""

import atexit
import functools
import html.parser
import io
import json
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hub_server import Hub, Repository
from injection import Fault, Lost
from running import COMMAND, ENVIRONMENT, SMALL, draw_folder
from typer.testing import CliRunner, Result

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

import mutations
from fuzzing import bounded_memory

from selfie_cli import runs
from selfie_cli.cli.app import app

REFUSED = "refused in one line"
READ = "read: what was spoiled decides nothing"
MUCH = 300
"""MB; what a small command takes beyond what the process holds already is far less."""
TRAINING = (*SMALL, "--steps", 1, "--device", "cpu", "--workers", 1)


@functools.cache
def shared() -> Path:
    """A folder that lives as long as this process: images, drawn, and a run that was finetuned on them."""
    folder = Path(tempfile.mkdtemp(prefix="strangers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    draw_folder(folder / "images", train=20, test=10)
    asked("finetune", "--dataset", folder / "images", "--from", "bundled", *TRAINING[2:], "--out", folder / "finetuned")
    return folder


def photo() -> Path:
    return min((shared() / "images/test").rglob("*.png"))


def ran(*words: object) -> Result:
    """A command in this process. Raises Lost if it ends by another error than the program's own."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Lost(f"{words[0]} ended by {type(result.exception).__name__}: {result.exception}") from result.exception
    return result


def asked(*words: object) -> Result:
    """A command that has to succeed."""
    result = ran(*words)
    if result.exit_code:
        raise Lost(f"{words[0]} failed: {result.stderr}")
    return result


def refused(*words: object) -> str:
    """A command that has to fail, and to say why in one last line."""
    result = ran(*words)
    last = (result.stderr.splitlines() or [""])[-1]
    if result.exit_code not in (1, 2) or result.stdout or not last.startswith("error: "):
        raise Lost(f"{words[0]} ended with {result.exit_code} and said {result.stderr!r}")
    return REFUSED


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run")
    return folder / "run"


def spoiled_run(folder: Path, chance: random.Random) -> str:
    run = copied(runs.bundled_folder(), folder)
    name, spoil = chance.choice(
        (("config.json", mutations.spoil_json), ("model.safetensors", mutations.spoil_safetensors))
    )
    (run / name).write_bytes(spoil((run / name).read_bytes(), chance))
    result = ran("embed", photo(), "--from", run, "--device", "cpu")
    if result.exit_code:
        return refused("embed", photo(), "--from", run, "--device", "cpu")
    (line,) = result.stdout.splitlines()
    if not np.isfinite(json.loads(line)["vector"]).all():
        raise Lost("a vector that is none")
    return READ


def sizes(folder: Path, chance: random.Random) -> str:
    """Of tensors, headers and networks that no machine holds."""
    query = photo()
    run = copied(runs.bundled_folder(), folder)
    config = json.loads((run / "config.json").read_text())
    weights = run / "model.safetensors"
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
            (run / "config.json").write_text(json.dumps(config))
        case 5:
            (run / "config.json").write_text("[" * 3_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded_memory():
        said = refused("embed", query, "--from", run, "--device", "cpu")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MUCH * 1024:
        raise Lost("memory was taken before it was refused")
    return f"{said}, before memory was taken"


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def shard(folder: Path, chance: random.Random) -> str:
    """Members with names that lead out, and links, pipes and devices with names of images."""
    inside = folder / "a/b"
    inside.mkdir(parents=True)
    (folder / "secret.png").write_bytes(photo().read_bytes())
    names = [f"{number:02}.png" for number in range(12)]
    names += ["../up.png", "../../secret.png", f"{folder}/absolute.png", "a/../../b.png"]
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    members: list[tuple[str, bytes]] = [(name, tarfile.REGTYPE) for name in names]
    members += [(f"link{number}.png", kind) for number, kind in enumerate(kinds)]
    chance.shuffle(members)
    with tarfile.open(inside / "s.tar", "w", format=chance.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for name, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(folder / "secret.png")
            member.size = photo().stat().st_size * (kind == tarfile.REGTYPE)
            tar.addfile(member, io.BytesIO(photo().read_bytes()))
    before = files_below(folder)
    # Folders in names look like classes, too small for finetune: doctor says so, and exits 1.
    document = json.loads(ran("doctor", inside / "s.tar", "--no-time", "--json").stdout)
    asked("pretrain", inside / "s.tar", *TRAINING, "--out", inside / "run")
    if (found := sum(document["images"].values())) != len(names):
        raise Lost(f"{found} images of {len(names)}")
    written = {name for name in files_below(folder) - before if not name.startswith("a/b/run")}
    if written:
        raise Lost(f"{written} was written")
    return "nothing written, links passed over, images read in place"


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(folder: Path, chance: random.Random) -> str:
    """What unpickling would run, under names of files that we read."""
    mark = folder / "mark"
    bomb = pickle.dumps(Bomb(mark))
    kind = chance.choice(("model.safetensors", "config.json", "v.npy", "v.safetensors", "v.jsonl"))
    if kind.startswith("v."):
        (folder / f"{kind}.rows.jsonl").write_text('{"path": "a.png"}\n' * 2)
        if kind == "v.npy":
            np.save(folder / kind, np.array([[Bomb(mark)], [Bomb(mark)]], object), allow_pickle=True)
        else:
            (folder / kind).write_bytes(bomb)
        said = refused("similar", photo(), "--in", folder / kind, "--from", "bundled", "--device", "cpu")
    else:
        run = copied(runs.bundled_folder(), folder)
        (run / kind).write_bytes(bomb)
        said = refused("embed", photo(), "--from", run, "--device", "cpu")
    if mark.exists():
        raise Lost(f"a pickle in {kind} was run")
    pickle.loads(bomb)
    if not mark.exists():
        raise Lost("the pickle would have done no harm, so nothing was tried")
    return said


@functools.cache
def server() -> Hub:
    hub = Hub()
    atexit.register(hub.close)
    return hub


def repository(folder: Path, chance: random.Random) -> str:
    """On a Hub: files that nobody asked for, damaged or exchanged ones, a config of another's making, hostile names."""
    hub = server()
    hub.clear()
    bundled = runs.bundled_folder()
    files = {"config.json": (bundled / "config.json").read_bytes()}
    files["model.safetensors"] = (bundled / "model.safetensors").read_bytes()
    mark = folder / "mark"
    strange = {
        "pytorch_model.bin": pickle.dumps(Bomb(mark)),
        "modeling.py": b"1/0\n",
        "../../x": b"x",
        "a\x1b[2J": b"x",
    }
    config = json.loads(files["config.json"])
    what = chance.choice(("beside", "config", "weights", "pickle", "exchanged"))
    match what:
        case "config":
            config["derived"]["auto_map"] = {"AutoModel": "modeling.Net"}
            files["config.json"] = json.dumps(config).encode()
        case "weights":
            files["model.safetensors"] = mutations.spoil(files["model.safetensors"], chance)[:-64]
        case "pickle":
            files["model.safetensors"] = strange["pytorch_model.bin"]
    net = hub.repositories["acme/net"] = Repository()
    net.commit("main", {name: (data, name.endswith("safetensors")) for name, data in (files | strange).items()})
    if what == "exchanged":  # by whoever holds the storage
        hub.corrupt = bytes(len(files["model.safetensors"]))
    environment = {**ENVIRONMENT, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    out = folder / "run"
    done = subprocess.run(
        [*COMMAND, "pull", "acme/net", "--out", str(out)], env=environment, capture_output=True, check=False
    )
    fetched = {path.rpartition("/resolve/")[2].partition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path}
    if not fetched <= set(files) or mark.exists() or b"Traceback" in done.stderr:
        raise Lost(f"pull fetched {sorted(fetched)} and said {done.stderr!r}")
    if what == "beside":
        if done.returncode or {path.name for path in out.iterdir()} != set(files):
            raise Lost(f"pull ended with {done.returncode} and said {done.stderr!r}")
        return "only our own files fetched"
    if done.returncode != 1 or done.stdout or not done.stderr.splitlines()[-1].startswith(b"error: ") or out.exists():
        raise Lost(f"pull of {what} ended with {done.returncode} and said {done.stderr!r}")
    return f"{REFUSED}, no folder made"


EVIL = "\x1b[2J\x1b]0;x\x07\r\n\u202e\x9b31m"
VERBS = ("doctor", "embed", "embed to a file", "predict", "similar", "pretrain", "finetune", "eval", "report", "errors")


def named(folder: Path, chance: random.Random) -> str:
    """Folders, classes, files and runs whose names would move a terminal's cursor, clear it, or turn its text round."""
    images = folder / f"i{EVIL}"
    shutil.copytree(shared() / "images", images)
    for part in ("train", "test"):
        first, second = sorted((images / part).iterdir())[:2]
        first.rename(first.with_name(f"{first.name}{EVIL}"))
        for number, file in enumerate(sorted(second.iterdir())):
            file.rename(file.with_name(f"{number}{EVIL}.png"))
    (images / f"train/{second.name}/bad{EVIL}.png").write_bytes(b"no image")
    run = folder / f"r{EVIL}"
    on_cpu = ("--device", "cpu")
    result = None
    match verb := chance.choice(VERBS):
        case "doctor":
            result = ran("doctor", images, "--no-time")
        case "embed":
            result = asked("embed", images, "--from", "bundled", *on_cpu)
            for line in result.stdout.splitlines():
                json.loads(line)
        case "embed to a file":
            result = asked("embed", images, "--from", "bundled", *on_cpu, "--out", f"{run}.jsonl")
        case "predict":
            result = asked("predict", shared() / "finetuned", images, *on_cpu)
        case "similar":
            asked("embed", images, "--from", "bundled", *on_cpu, "--out", f"{run}.jsonl")
            result = asked("similar", "--duplicates", "--in", f"{run}.jsonl", "--threshold", "0.5")
        case "pretrain":
            result = asked("pretrain", images, *TRAINING, "--max-bad", "0.5", "--out", run)
        case "finetune":
            words = (*TRAINING[2:], "--max-bad", "0.5", "--out", run)
            result = asked("finetune", "--dataset", images, "--from", "bundled", *words)
        case "eval":
            shutil.copytree(runs.bundled_folder(), run)
            result = asked("eval", run, "--dataset", images, *on_cpu, "--max-bad", "0.5")
        case "report":
            shutil.copytree(runs.bundled_folder(), run)
            result = asked("report", run, "--dataset", images, *on_cpu)
        case "errors":  # with a run's own words
            shutil.copytree(runs.bundled_folder(), run)
            config = json.loads((run / "config.json").read_text())
            place = chance.choice(("verb", "format", "derived", "weights"))
            if place == "weights":
                header, data = parted((run / "model.safetensors").read_bytes())
                header[EVIL] = header.pop(max(header))
                (run / "model.safetensors").write_bytes(with_header(header, data))
            config |= {place: {EVIL: EVIL} if place == "derived" else EVIL}
            (run / "config.json").write_text(json.dumps(config))
            refused("embed", photo(), "--from", run, *on_cpu)
            result = ran("embed", photo(), "--from", run, *on_cpu)
    said = result.stdout + result.stderr
    if found := [character for character in said if not character.isprintable() and character != "\n"]:
        raise Lost(f"{verb} prints {set(found)}")
    return "written out"


class Elements(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page(folder: Path, chance: random.Random) -> str:
    """Classes, files, a data set and a run whose names are markup; tests/commands/test_report.py looks in a browser."""
    evil = "<script>alert(1)<!--", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "'; alert(1)&lt;"
    images, run = folder / chance.choice(evil), folder / "runs" / chance.choice(evil)
    shutil.copytree(shared() / "images", images)
    for part in ("train", "test"):
        for number, one in enumerate(sorted((images / part).iterdir())[: len(evil)]):
            for file in list(one.iterdir()):
                file.rename(file.with_name(f"{chance.choice(evil)}{file.name}"))
            one.rename(one.with_name(evil[number]))
    asked("finetune", "--dataset", images, "--from", "bundled", *TRAINING[2:], "--report", "--out", run)
    text = (run / "report.html").read_text("utf-8")
    elements = Elements()
    elements.feed(text)
    scripts = [given for tag, given in elements.found if tag == "script"]
    acting = [name for _, given in elements.found for name in given if name.startswith("on")]
    loading = [given["src"] for _, given in elements.found if not (given.get("src") or "data:").startswith("data:")]
    if len(scripts) != 2 or acting or loading or "Content-Security-Policy" not in text:
        raise Lost(f"{len(scripts)} scripts, {acting}, {loading}")
    return "shown, not run"


FAULTS = [
    Fault(name="a run's config or weights spoiled at random", inject=spoiled_run, times=200),
    Fault(name="weights or configs of absurd sizes", inject=sizes, times=40),
    Fault(name="a shard with names that lead out, links and devices", inject=shard, times=10),
    Fault(name="pickles under names of files that are read", inject=pickled, times=40),
    Fault(name="a hostile repository on the Hub", inject=repository, times=20),
    Fault(name="names that control a terminal, through every verb", inject=named, times=60),
    Fault(name="names that are markup, on a run's page", inject=page, times=5),
]
