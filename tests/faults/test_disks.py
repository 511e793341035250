"""Disks that are full, over quota, read-only or broken, from any moment on."""

import contextlib
import errno
import os
import resource
import sys
from pathlib import Path
from random import Random

import pytest
from processes import Process, Reference, Undisturbed, check_files, go_on, made_by
from running import COMMAND

from selfie_cli.files import TEMPORARY

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


def conclude(process: Process, whole: Undisturbed, out: Path) -> None:
    """Wait, check the message and the files, go on, and compare with the undisturbed run."""
    code, said = process.end(), process.said.splitlines()
    if code == 0:
        assert made_by(out) == whole.made, "it ended as if nothing had been, with another result"
        return
    errors = [line for line in said if line.startswith("error: ")]
    assert errors == said[-1:], f"not one line: {process.said[-500:]}"
    refused, read_only = any(word in errors[0] for word in REFUSED), os.strerror(errno.EROFS) in errors[0]
    assert code in ((1, 2) if refused else (1,))
    if not read_only:  # there, nothing can be removed
        assert not list(out.parent.rglob(f"{TEMPORARY}*")), "temporary files are left"
    begun = (out / "config.json").exists()
    if begun:
        assert f"selfie {whole.words[0]} --resume {out}" in errors[0], f"how to go on is not said: {errors[0]}"
        check_files(out)
    # The first of two files of vectors cannot be removed from a disk that has become read-only.
    go_on(out, whole, *(["--overwrite"] if read_only and out.suffix and not begun else []))
    assert not list(out.parent.rglob(f"{TEMPORARY}*")), "temporary files are left"


@pytest.mark.parametrize("how", [LIMITED, BROKEN])
@pytest.mark.fault("{how}", times=50)
def test_disk(how: str, undisturbed: Reference, tmp_path: Path, chance: Random) -> None:
    """Fault one of pretrain, finetune and embed, with states saved in every step, or nearly."""
    what = chance.choice(("pretrain (selfie)", "finetune", "embed"))
    embeds = what == "embed"
    suffix = chance.choice(SUFFIXES) if embeds else ""
    whole, out, argv = undisturbed(what, suffix=suffix), tmp_path / "disk" / f"run{suffix}", COMMAND
    out.parent.mkdir()
    often = [] if embeds else ["--save-every", chance.choice((0.0001, 0.1))]
    if how == BROKEN:
        count, number = chance.randint(1, 12 if embeds else 120), chance.choice(NUMBERS)
        argv = (sys.executable, "-c", FAILING, str(out.parent), str(count), str(number))
    with Process(*whole.words, *often, "--out", out, log=tmp_path / "log", argv=argv) as process:
        if how == LIMITED:
            if not embeds:
                process.until(out.exists)
                process.wait(chance.uniform(0, whole.seconds))
            limits = int(10 ** chance.uniform(0, 6)), resource.RLIM_INFINITY
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, limits)
        conclude(process, whole, out)
