"""Disks that are full, limited, read-only or broken, from any moment on."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from processes import Process, Undisturbed, check_files, go_on, made_by
from running import COMMAND

from selfie_cli.files import TEMPORARY

FULL = "disk full from any moment on"
LIMITED = "files limited in size from any moment on"
BROKEN = "full, over quota, read-only or broken from any change of a file on"
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
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
Reference = Callable[..., Undisturbed]
Say = Callable[[str], None]


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


def break_disk(how: str, process: Process, there: Path, chance: Random) -> Callable[[], object]:
    """Inject the fault, and return a function that mends the disk."""
    if how == FULL:  # another program takes all room that there is, and all that becomes free
        filler = there / "filler"
        with filler.open("wb", buffering=0) as file:
            while process.popen.poll() is None:
                try:
                    file.write(bytes(2**12))
                except OSError:
                    time.sleep(0.001)
        return filler.unlink
    if how == LIMITED:  # as under a quota
        limits = int(10 ** chance.uniform(0, 6)), resource.RLIM_INFINITY
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, limits)
    return lambda: None


def conclude(process: Process, whole: Undisturbed, out: Path, mend: Callable[[], object]) -> str:
    """Wait, check the message and the files, mend the disk, go on, and compare with the undisturbed run."""
    code, said = process.end(), process.said.splitlines()
    if code == 0:
        assert made_by(out) == whole.made, "it ended as if nothing had been, with another result"
        return "finished all the same"
    errors = [line for line in said if line.startswith("error: ")]
    assert errors == said[-1:], f"not one line: {process.said[-500:]}"
    refused, read_only = any(word in errors[0] for word in REFUSED), os.strerror(errno.EROFS) in errors[0]
    assert code in ((1, 2) if refused else (1,))
    if not read_only:  # there, nothing can be removed
        assert not list(out.parent.rglob(f"{TEMPORARY}*")), "temporary files are left"
    mend()
    begun = (out / "config.json").exists()
    if begun:
        assert f"selfie {whole.words[0]} --resume {out}" in errors[0], f"how to go on is not said: {errors[0]}"
        check_files(out)
    # The first of two files of vectors cannot be removed from a disk that has become read-only.
    go_on(out, whole, *(["--overwrite"] if read_only and out.suffix and not begun else []))
    assert not list(out.parent.rglob(f"{TEMPORARY}*")), "temporary files are left"
    if begun:
        return "one line, resumed, same weights"
    return "refused before the work" if refused else "one line, nothing left behind"


@pytest.mark.parametrize("how", [FULL, LIMITED, BROKEN])
@pytest.mark.fault("{how}", times=50)
def test_disk(how: str, undisturbed: Reference, tmp_path: Path, chance: Random, happened: Say) -> None:
    """Fault one of pretrain, finetune and embed, with states saved in every step, or nearly."""
    what = chance.choice(("pretrain (selfie)", "finetune", *(["embed"] if how != FULL else [])))
    embeds = what == "embed"
    suffix = chance.choice(SUFFIXES) if embeds else ""
    whole, there, argv = undisturbed(what, suffix=suffix), tmp_path / "disk", COMMAND
    often = [] if embeds else ["--save-every", chance.choice((0.0001, 0.1))]
    if how == BROKEN:
        count, number = chance.randint(1, 12 if embeds else 120), chance.choice(NUMBERS)
        argv = (sys.executable, "-c", FAILING, str(there), str(count), str(number))
    with contextlib.ExitStack() as stack:
        if how == FULL:
            stack.enter_context(disk(there, 2**26))
        else:
            there.mkdir()
        out = there / f"run{suffix}"
        process = stack.enter_context(Process(*whole.words, *often, "--out", out, log=tmp_path / "log", argv=argv))
        if how in (FULL, LIMITED) and not embeds:
            process.until(out.exists)
            process.wait(chance.uniform(0, whole.seconds))
        happened(conclude(process, whole, out, break_disk(how, process, there, chance)))
