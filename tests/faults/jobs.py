"""Jobs of two processes under torchrun, one of which, or torchrun itself, is killed, stopped or out of disk."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from injection import Fault, Lost
from running import ENVIRONMENT, PATIENCE, SMALL, TORCHRUN, draw_folder, two

WITHIN = 60.0  # seconds in which a job has to end that has lost a process
TRAINING = ("--device", "cpu", "--workers", 2, "--save-every", 0)
ASKED = {
    "selfie": ("pretrain", "IMAGES", *SMALL, "--steps", 40, *TRAINING),
    "byol": ("pretrain", "IMAGES", *SMALL, "--method", "byol", "--steps", 40, *TRAINING),
    "finetune": (
        *("finetune", "--dataset", "IMAGES", "--from", "bundled", "--fraction", 1, "--seeds", 1, "--steps", 20),
        *("--lr", 0.03, "--batch-size", 8, "--precision", "fp32", "--no-report", *TRAINING),
    ),
}
"""What the jobs do, by a word for it."""
FULL = """
import os, resource
if os.environ["RANK"] == "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""


@functools.cache
def place() -> Path:
    """A folder for what the faults share, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="faults-jobs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    draw_folder(folder / "images")
    return folder


def asked(what: str, out: Path) -> list[str]:
    return [str(place() / "images") if each == "IMAGES" else str(each) for each in (*ASKED[what], "--out", out)]


def outcome(run: Path) -> dict[str, object]:
    """All that a run came to: each network's weights, and accuracies."""
    found: dict[str, object] = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run.rglob("model.safetensors")
    }
    for file in run.rglob("results.json"):
        found[str(file.relative_to(run))] = {**json.loads(file.read_text()), "run": None}
    return found


@functools.cache
def uninterrupted(what: str) -> tuple[dict[str, object], float]:
    """What the job comes to when nothing happens to it, and how many seconds it takes."""
    run, begun = place() / what, time.monotonic()
    ended = two(*asked(what, run))
    if any(code for code, *_ in ended):
        raise Lost(f"a job that nothing happened to failed: {ended}")
    return outcome(run), time.monotonic() - begun


class Job:
    """A job of two processes that torchrun has started. `before` is Python code that each runs first."""

    def __init__(self, folder: Path, arguments: list[str], *options: str, before: str = "") -> None:
        (folder / "program.py").write_text(f"{before}\nfrom selfie_cli.__main__ import main\nmain()\n")
        self.log = folder / "log"
        argv = [*TORCHRUN, *options, str(folder / "program.py"), *arguments]
        with self.log.open("w") as log:
            self.torchrun = subprocess.Popen(argv, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
        self.seen: set[int] = set()

    def processes(self) -> dict[int, int]:
        """The processes that torchrun has started and that live, by rank."""
        found = {}
        children = Path(f"/proc/{self.torchrun.pid}/task/{self.torchrun.pid}/children")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends just now
            for child in map(int, children.read_text().split()):
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found.update({int(each[5:]): child for each in variables if each.startswith(b"RANK=")})
        self.seen.update(found.values())
        return found

    def until(self, happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Raises Lost if `happened` does not become true."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise Lost(f"waited for {seconds:.0f} seconds in vain: {self}")
            time.sleep(0.01)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def __str__(self) -> str:
        """What was said before torchrun's own account, for the results."""
        return self.said()[:2000]

    def ours(self) -> list[str]:
        """The lines by which selfie ends."""
        return [line for line in self.said().splitlines() if line.startswith("error: ")]

    def wait(self, seconds: float = WITHIN) -> int:
        """Until all its processes have ended. Raises Lost if they do not; they are killed then."""
        try:
            self.until(
                lambda: not (self.processes() or self.torchrun.poll() is None or any(map(alive, self.seen))), seconds
            )
        finally:
            for process in filter(alive, self.seen):
                os.kill(process, signal.SIGKILL)
            self.torchrun.kill()
            self.torchrun.wait()
        return self.torchrun.returncode


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def states(run: Path) -> list[Path]:
    return list(run.rglob("state/[0-9]*"))


def told(job: Job, run: Path, verb: str) -> None:
    """Raises Lost if the user was not told how to go on, or was shown the inside of our program."""
    resume = f"torchrun --nproc-per-node 2 -m selfie_cli {verb} --resume {run}"
    if not any(resume in line for line in job.ours()):
        raise Lost(f"nobody was told how to go on: {job}")
    if "selfie_cli/" in job.said() or "frame #" in job.said():
        raise Lost(f"a traceback was shown: {job}")


def resumed(run: Path, what: str) -> None:
    """Go on, or begin again where nothing was begun. Raises Lost unless it ends as if nothing had happened."""
    goes_on = (run / "config.json").exists()
    ended = two(ASKED[what][0], "--resume", run) if goes_on else two(*asked(what, run))
    if any(code for code, *_ in ended):
        raise Lost(f"could not be resumed: {ended}")
    same(run, what)


def same(run: Path, what: str) -> None:
    if outcome(run) != uninterrupted(what)[0]:
        raise Lost("other weights or accuracies than without interruption")
    if [*run.rglob(".tmp*"), *run.rglob("state")]:
        raise Lost("files were left behind")


def kill_one(folder: Path, chance: random.Random) -> str:
    what = chance.choice(list(ASKED))
    _, seconds = uninterrupted(what)
    run = folder / "run"
    job = Job(folder, asked(what, run))
    job.until(lambda: len(job.processes()) == 2)
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0, seconds))
    else:  # most of the time goes by before there is anything to lose
        job.until(lambda: bool(states(run)) or job.torchrun.poll() is not None)
        time.sleep(chance.uniform(0, 1))
    rank = chance.randrange(2)
    begun, at_work = (run / "config.json").exists(), states(run)
    try:
        os.kill(job.processes()[rank], signal.SIGKILL)
    except (LookupError, OSError):
        job.wait()
        same(run, what)
        return "had ended before"
    if job.wait() == 0:
        raise Lost("torchrun says that all is well")
    if at_work:
        told(job, run, ASKED[what][0])
    finished = begun and json.loads((run / "config.json").read_text())["progress"]["status"] == "finished"
    same(run, what) if finished else resumed(run, what)
    if finished:
        return "killed when the run was finished"
    return "ended within a minute, resumed: identical" if begun else "ended within a minute, begun again: identical"


def fill_disk(folder: Path, chance: random.Random) -> str:
    """The first process cannot write its state, by a limit on the size of files."""
    run = folder / "run"
    job = Job(folder, asked("selfie", run), before=FULL)
    job.until(lambda: len(job.processes()) == 2)
    if job.wait(PATIENCE) == 0:
        raise Lost("torchrun says that all is well")
    told(job, run, "pretrain")
    if not any("File too large" in line for line in job.ours()):
        raise Lost(f"nobody was told why: {job}")
    resumed(run, "selfie")
    return "both ended, each with a line; resumed: identical"


def restart(folder: Path, chance: random.Random) -> str:
    """Twice, and torchrun starts the job again."""
    what = chance.choice(("selfie", "finetune"))
    uninterrupted(what)
    run = folder / "run"
    overwrite = chance.choice(([], ["--overwrite"]))
    job = Job(folder, asked(what, run) + overwrite, "--max-restarts", "2")
    job.until(lambda: bool(states(run)))
    before = max(int(state.name) for state in states(run))
    os.kill(job.processes()[chance.randrange(2)], signal.SIGKILL)
    if job.wait(PATIENCE) != 0:
        raise Lost(f"torchrun has given up: {job}")
    same(run, what)
    if sum(f"run: {run}" in line for line in job.said().splitlines()) != 1:
        raise Lost(f"after step {before} it was begun anew: {job}")
    return "went on by itself: identical"


def other_number(folder: Path, chance: random.Random) -> str:
    """A run of two processes is resumed in one."""
    run = folder / "run"
    job = Job(folder, asked("selfie", run))
    job.until(lambda: bool(states(run)))
    job.torchrun.send_signal(signal.SIGTERM)
    job.wait()
    told(job, run, "pretrain")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    argv = [sys.executable, "-m", "selfie_cli", "pretrain", "--resume", str(run)]
    alone = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    if alone.returncode != 2 or "was started with 2 processes, not 1" not in alone.stderr:
        raise Lost(f"one process went on with it: {alone.stderr}")
    if before != {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}:
        raise Lost("the run was changed")
    resumed(run, "selfie")
    return "refused; by two: identical"


def unfit() -> str | None:
    return None if sys.platform == "linux" else "torchrun's processes are found in /proc"


FAULTS: list[Fault] = [
    Fault(name="SIGKILL of one of two processes at any moment", inject=kill_one, times=20, unfit=unfit),
    Fault(name="a full disk in one of two processes", inject=fill_disk, times=2, unfit=unfit),
    Fault(name="SIGKILL under torchrun --max-restarts", inject=restart, times=5, unfit=unfit),
    Fault(name="SIGTERM of torchrun, resumed by one process", inject=other_number, times=3, unfit=unfit),
]
