"""Disks that are full, read-only, limited or broken, from any moment on."""

import atexit
import contextlib
import errno
import functools
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from injection import Fault, Lost
from running import COMMAND, ENVIRONMENT, SMALL, draw_folder, same_weights, selfie

from selfie_cli.errors import SelfieError
from selfie_cli.files import TEMPORARY, read_json
from selfie_cli.weights import load_weights

VERBS = ("pretrain", "finetune", "embed")
PATIENCE = 180.0  # seconds; a process that does not get anywhere in that time never will
TRAINING = (*SMALL, "--device", "cpu", "--workers", 1, "--warmup-steps", 2)
REFUSED = ("will be written", "not writable", "cannot be written")
SUFFIXES = (".npy", ".safetensors", ".jsonl", ".csv", ".parquet")

FAILING = """
import os, sys
root, left, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]
CHANGES = {"os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}
removing = number == 30  # a full disk lets files go, a read-only one does not

def fail(event, args):
    global left
    if event == "open":
        path, changes = args[0], bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    elif event in CHANGES:
        path, changes = args[CHANGES[event]], removing or event not in ("os.remove", "os.rmdir")
    else:
        return
    if changes and isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(root):
        left -= 1
        if left <= 0:
            raise OSError(number, os.strerror(number), str(path))

sys.addaudithook(fail)
from selfie_cli.cli.app import main
main()
"""


@functools.cache
def shared() -> Path:
    """A folder with images, for as long as this process runs."""
    folder = Path(tempfile.mkdtemp(prefix="disks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    draw_folder(folder / "images", train=60, test=20)
    return folder


def command(verb: str, out: Path, save_every: float = 0.0001) -> list[object]:
    """A short run of a verb, whose states are saved in every step unless told otherwise."""
    images, often = shared() / "images", ("--save-every", save_every)
    if verb == "pretrain":
        return [verb, images, "--image-size", 16, *TRAINING, *often, "--steps", 20, "--out", out]
    if verb == "finetune":
        cells = ("--fraction", 0.5, "--seeds", 2, "--steps", 6, *often)
        return [verb, "--dataset", images, "--from", "none", "--image-size", 16, *TRAINING, *cells, "--out", out]
    return [verb, images / "train", "--from", "bundled", "--precision", "fp32", "--workers", 1, "--out", out]


@functools.cache
def reference(verb: str, suffix: str) -> Path:
    """What the verb makes where nothing goes wrong."""
    out = shared() / f"{verb}{suffix}"
    selfie(*command(verb, out))
    return out


def same(verb: str, out: Path) -> bool:
    expected = reference(verb, out.suffix)
    return out.read_bytes() == expected.read_bytes() if verb == "embed" else same_weights(out, expected)


def started(argv: list[object], code: tuple[object, ...] = ()) -> subprocess.Popen[str]:
    words = [*((sys.executable, "-c", *code) if code else COMMAND), *argv]
    return subprocess.Popen([*map(str, words)], env=ENVIRONMENT, text=True, stdout=-1, stderr=-1)


def conclude(process: subprocess.Popen[str], verb: str, out: Path, *, mended: Callable[[], None]) -> str:
    """Wait, look at what was said and left, mend the disk, go on, and compare with what comes of it otherwise."""
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        if not same(verb, out):
            raise Lost("it ended as if nothing had been, with another result")
        return "finished all the same"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    refused = bool(errors) and any(word in errors[0] for word in REFUSED)
    one_line = len(errors) == 1 and said.splitlines()[-1] == errors[0] and "Traceback" not in said
    if not one_line or process.returncode not in ((1, 2) if refused else (1,)):
        raise Lost(f"exit code {process.returncode}, and not one line: {said[-500:]}")
    if os.strerror(errno.EROFS) not in errors[0] and (left := list(out.parent.rglob(f"{TEMPORARY}*"))):
        raise Lost(f"left behind: {left[0].name}")
    mended()
    stopped = verb != "embed" and (out / "config.json").exists()
    if stopped:
        if f"selfie {verb} --resume {out}" not in errors[0]:
            raise Lost(f"how to go on is not said: {errors[0]}")
        check_states(out)
        selfie(verb, "--resume", out)
    else:
        selfie(*command(verb, out))
    if not same(verb, out):
        raise Lost("other weights after resuming")
    if left := list(out.parent.rglob(f"{TEMPORARY}*")):
        raise Lost(f"left behind after the end: {left[0].name}")
    if stopped:
        return "one line, resumed, same weights"
    return "refused before the work" if refused else "one line, nothing left behind"


def check_states(out: Path) -> None:
    """Raises Lost unless all that lies in a run is whole: what is renamed into place is never half of it."""
    for file in out.rglob("*.safetensors"):
        if TEMPORARY not in str(file):
            try:
                load_weights(file)
            except SelfieError as error:
                raise Lost(f"{file.name} is damaged: {error}") from None
    for file in out.rglob("config.json"):
        read_json(file)


@contextlib.contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of its own, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remounted(folder: Path, options: str) -> bool:
    return not subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True).returncode


@functools.cache
def cannot_mount() -> str | None:
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("mount"):
        with (
            contextlib.suppress(subprocess.CalledProcessError, OSError),
            tempfile.TemporaryDirectory() as folder,
            disk(Path(folder) / "disk", 2**16),
        ):
            return None
    return "a disk of its own can be mounted by root only"


def wait(process: subprocess.Popen[str], seconds: float, there: Path) -> None:
    """Until some time after a run has begun, or the process has ended."""
    while process.poll() is None and not there.exists():
        time.sleep(0.005)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def fills_up(folder: Path, chance: random.Random) -> str:
    """Another program takes all room that there is, and all that becomes free."""
    verb = chance.choice(VERBS[:2])
    with disk(folder / "disk", 2**26) as there:
        out, filler = there / "run", there / "filler"
        process = started(command(verb, out))
        wait(process, chance.uniform(0, 1.5), out)
        with filler.open("wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(bytes(2**12))
                except OSError:
                    time.sleep(0.001)
        return conclude(process, verb, out, mended=filler.unlink)


def too_small(folder: Path, chance: random.Random) -> str:
    """A disk of any size; room is made by enlarging it. How many states there will be is not always foreseen."""
    verb = chance.choice(VERBS)
    with disk(folder / "disk", chance.randint(1, 2**16 if verb == "embed" else 2**24)) as there:
        out = there / f"run{chance.choice(SUFFIXES) if verb == 'embed' else ''}"
        process = started(command(verb, out, chance.choice((0.0001, 0.1))))
        return conclude(process, verb, out, mended=lambda: remounted(there, "size=64m"))


def becomes_read_only(folder: Path, chance: random.Random) -> str:
    """The disk is mounted anew, for reading alone, in the first moment from a random one on in which no file is open
    for writing: the system allows no other."""
    verb = chance.choice(VERBS[:2])
    with disk(folder / "disk", 2**26) as there:
        out = there / "run"
        process = started(command(verb, out))
        wait(process, chance.uniform(0, 1), out)
        while process.poll() is None and not remounted(there, "ro"):
            time.sleep(0.001)
        return conclude(process, verb, out, mended=lambda: remounted(there, "rw"))


def limited(folder: Path, chance: random.Random) -> str:
    """From a random moment on no file may grow beyond a size: what a quota does, and it needs no rights."""
    verb = chance.choice(VERBS)
    out = folder / f"run{chance.choice(SUFFIXES) if verb == 'embed' else ''}"
    process = started(command(verb, out))
    if verb != "embed":
        wait(process, chance.uniform(0, 1), out)
    most = int(10 ** chance.uniform(0, 4 if verb == "embed" else 6))
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    return conclude(process, verb, out, mended=lambda: None)


def fails(folder: Path, chance: random.Random) -> str:
    """From a random one on, whatever makes, opens for writing or renames a file or a folder fails."""
    verb = chance.choice(VERBS)
    out = folder / f"run{chance.choice(SUFFIXES[:4]) if verb == 'embed' else ''}"  # the others are not opened by Python
    number = chance.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
    code = (FAILING, str(folder), chance.randint(1, 12 if verb == "embed" else 120), number)
    return conclude(started(command(verb, out), code), verb, out, mended=lambda: None)


FAULTS: list[Fault] = [
    Fault(name="disk full from any moment on", inject=fills_up, times=40, unfit=cannot_mount),
    Fault(name="disk of any small size", inject=too_small, times=60, unfit=cannot_mount),
    Fault(name="disk read-only from any moment on", inject=becomes_read_only, times=40, unfit=cannot_mount),
    Fault(name="files limited in size from any moment on", inject=limited, times=60),
    Fault(name="full, over quota, read-only or broken from any change of a file on", inject=fails, times=60),
]
"""Of pretrain, finetune and embed, as chance has it."""
