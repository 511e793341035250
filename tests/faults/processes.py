"""Processes of the program, and the same commands undisturbed, to compare with."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from running import COMMAND, ENVIRONMENT, PATIENCE, SMALL, TORCHRUN, selfie, two

from selfie_cli.files import TEMPORARY, read_json
from selfie_cli.training.checkpoint import KEPT, read_state, saved_states
from selfie_cli.weights import load_weights

STEPS = 40
TRAINING = ("--device", "cpu", "--workers", 2, "--save-every", 0.1)
PRETRAIN = ("pretrain", "IMAGES", *SMALL, *TRAINING, "--steps", STEPS)
LABELLED = ("--dataset", "IMAGES", "--from", "bundled", *SMALL[2:], *TRAINING)
COMMANDS: dict[str, tuple[object, ...]] = {
    "pretrain (selfie)": PRETRAIN,
    "pretrain (byol)": (*PRETRAIN, "--method", "byol"),
    "finetune": ("finetune", *LABELLED, "--fraction", 0.5, "--seeds", 2, "--steps", 10),
    "embed": ("embed", "IMAGES", "--from", "bundled", "--precision", "fp32", "--workers", 1),
    "curve": ("curve", *LABELLED, "--fractions", "0.5,1", "--seeds", 1, "--steps", 8),
}


class Process:
    """`selfie` in a process of its own, which ends with the with block. Everything it prints goes to `log`."""

    def __init__(self, *words: object, log: Path, argv: Sequence[str] = COMMAND) -> None:
        self.log = log
        command = [*argv, *map(str, words)]
        with log.open("wb") as file:  # through a pipe: a limit on the process's files is none on its log
            self.writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
            self.popen = subprocess.Popen(command, env=ENVIRONMENT, stdout=self.writer.stdin, stderr=subprocess.STDOUT)
            self.writer.stdin.close()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds or the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.popen.poll() is None:
            assert time.monotonic() < deadline, "a process got nowhere"
            time.sleep(0.002)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= deadline)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and return the exit code. A traceback fails the test."""
        if number is not None:
            self.popen.send_signal(number)
        code = self.popen.wait(PATIENCE)
        self.writer.wait(PATIENCE)
        assert "Traceback" not in self.said, f"a traceback: {self.said[-300:]}"
        return code

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        self.writer.wait(PATIENCE)


class Job(Process):
    """A job of two processes under torchrun."""

    def __init__(self, *words: object, folder: Path) -> None:
        self.seen: set[int] = set()
        super().__init__(*words, log=folder / "log", argv=(*TORCHRUN, "-m", "selfie_cli"))

    def ranks(self) -> dict[int, int]:
        """The ids of the living processes that torchrun has started, by rank."""
        found = {}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends just now
            children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
            for child in map(int, children.split()):
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found.update({int(each[5:]): child for each in variables if each.startswith(b"RANK=")})
        self.seen.update(found.values())
        return found

    def end(self, seconds: float = PATIENCE) -> int:
        """Return torchrun's exit code when all of its processes have ended."""
        deadline = time.monotonic() + seconds
        try:
            while self.ranks() or self.popen.poll() is None or any(map(is_alive, self.seen)):
                assert time.monotonic() < deadline, f"a process did not end within {seconds:.0f} seconds"
                time.sleep(0.01)
        finally:
            for process in filter(is_alive, self.seen):
                os.kill(process, signal.SIGKILL)
        self.writer.wait(PATIENCE)
        return self.popen.returncode


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(frozen=True)
class Undisturbed:
    """A run without a fault, its command without --out, seconds until its folder existed, and from then to its end."""

    words: list[object]
    made: dict[str, object]
    before: float
    seconds: float
    processes: int


Reference = Callable[..., Undisturbed]


def run_undisturbed(words: list[object], run: Path, processes: int) -> Undisturbed:
    before, begun = 0.0, time.monotonic()
    if processes == 2:
        run_two(*words, "--out", run)
    else:
        with Process(*words, "--out", run, log=run.with_name("log")) as process:
            process.until(run.exists)
            before = time.monotonic() - begun
            assert process.end() == 0, f"the undisturbed run fails: {process.said[-300:]}"
    return Undisturbed(words, made_by(run), before, time.monotonic() - begun - before, processes)


def run_two(*words: object) -> None:
    ended = two(*words)
    assert all(code == 0 for code, *_ in ended), f"a job of two fails: {ended}"


def made_by(run: Path) -> dict[str, object]:
    """All files of a run and its cells: hashes of weights and vectors, results, whether it finished, its last step."""
    return {str(file.relative_to(run)): content_of(file) for file in ([run] if run.is_file() else run.rglob("*"))}


def content_of(file: Path) -> object:
    if file.name == "model.safetensors" or file.name.startswith("run."):
        return hashlib.sha256(file.read_bytes()).hexdigest()
    if file.name == "results.json":
        return read_json(file) | {"run": None}
    if file.name == "config.json":
        return read_json(file)["progress"]["status"]
    if file.name == "metrics.jsonl":
        steps = [line["step"] for line in lines_of(file)]
        assert steps == sorted(set(steps)), "steps in metrics.jsonl are double or out of order"
        return steps[-1:]
    return None


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file, if it exists."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def states(run: Path) -> list[Path]:
    return sorted(run.rglob("state/[0-9]*"))


def has_finished(run: Path) -> bool:
    return (run / "config.json").is_file() and read_json(run / "config.json")["progress"]["status"] == "finished"


def check_files(run: Path, completed: Iterable[Path] = ()) -> None:
    """Check that all files under their final names are whole, and that only newer states replaced `completed` ones."""
    for file in run.rglob("*.safetensors"):
        if TEMPORARY not in str(file):
            load_weights(file)
    for folder in {state.parent for state in completed} | {state.parent for state in states(run)}:
        if not has_finished(folder.parent):
            kept = saved_states(folder)[-KEPT:]
            newest = max((state for state in completed if state.parent == folder), default=None)
            assert newest is None or (kept and kept[-1] >= newest), "a completed state is gone"
            for state in kept:
                read_state(state)


def go_on(run: Path, reference: Undisturbed, *more: object) -> None:
    """Resume the run, or repeat the command if there is none; it must end like the undisturbed one."""
    finished, there = has_finished(run), (run / "config.json").is_file()
    words = (reference.words[0], "--resume", run) if there else (*reference.words, "--out", run, *more)
    if reference.processes == 2:
        run_two(*words)
    else:
        said = selfie(*words, code=int(finished)).stderr
        assert not finished or f"{run} is finished" in said, "a finished run is not told from a stopped one"
        assert "warning" not in said, f"resuming warns: {said[-300:]}"
    assert made_by(run) == reference.made, "the run ends otherwise than the undisturbed one"
