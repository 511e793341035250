"""Processes that are stopped or killed, states that were damaged since, and two processes in one folder.

Each run is compared with one of the same command that nothing happened to.
"""

import atexit
import contextlib
import functools
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
from dataclasses import dataclass
from pathlib import Path

from injection import Fault, Lost
from running import COMMAND, ENVIRONMENT, draw_folder, same_weights, selfie

from selfie_cli.errors import SelfieError
from selfie_cli.files import TEMPORARY, read_json
from selfie_cli.signals import STOPPING, ignored
from selfie_cli.training.checkpoint import CHECKSUMS, KEPT, OPTIMIZER, WEIGHTS, read_state, saved_states

STEPS = 40
PATIENCE = 240
"""Seconds; a process that does not get anywhere in that time never will."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Lost(what)


class Process:
    """`selfie` in a process of its own, which does not outlive the with block. `code` is how it ended."""

    def __init__(self, *words: object, log: Path, program: tuple[str, ...] = COMMAND) -> None:
        self.log = log
        with log.open("wb") as file:
            argv = [*program, *map(str, words)]
            self.popen = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        self.begun = time.monotonic()
        self.seconds = 0.0

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until it is true, the process has ended, or patience has."""
        while not condition() and self.popen.poll() is None:
            demand(time.monotonic() < self.begun + PATIENCE, "a process that got nowhere")
            time.sleep(0.001)

    def until_seconds(self, seconds: float) -> None:
        self.until(lambda: time.monotonic() >= self.begun + seconds)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait; returns the exit code. Nothing that it said may be a traceback."""
        if number is not None:
            self.popen.send_signal(number)
        try:
            code = self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost("a process that did not end") from None
        self.seconds = time.monotonic() - self.begun
        demand("Traceback" not in self.said, f"a traceback: {self.said[-300:]}")
        return code

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()


def said_by(*words: object, code: int = 0) -> str:
    """What a command in this process, where it starts sooner, says on stderr. Its bugs are losses, too."""
    try:
        return selfie(*words, code=code).stderr
    except Exception as error:
        raise Lost(f"{words[0]} {words[1]}: {error!r}") from error


@functools.cache
def place() -> Path:
    """A folder for what injections share, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="faults-shared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def images() -> Path:
    return draw_folder(place() / "images", train=60, test=20)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to, and the words that made it, but for --out.

    `before` and `seconds`: how many passed until its folder was there, and from then to its end.
    """

    run: Path
    words: tuple[object, ...]
    before: float
    seconds: float


NETWORK = ("--device", "cpu", "--precision", "fp32", "--no-report", "--save-every", 0.1)


@functools.cache
def pretrained(method: str) -> Undisturbed:
    """In a process of its own. Two workers decode its images, and it saves its state some ten times on the way."""
    small = ("--backbone", "resnetv2_18_w16", "--steps", STEPS, "--batch-size", 8, "--workers", 2)
    words = ("pretrain", images(), "--method", method, *small, *NETWORK)
    run = place() / method
    with Process(*words, "--out", run, log=place() / f"{method}.log") as process:
        process.until(run.exists)
        before = time.monotonic() - process.begun
        demand(process.end() == 0, f"the undisturbed run fails: {process.said[-300:]}")
    return Undisturbed(run, words, before, process.seconds - before)


def compared(verb: str, *words: object) -> Undisturbed:
    """Of finetune or curve, in this process."""
    words = (verb, "--dataset", images(), "--from", pretrained("selfie").run, *words, "--batch-size", 8, *NETWORK)
    begun = time.monotonic()
    said_by(*words, "--out", place() / verb)
    return Undisturbed(place() / verb, words, 0, time.monotonic() - begun)


@functools.cache
def finetuned() -> Undisturbed:
    return compared("finetune", "--fraction", 0.5, "--seeds", 2, "--steps", 10)


@functools.cache
def curved() -> Undisturbed:
    return compared("curve", "--fractions", "0.5,1", "--seeds", 1, "--steps", 8)


def lines_of(run: Path) -> list[dict[str, float]]:
    """What is in metrics.jsonl, but for a last line that is not whole."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def check_whole(run: Path, reference: Undisturbed) -> None:
    """The run and its cells have ended as the undisturbed one and its cells did, and nothing else is left."""
    names = {folder.relative_to(run): folder for folder in (run, *(run / "cells").glob("*"))}
    others = {folder.relative_to(reference.run) for folder in (reference.run, *(reference.run / "cells").glob("*"))}
    demand(names.keys() == others, f"other cells: {sorted(map(str, names.keys() ^ others))}")
    demand(not list(run.rglob(f"{TEMPORARY}*")), "temporary files are left")
    for name, folder in names.items():
        demand(read_json(folder / "config.json")["progress"]["status"] == "finished", "a run does not say it finished")
        demand(same_weights(folder, reference.run / name), "final weights differ")
        here, there = (sorted(file.name for file in one.iterdir()) for one in (folder, reference.run / name))
        demand(here == there, f"other files: {set(here) ^ set(there)}")
        steps = [line["step"] for line in lines_of(folder)]
        demand(steps == sorted(set(steps)), "steps in metrics.jsonl are double or out of order")
        demand(steps[-1:] == [line["step"] for line in lines_of(reference.run / name)][-1:], "metrics.jsonl is cut")
        if (folder / "results.json").is_file():
            results = [read_json(one / "results.json") | {"run": ""} for one in (folder, reference.run / name)]
            demand(results[0] == results[1], "results differ")


def check_states(run: Path, completed: set[Path]) -> int:
    """Every state that is kept can be read, and none that was `completed` is gone but for newer ones.

    Returns how many there are, of the run and its cells together.
    """
    count = 0
    for folder in {path.parent for path in completed} | set(run.rglob("state")):
        if read_json(folder.parent / "config.json")["progress"]["status"] == "finished":
            continue
        states = saved_states(folder)
        newest = max((path for path in completed if path.parent == folder), default=None)
        demand(newest is None or (states and states[-1] >= newest), "a completed state is gone")
        for path in states[-KEPT:]:
            try:
                read_state(path)
            except (OSError, ValueError, SelfieError) as error:
                raise Lost(f"a state cannot be read after a kill: {error}") from None
            count += 1
    return count


def go_on(run: Path, reference: Undisturbed, folder: Path, *, process: bool = False) -> str:
    """Resume the run, or give the same command again where there is nothing to resume; returns what was done."""
    there = (run / "config.json").is_file()
    over = there and read_json(run / "config.json")["progress"]["status"] == "finished"
    words = (reference.words[0], "--resume", run) if there else (*reference.words, "--out", run)
    if process:
        with Process(*words, log=folder / "again.log") as another:
            code = another.end()
        said = another.said
        demand(code == int(over), f"not resumed, exit code {code}: {said[-300:]}")
    else:
        said = said_by(*words, code=int(over))
    demand(f"{run} is finished" in said or not over, "a finished run is not told from a stopped one")
    demand("warning" not in said, f"resuming warns: {said[-300:]}")
    return "it had finished" if over else "resumed" if there else "no run was there yet: the same command ran"


def killed(reference: Callable[[], Undisturbed]) -> Callable[[Path, random.Random], str]:
    """SIGKILL at any moment of a run, and once in ten times before it, where there is nothing to lose.

    The moment is counted from the last thing seen, so that it is not missed where the machine has become slower.
    """

    def inject(folder: Path, chance: random.Random) -> str:
        whole, run = reference(), folder / "run"
        early, share = chance.random() < 0.1, chance.random()
        completed: set[Path] = set()

        def look() -> bool:
            with contextlib.suppress(FileNotFoundError):  # what it walks through may be renamed on the way
                completed.update(path for state in run.rglob("state") for path in saved_states(state))
            return time.monotonic() >= moment

        with Process(*whole.words, "--out", run, log=folder / "log") as process:
            if not early:
                process.until(run.exists)
            moment = time.monotonic() + share * (whole.before if early else whole.seconds)
            process.until(look)
            code = process.end(signal.SIGKILL)
        demand(code in (0, -signal.SIGKILL), f"exit code {code}")
        states = check_states(run, completed)
        finished = {cell: stamps(cell) for cell in run.glob("cells/*") if (cell / "results.json").is_file()}
        outcome = go_on(run, whole, folder, process=whole.words[0] == "pretrain")
        check_whole(run, whole)
        for cell, before in finished.items():
            demand(stamps(cell)["model.safetensors"] == before["model.safetensors"], "a finished cell is trained again")
        if outcome != "resumed":
            return outcome
        if finished:
            return f"{outcome}: finished networks stay as they are, others are trained"
        return f"{outcome} from {'a state' if states else 'the beginning: no state yet'}"

    return inject


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def killed_while_writing(folder: Path, chance: random.Random) -> str:
    """SIGKILL while a state is in its temporary folder: which one, and how far it has come, are chance."""
    whole, run = pretrained("selfie"), folder / "run"
    after = chance.randint(0, 4)
    with Process(*whole.words, "--out", run, log=folder / "log") as process:
        process.until(lambda: (steps := saved_states(run / "state")) and int(steps[-1].name) > 5 * after)
        deadline = time.monotonic() + PATIENCE
        while not (half := list((run / "state").glob(f"{TEMPORARY}*"))) and process.popen.poll() is None:
            demand(time.monotonic() < deadline, "a process that got nowhere")
        time.sleep(chance.uniform(0, 0.01))
        demand(process.end(signal.SIGKILL) == -signal.SIGKILL, "it ended before it was killed")
    half = list((run / "state").glob(f"{TEMPORARY}*"))
    check_states(run, set(saved_states(run / "state")))
    go_on(run, whole, folder)
    check_whole(run, whole)
    return "the half-written state is removed, resumed from the last" if half else "it was just whole: resumed from it"


def stopped(number: signal.Signals) -> Callable[[Path, random.Random], str]:
    """A signal at any moment of training: the state of exactly that step is saved."""

    def inject(folder: Path, chance: random.Random) -> str:
        whole, run = pretrained(chance.choice(["selfie", "byol"])), folder / "run"
        after = chance.randint(1, STEPS * 2 // 3)
        words = [*whole.words[:-1], 0.05, "--out", run]
        with Process(*words, log=folder / "log") as process:
            process.until(lambda: (lines := lines_of(run)) and lines[-1]["step"] >= after)
            time.sleep(chance.uniform(0, 0.05))
            code = process.end(number)
        demand(code == 128 + number, f"exit code {code}")
        demand(f"Resume with: selfie pretrain --resume {run}" in process.said, "nobody says how to resume")
        demand(not list(run.rglob(f"{TEMPORARY}*")), "temporary files are left")
        last = int(lines_of(run)[-1]["step"])
        demand(read_state(saved_states(run / "state")[-1])[0] == last, "the state is not of the last step")
        go_on(run, whole, folder)
        check_whole(run, whole)
        return f"exit {code}, state of that step saved, resumed"

    return inject


def stopped_early(folder: Path, chance: random.Random) -> str:
    """A signal while libraries are loaded or images decoded."""
    whole, run, number = pretrained("selfie"), folder / "run", chance.choice([signal.SIGINT, signal.SIGTERM])
    with Process(*whole.words, "--out", run, log=folder / "log") as process:
        process.until(lambda: handles(process.popen.pid, signal.SIGTERM))
        moment = time.monotonic() + chance.uniform(0, whole.before)
        process.until(lambda: run.exists() or time.monotonic() >= moment)
        code = process.end(number)
    demand(code == 128 + number, f"exit code {code}")
    demand(not list(folder.rglob(f"{TEMPORARY}*")), "temporary files are left")
    begun = (run / "config.json").is_file()
    demand(f"Resume with: selfie pretrain --resume {run}" in process.said or not begun, "nobody says how to resume")
    go_on(run, whole, folder)
    check_whole(run, whole)
    return f"exit {code}, {'the run had just begun: resumed' if begun else 'nothing left, the same command ran'}"


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal: Python has come as far as the program's first lines."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def only_linux() -> str | None:
    return None if Path("/proc/self/status").exists() else "it needs Linux's /proc"


SLOW = (
    "import time\n"
    "from selfie_cli.training import state\n"
    "from selfie_cli.__main__ import main\n"
    "save, state.save_weights = state.save_weights, lambda *given: (save(*given), time.sleep(60))\n"
    "main()\n"
)


def stopped_twice(folder: Path, chance: random.Random) -> str:
    """Ctrl-C, and again while the state is being written to a disk that takes a minute for it."""
    whole, run = pretrained("selfie"), folder / "run"
    words = [*whole.words[:-1], 60, "--out", run]
    with Process(*words, log=folder / "log", program=(sys.executable, "-c", SLOW)) as process:
        process.until(lambda: (run / "metrics.jsonl").exists())
        time.sleep(chance.uniform(0, 0.2))
        process.popen.send_signal(signal.SIGINT)
        process.until(lambda: list((run / "state").glob(f"{TEMPORARY}*/{WEIGHTS}")))
        first = time.monotonic()
        time.sleep(chance.uniform(0.1, 0.9))
        process.popen.send_signal(signal.SIGINT)  # of a terminal that tells a whole job, the same one again
        time.sleep(1.2 - (time.monotonic() - first))
        demand(process.popen.poll() is None, "an echo of the first Ctrl-C counts as the second")
        begun = time.monotonic()
        code = process.end(signal.SIGINT)
    demand(code == 130, f"exit code {code}")
    demand(time.monotonic() - begun < 5, "the second Ctrl-C is not obeyed at once")
    demand(saved_states(run / "state") == [], "a state that is not whole")
    go_on(run, whole, folder)
    check_whole(run, whole)
    return "exit 130 at once, resumed"


@functools.cache
def stopped_with_two_states() -> Path:
    """A run that was killed when it had two states."""
    whole, run = pretrained("selfie"), place() / "stopped"
    with Process(*whole.words, "--out", run, log=place() / "stopped.log") as process:
        process.until(lambda: len(saved_states(run / "state")) == KEPT)
        process.end(signal.SIGKILL)
    return run


def alter(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randint(1, 255)
    file.write_bytes(data)


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


def damaged(damage: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], str]:
    """Of the newest state one file, whichever, is not as it was written."""

    def inject(folder: Path, chance: random.Random) -> str:
        run = folder / "run"
        shutil.copytree(stopped_with_two_states(), run)
        newest = saved_states(run / "state")[-1]
        damage(newest / chance.choice([WEIGHTS, OPTIMIZER, CHECKSUMS]), chance)
        said = said_by("pretrain", "--resume", run)
        demand(f"warning: the state {newest} is damaged and passed over" in said, "nobody says that it is damaged")
        check_whole(run, pretrained("selfie"))
        return "told, resumed from the state before"

    return inject


def both_damaged(folder: Path, chance: random.Random) -> str:
    run = folder / "run"
    shutil.copytree(stopped_with_two_states(), run)
    for state in saved_states(run / "state"):
        chance.choice([alter, cut, remove])(state / chance.choice([WEIGHTS, OPTIMIZER]), chance)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = said_by("pretrain", "--resume", run, code=1).splitlines()[-1]
    demand("error: no state in" in said and "--overwrite" in said, f"no clear error: {said}")
    demand(before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "a file is altered")
    return "refused: no state can be read, start anew with --overwrite"


def second_run(folder: Path, chance: random.Random) -> str:
    """The first one stands still meanwhile, wherever it is in its training."""
    whole, run = pretrained("selfie"), folder / "run"
    with Process(*whole.words, "--out", run, log=folder / "log") as process:
        process.until(lambda: (run / "metrics.jsonl").exists())
        time.sleep(chance.uniform(0, 1))
        process.popen.send_signal(signal.SIGSTOP)
        os.waitpid(process.popen.pid, os.WUNTRACED)  # its threads may write for a moment yet
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        again = [*whole.words, "--out", run]
        for words in (["pretrain", "--resume", run], [*again, "--overwrite"], again):
            said = said_by(*words, code=1).splitlines()[-1]
            demand(f"another process is working on {run}" in said, f"nobody says why not: {said}")
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        touched = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        demand(not touched, f"it touches the first: {touched}")
        demand(process.end(signal.SIGCONT) == 0, "the first run does not end well")
    check_whole(run, whole)
    return "refused, with --resume, --overwrite and neither; the first run ends as ever"


def two_at_once(folder: Path, chance: random.Random) -> str:
    whole, run = pretrained("selfie"), folder / "run"
    words = [*whole.words, "--out", run]
    with Process(*words, log=folder / "one") as one, Process(*words, log=folder / "other") as other:
        codes = sorted([one.end(), other.end()])
    demand(codes == [0, 1], f"exit codes {codes}")
    said = one.said + other.said
    demand(f"{run} is not empty" in said or f"another process is working on {run}" in said, "nobody says why not")
    check_whole(run, whole)
    return "one is refused, the other ends as ever"


FAULTS = [
    *(
        Fault(
            name=f"SIGKILL at any moment of pretrain ({method})",
            inject=killed(functools.partial(pretrained, method)),
            times=100,
        )
        for method in ("selfie", "byol")
    ),
    Fault(name="SIGKILL in the middle of writing a state", inject=killed_while_writing, times=20),
    Fault(name="SIGKILL at any moment of finetune", inject=killed(finetuned), times=10),
    Fault(name="SIGKILL at any moment of curve", inject=killed(curved), times=10),
    *(
        Fault(
            name=f"{number.name} at any moment of training",
            inject=stopped(number),
            times=20,
            unfit=lambda number=number: f"{number.name} is ignored here" if ignored(number) else None,
        )
        for number in STOPPING
    ),
    Fault(name="SIGINT or SIGTERM before training", inject=stopped_early, times=40, unfit=only_linux),
    Fault(name="a second Ctrl-C while the first is served", inject=stopped_twice, times=5),
    *(
        Fault(name=f"the newest state has {what}", inject=damaged(damage), times=20)
        for what, damage in (("one byte altered", alter), ("a file cut short", cut), ("a file missing", remove))
    ),
    Fault(name="both states are damaged", inject=both_damaged, times=20),
    Fault(name="a second run into the folder of one that is running", inject=second_run, times=10),
    Fault(name="two runs into one folder, started at once", inject=two_at_once, times=5),
]
