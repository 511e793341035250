"""Metrics of a training: means over several steps, in metrics.jsonl, TensorBoard and the progress line."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from selfie_cli.files import json_line, naming, write_json_lines
from selfie_cli.training.distributed import Group


class Metrics:
    """Sums the values that steps log, without waiting for the device, until `write` makes a line of them.

    last: the values of the last line. images, data_wait: of all steps since the start, the images and the seconds spent
    waiting for them. watched: values to add to the next line.
    """

    def __init__(self, group: Group, last: dict[str, float]) -> None:
        self.group = group
        self.last = last
        self.images = 0
        self.data_wait = 0.0
        self.sinks: list[Callable[[int, dict[str, float]], None]] = []
        self._begin()

    def _begin(self) -> None:
        self.begun = time.perf_counter()
        self._waited, self._steps, self._images = 0.0, 0, 0
        self._sums: dict[str, Tensor] = {}
        self.watched: dict[str, float] = {}

    def add(self, values: dict[str, Tensor], num_images: int, waited: float) -> None:
        """Note a step over `num_images` images of all processes, for which `waited` seconds were spent on its batch."""
        self._steps += 1
        self._images += num_images
        self._waited += waited
        self.images += num_images
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self) -> dict[str, float]:
        """Means over steps and processes. Waits for the device and the other processes."""
        return self.group.mean({name: (total / self._steps).item() for name, total in self._sums.items()})

    def write(self, step: int, means: dict[str, float], lr: float) -> None:
        waited = max(self.group.gather(self._waited))
        seconds = time.perf_counter() - self.begun
        speed = {"lr": lr, "images_per_second": self._images / seconds, "data_wait": waited / seconds}
        self.last = {**means, **self.watched, **speed}
        for sink in self.sinks:
            sink(step, self.last)
        self.data_wait += waited
        self._begin()


@contextlib.contextmanager
def open_metrics(
    folder: Path, step: int, *, group: Group, advance: Callable[[int, str], None], tensorboard: bool
) -> Iterator[Metrics]:
    """Yield metrics that continue after `step`. Lines of later steps, which no saved state has, are removed.

    The first process writes metrics.jsonl in `folder`, with `tensorboard` also event files in `folder`/tensorboard.
    `advance` gets the step and a short note.
    """
    file = folder / "metrics.jsonl"
    metrics = Metrics(group, cut_metrics(file, step) if group.first else {})
    with contextlib.ExitStack() as stack:
        if group.first:
            log = file.open("a")
            stack.callback(naming(file)(log.close))  # closing tries again to write what a full disk refused

            @naming(file)
            def write_line(step: int, values: dict[str, float]) -> None:
                print(json_line({"step": step, **values}), file=log, flush=True)

            metrics.sinks.append(write_line)
        metrics.sinks.append(lambda step, values: advance(step, note_of(values)))
        if group.first and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = stack.enter_context(SummaryWriter(folder / "tensorboard", purge_step=step + 1))

            @naming(folder / "tensorboard")
            def write_events(step: int, values: dict[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
                writer.flush()  # otherwise a kill could lose steps of a saved state

            metrics.sinks.append(write_events)
        yield metrics


def cut_metrics(file: Path, step: int) -> dict[str, float]:
    """Remove damaged lines and those past `step` from metrics.jsonl; returns the values of the last line."""
    if not file.exists():
        return {}
    kept: list[dict[str, float]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError, RecursionError):
            values = json.loads(line)
            if values["step"] <= step and all(map(math.isfinite, values.values())):
                kept.append(values)
    write_json_lines(file, kept)
    return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}


def note_of(values: dict[str, float]) -> str:
    """The most important values, on one line."""
    parts = [f"loss {values['loss']:.3f}"]
    if "pretext_accuracy" in values:
        parts.append(f"pretext {values['pretext_accuracy']:.1%} (chance {values['chance']:.1%})")
    parts.append(f"{values['images_per_second']:,.0f} images/s")
    parts.append(f"data wait {values['data_wait']:.0%}")
    return ", ".join(parts)
