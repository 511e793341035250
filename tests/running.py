"""Run commands: in this process where possible, because importing torch takes seconds, or in one of their own."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import selfie_cli
from selfie_cli.cli.app import app
from selfie_cli.data import synthetic
from selfie_cli.files import MACHINE, TEMPORARY

# fp32: some CPUs choose the precision by measuring, which does not repeat.
SMALL = ("--backbone", "resnetv2_18_w16", "--batch-size", "8", "--precision", "fp32", "--no-report")


def selfie(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    """Run a command that must exit with `code`. A bug's exception is raised here."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def document(*arguments: object) -> Any:
    """Return the JSON document of a command."""
    return json.loads(selfie(*arguments, "--json").stdout)


def rows(*arguments: object) -> list[Any]:
    """Return the JSON Lines of a command: embed or predict without --out."""
    return [json.loads(line) for line in selfie(*arguments).stdout.splitlines()]


def read(file: Path | str) -> Any:
    return json.loads(Path(file).read_text())


def lines_of(file: Path | str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def config_of(run: Path | str) -> dict[str, Any]:
    return dict(read(Path(run, "config.json")))


def stopped(run: Path | str, copy: Path | str) -> Path:
    """Copy a finished run as if it had been killed just before its end; its saved states are gone."""
    shutil.copytree(run, copy)
    for name in ("model.safetensors", "results.json", "report.html"):
        Path(copy, name).unlink(missing_ok=True)
    change(copy, progress={"status": "running"})
    return Path(copy)


def change(run: Path | str, **sections: Any) -> None:
    """Replace sections of a run's config."""
    Path(run, "config.json").write_text(json.dumps(config_of(run) | sections))


def error_of(*arguments: object, code: int = 1) -> str:
    """Return the error of a command that must fail: the one and last line on stderr, with nothing on stdout."""
    result = selfie(*arguments, code=code)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0].removeprefix("error: ")


# Other processes import the package of this checkout, installed or not, from any folder.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(selfie_cli.__file__).parents[1])}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)
COMMAND = (sys.executable, "-m", "selfie_cli")


# To be followed by a program and its arguments.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


PATIENCE = 240  # seconds to wait for a process


def two(*arguments: object) -> list[tuple[int, str, str]]:
    """Start two processes as torchrun would, without torchrun; return exit code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env={**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def process(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    argv = [*COMMAND, *map(str, arguments)]
    return subprocess.run(argv, input=stdin, env=ENVIRONMENT, capture_output=True, check=False)


@contextlib.contextmanager
def bounded_memory(megabytes: int = 2048) -> Iterator[None]:
    """Raise MemoryError when this process allocates so much more than it has, on Linux."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists():
        held = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def leftover(name: str) -> str:
    """Return the name of a temporary file that a killed process of this machine has left."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return f"{TEMPORARY}{ended.pid}-{MACHINE}-{name}"


def same_weights(one: Path, other: Path) -> bool:
    """Return whether two runs hold the same tensors, bit for bit."""
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def draw_folder(folder: Path, *, train: int = 60, test: int = 30, size: int = 32, seed: int = 7) -> Path:
    """Write drawn images as PNG files to train/<class>/ and test/<class>/, with the classes in turn."""
    pixels, labels = synthetic.draw(train + test, seed=seed, size=size)
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        there = folder / ("train" if index < train else "test") / synthetic.CLASSES[label]
        there.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(picture)).save(there / f"{index:04d}.png")
    return folder
