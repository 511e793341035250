"""Disks that are full, too small, limited, read-only or broken, from any moment on."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from processes import Process, Undisturbed, check_files, go_on, made_by
from running import COMMAND, selfie

from selfie_cli.files import TEMPORARY

VERBS = ("pretrain (selfie)", "finetune")
SUFFIXES = (".npy", ".jsonl", ".csv", ".safetensors", ".parquet")
REFUSED = ("will be written", "not writable", "cannot be written")
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
from selfie_cli.__main__ import main
main()
"""
Reference = Callable[..., Undisturbed]
Say = Callable[[str], None]


def chosen(chance: Random, undisturbed: Reference) -> Undisturbed:
    """pretrain or finetune, with states saved in every step, or nearly."""
    whole = undisturbed(chance.choice(VERBS))
    return replace(whole, words=[*whole.words, "--save-every", chance.choice((0.0001, 0.1))])


def conclude(process: Process, whole: Undisturbed, run: Path, mend: Callable[[], object] = bool) -> str:
    """Wait, check the message and the files, mend the disk, go on, and compare with the undisturbed run."""
    if process.end() == 0:
        assert made_by(run) == whole.made, "it ended as if nothing had been, with another result"
        return "finished all the same"
    refused, error = check_error(process, run)
    mend()
    begun = (run / "config.json").exists()
    if begun:
        assert f"selfie {whole.words[0]} --resume {run}" in error, f"how to go on is not said: {error}"
        check_files(run)
    go_on(run, whole)
    return "one line, resumed, same weights" if begun else ended(refused)


def ended(refused: bool) -> str:
    return "refused before the work" if refused else "one line, nothing left behind"


def check_error(process: Process, out: Path) -> tuple[bool, str]:
    """Return whether the command was refused before the work, and its error, the one and last line."""
    errors = [line for line in process.said.splitlines() if line.startswith("error: ")]
    assert errors == process.said.splitlines()[-1:], f"not one line: {process.said[-500:]}"
    refused = any(word in errors[0] for word in REFUSED)
    assert process.end() in ((1, 2) if refused else (1,))
    if os.strerror(errno.EROFS) not in errors[0]:  # there, nothing can be removed
        assert not list(out.parent.rglob(f"{TEMPORARY}*")), "temporary files are left"
    return refused, errors[0]


@contextlib.contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of its own, in memory; skips the test if this user cannot mount one."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(argv, check=False).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.fault("disk full from any moment on", times=40)
def test_full(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """Another program takes all room that there is, and all that becomes free."""
    whole = chosen(chance, undisturbed)
    with disk(tmp_path / "disk", 2**26) as there:
        run, filler = there / "run", there / "filler"
        with Process(*whole.words, "--out", run, log=tmp_path / "log") as process:
            process.until(run.exists)
            process.wait(chance.uniform(0, whole.seconds))
            with filler.open("wb", buffering=0) as file:
                while process.popen.poll() is None:
                    try:
                        file.write(bytes(2**12))
                    except OSError:
                        time.sleep(0.001)
            happened(conclude(process, whole, run, filler.unlink))


@pytest.mark.fault("disk of any small size", times=60)
def test_small(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """Room is made by enlarging the disk. How many states there will be is not always foreseen."""
    whole = chosen(chance, undisturbed)
    with disk(tmp_path / "disk", chance.randint(1, 2**24)) as there:
        enlarge = ["mount", "-o", "remount,size=64m", there]
        with Process(*whole.words, "--out", there / "run", log=tmp_path / "log") as process:
            happened(conclude(process, whole, there / "run", lambda: subprocess.run(enlarge, check=True)))


@pytest.mark.fault("files limited in size from any moment on", times=60)
def test_limited(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """From a random moment on no file may grow beyond a size, as under a quota."""
    whole, run = chosen(chance, undisturbed), tmp_path / "run"
    with Process(*whole.words, "--out", run, log=tmp_path / "log") as process:
        process.until(run.exists)
        process.wait(chance.uniform(0, whole.seconds))
        most = int(10 ** chance.uniform(0, 6))
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        happened(conclude(process, whole, run))


@pytest.mark.fault("full, over quota, read-only or broken from any change of a file on", times=60)
def test_failing(undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """From a random one on, all calls fail that create, open for writing or rename a file or a folder."""
    whole, run = chosen(chance, undisturbed), tmp_path / "run"
    argv = (sys.executable, "-c", FAILING, str(tmp_path), str(chance.randint(1, 120)), str(error_number(chance)))
    with Process(*whole.words, "--out", run, log=tmp_path.with_name(f"{tmp_path.name}.log"), argv=argv) as process:
        happened(conclude(process, whole, run))


def error_number(chance: Random) -> int:
    return chance.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))


@pytest.mark.fault("a disk that fails while embed writes", times=30)
def test_embed(images: Path, tmp_path: Path, chance: Random, happened: Say) -> None:
    """A small disk, a limit on the size of files, or calls that fail."""
    how, suffix = chance.choice(("small", "limited", "failing")), chance.choice(SUFFIXES)
    words = ("embed", images / "train", "--from", "bundled", "--precision", "fp32", "--workers", 1, "--out")
    whole, argv, log = tmp_path / f"whole{suffix}", COMMAND, tmp_path.with_name(f"{tmp_path.name}.log")
    selfie(*words, whole)
    with contextlib.ExitStack() as stack:
        folder = tmp_path / "disk"
        if how == "small":
            stack.enter_context(disk(folder, chance.randint(1, 2**16)))
        else:
            folder.mkdir()
        if how == "failing":
            argv = (sys.executable, "-c", FAILING, str(folder), str(chance.randint(1, 12)), str(error_number(chance)))
        out = folder / f"vectors{suffix}"
        process = stack.enter_context(Process(*words, out, log=log, argv=argv))
        if how == "limited":
            limits = int(10 ** chance.uniform(0, 4)), resource.RLIM_INFINITY
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, limits)
        if process.end():
            outcome = ended(check_error(process, out)[0])
            if how == "small":
                subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            read_only = os.strerror(errno.EROFS) in process.said  # and the first of two files cannot be removed
            selfie(*words, out, *(["--overwrite"] if read_only else []))
        else:
            outcome = "finished all the same"
        assert out.read_bytes() == whole.read_bytes()
        assert not list(folder.rglob(f"{TEMPORARY}*")), "temporary files are left"
    happened(outcome)
