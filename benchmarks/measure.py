"""Code shared by the benchmarks: the machine and its limits, measuring in turns, commands with their memory, raw lines.

A line of docs/results/speed/NAME.jsonl is a row of NAME's table. It has `row`, `value` and `unit`; `limit` in the same
unit, `bound` (what sets the limit) and `share` of the limit; with a peer also `peer`, `ratio` (the median over the
rounds; higher is better for us), `ratios` and `target`; then other measurements, command, machine, versions and commit.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "speed"
SELFIE = [sys.executable, "-m", "selfie_cli"]
# CPU features that decide the speed of matrix products, under their names in Linux.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "sve", "bf16", "i8mm")


def parser(doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="How often contestants take turns; medians are kept.")
    made.add_argument("--results", type=Path, default=RESULTS, help="Folder of the raw lines.")
    made.add_argument("--work", type=Path, default=Path("runs/speed"), help="Folder of runs and of prepared images.")
    return made


# The machine


def cpu_line(*names: str) -> str:
    """Value of the first line in /proc/cpuinfo with one of `names`, or an empty string."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.split(":")[0].strip() in names:
            return line.split(":", 1)[1].strip()
    return ""


def machine() -> dict[str, Any]:
    import torch

    from selfie_cli.training.hardware import num_cores

    flags = cpu_line("flags", "Features").split()
    return {
        "processor": cpu_line("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "cores": num_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
    }


def commit() -> str:
    """The commit, with -dirty if there are uncommitted changes. A copy without git takes it from BENCHMARK_COMMIT."""
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    described = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(described, capture_output=True, text=True, cwd=ROOT).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def shown(arguments: Sequence[str]) -> str:
    """A command with each absolute path shortened to its last part, to hide the folders of this machine."""
    return shlex.join(Path(each).name if each.startswith("/") else each for each in arguments)


def arithmetic_rate(device: str, precision: str, seconds: float = 2.0) -> float:
    """GFLOP/s of large matrix products or convolutions, whichever are faster; a multiply and an add count as two.

    They use different libraries: the one for matrix products in fp32 may use fewer features of a CPU.
    """
    import torch

    side, images = (8192, 256) if device == "cuda" else (4096 if seconds > 1 else 1024, 16)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    layout = {"dtype": dtype, "memory_format": torch.channels_last}
    maps = torch.randn(images, 256, 28, 28, device=device).to(**layout)
    weight = torch.randn(256, 256, 3, 3, device=device).to(**layout)
    with torch.inference_mode():
        products = 2e-9 * side**3 * calls_a_second(lambda: a @ b, device, seconds / 2)
        convolve = partial(torch.nn.functional.conv2d, maps, weight, padding=1)
        convolutions = 2e-9 * images * 28**2 * 256**2 * 9 * calls_a_second(convolve, device, seconds / 2)
    return max(products, convolutions)


def copy_rate(device: str, seconds: float = 1.0) -> float:
    """GB/s of a copy within the device's memory, counting both the bytes read and the bytes written."""
    import torch

    a = torch.ones(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2e-9 * a.numel() * calls_a_second(lambda: b.copy_(a), device, seconds)


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def calls_a_second(call: Callable[[], object], device: str = "cpu", seconds: float = 1.0, *, warm: int = 1) -> float:
    """Calls per second, over at least `seconds` and at least one call, after `warm` calls that do not count."""
    for _ in range(warm):
        call()
    synchronize(device)
    count, begun = 0, time.perf_counter()
    while True:
        call()
        count += 1
        if device == "cuda" and count % 8:  # waiting after each call would slow the measured work down
            continue
        synchronize(device)
        if (elapsed := time.perf_counter() - begun) >= seconds:
            return count / elapsed


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, which must itself wait for the device."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


# Turns


def turns(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """One value per contestant and round, in turns (A B A B ...), as the machine's speed varies."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, measure in contestants.items():
            measured[name].append(measure())
            print(f"round {number + 1} of {rounds}: {name}: {measured[name][-1]:.4g}", file=sys.stderr, flush=True)
    return measured


def against(peer: str, ours: list[float], theirs: list[float], target: float | None = None) -> dict[str, Any]:
    """Ratios of our rates to a peer's, one per round (`ratios`), and their median (`ratio`)."""
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    found = {"peer": peer, "ratio": statistics.median(ratios), "ratios": ratios}
    return found if target is None else {**found, "target": target}


# Commands


@dataclass(frozen=True)
class Finished:
    """A command that succeeded. `peak_memory` is the peak of all its processes together, in bytes; 0 if unknown."""

    seconds: float
    peak_memory: int
    stdout: str


def run(
    command: Sequence[str | Path], *, folder: Path | None = None, limit: float | None = None, **environment: str
) -> Finished:
    """Run a command to its end, with as many threads as there are cores, for at most `limit` seconds.

    Raises RuntimeError if it fails, TimeoutExpired if it takes longer.
    """
    from selfie_cli.training.hardware import num_cores

    here = {"PYTHONPATH": str(ROOT)} if list(command[:3]) == SELFIE else {}
    variables = {"OMP_NUM_THREADS": str(num_cores()), **os.environ, **here, **environment}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begun = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env=variables, stdout=out, stderr=err, start_new_session=True
        )
        ended, peak = threading.Event(), [0]

        def watch() -> None:
            while not ended.wait(0.2):
                peak[0] = max(peak[0], memory_of_session(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            status = child.wait(limit)
        except BaseException:  # a time limit, or Ctrl-C
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            seconds = time.perf_counter() - begun
            ended.set()
            watcher.join()
        out.seek(0)
        err.seek(0)
        if status:
            raise RuntimeError(f"{shown([str(part) for part in command])} failed ({status}): {err.read()[-2000:]}")
        return Finished(seconds, peak[0], out.read())


def memory_of_session(session: int, *kinds: str) -> int:
    """Bytes held by the processes of a session; shared memory counts once (proportional set size).

    `kinds` limits the sum to some kinds of memory: "Anon", "File", "Shmem".
    """
    counted = {f"Pss_{kind}" for kind in kinds} or {"Pss"}
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in counted)
        except OSError:  # the process has just ended
            continue
    return total


def selfie(*arguments: str | Path) -> tuple[Finished, dict[str, Any]]:
    """Run a `selfie` command; return it with the JSON document that it printed."""
    finished = run([*SELFIE, *arguments, "--json"])
    return finished, json.loads(finished.stdout)


# Images


def images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def linked(source: Path, folder: Path, count: int) -> Path:
    """Make a flat folder of links to `count` images below `source`, evenly chosen."""
    found = images_below(source)
    if len(found) < count:
        raise SystemExit(f"{source} has {len(found)} images, {count} are needed")
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(count):
            path = found[number * len(found) // count]
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
    return folder


def mosaics(source: Path, folder: Path, count: int) -> Path:
    """Make a folder with one class of JPEG images, 512 x 512, each of four centre squares of photos below `source`."""
    found = images_below(source)
    target = folder / "mosaic"
    target.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        if (file := target / f"{number:06d}.jpg").exists():
            continue
        whole = Image.new("RGB", (512, 512))
        for part in range(4):
            with Image.open(found[(4 * number + part) % len(found)]) as image:
                left, top = (image.width - 256) // 2, (image.height - 256) // 2
                square = image.convert("RGB").crop((left, top, left + 256, top + 256))
            whole.paste(square, (part % 2 * 256, part // 2 * 256))
        whole.save(file, quality=90)
    return folder


# Raw lines


class Lines:
    """The raw lines of one benchmark. Command, machine and commit are read at the start, when the code is loaded."""

    def __init__(self, name: str, folder: Path) -> None:
        from selfie_cli.runs import versions

        self.file = folder / f"{name}.jsonl"
        self.here = {
            "command": shown(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
        }

    def add(
        self,
        row: str,
        value: float | Sequence[float],
        unit: str,
        *,
        limit: float | None = None,
        bound: str | None = None,
        **more: Any,
    ) -> None:
        """Append a row to the file at once. Of several values, `value` is the median and `values` holds all.

        `limit` is in the same unit. Also for seconds, a share of 1 means as fast as the limit.
        """
        many = [float(value)] if isinstance(value, int | float) else list(value)
        middle = statistics.median(many)
        line: dict[str, Any] = {"row": row, "value": middle, "unit": unit}
        if len(many) > 1:
            line["values"] = many
        if limit is not None:
            share = limit / middle if unit == "s" else middle / limit
            line |= {"limit": limit, "bound": bound, "share": share}
        line |= {**more, **self.here}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(rounded(line)) + "\n")
        ratio = f", {more['ratio']:.2f} x {more['peer']}" if "ratio" in more else ""
        share_of = f", {line['share']:.0%} of {bound}" if limit is not None else ""
        print(f"{row}: {middle:.4g} {unit}{share_of}{ratio}", file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """Round every number in `value` to six digits, more than the precision of these clocks."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < 1e6 else round(value)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value
