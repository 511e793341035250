"""Runs: folders that hold a config, and the weights, metrics and results of a training.

config.json          asked, derived, measured, versions, data, progress (status: running or finished)
model.safetensors    the weights, once finished
state/<step>/        saved states, from which --resume continues
metrics.jsonl        one line per logging step
results.json         accuracies of finetune and curve
bad_files.jsonl      unreadable images
"""

import contextlib
import copy
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata, resources
from pathlib import Path
from shlex import quote
from typing import Any

from selfie_cli import __version__, foreign, hub, schema
from selfie_cli.errors import RunError, UsageError
from selfie_cli.files import TEMPORARY, check_room, nearest, read_json, remove, remove_leftovers, size_of, write_json
from selfie_cli.recipes import called
from selfie_cli.signals import is_first
from selfie_cli.talk import Talk, printable

RUNS = Path("runs")
RUN_FORMAT = 1
CONTENTS = (
    *("config.json", "model.safetensors", "seen.safetensors", "metrics.jsonl", "results.json", "bad_files.jsonl"),
    *("seen_test_images.jsonl", "labels-f*-s*.jsonl", "eval-*.json", "eval-*.jsonl", "state", "cells", "README.md"),
    *("report.html", "curve.png", "curve.svg", "tensorboard", "trace.json"),
    *(f"{TEMPORARY}*", ".DS_Store", "Thumbs.db"),
)
"""Names in a run's folder that --overwrite replaces. All other files belong to the user."""
MOST_BYTES = 2**26
"""Largest size of config.json, in bytes. The names of 100,000 classes take a few MB."""
SILENT = Talk()
_held: dict[str, tuple[Path, int]] = {}
"""Run folders locked by this process: real path -> the folder and the descriptor that holds the lock."""


@dataclass(eq=False)
class Run:
    """A folder with a config.json; `config` is its content when last read or written.

    `address` is set for read-only runs: 'bundled', hf://owner/name@commit for a run in the Hub's cache, or the location
    of foreign weights. The config of foreign weights is made when they are read, and their `path` may be a file.
    """

    path: Path
    config: dict[str, Any]
    address: str | None = None

    @property
    def name(self) -> str:
        """The name of its folder, or of its repository."""
        if self.address is not None and hub.is_address(self.address):
            return hub.parse(self.address).repo.partition("/")[2]
        return self.path.resolve().name.removesuffix(".safetensors")

    def __str__(self) -> str:
        return self.address or str(self.path)

    @property
    def verb(self) -> str:
        return str(self.config["verb"])

    @property
    def derived(self) -> dict[str, Any]:
        return dict(self.config["derived"])

    @property
    def finished(self) -> bool:
        return bool(self.config["progress"]["status"] == "finished")

    @property
    def diverged(self) -> bool:
        return bool(self.config["progress"].get("diverged"))

    @property
    def weights(self) -> Path:
        return self.path if self.path.is_file() else self.path / "model.safetensors"

    @property
    def is_foreign(self) -> bool:
        """Whether its weights were not trained by selfie: see `foreign`."""
        return self.verb == "weights"

    def check_finished(self) -> None:
        """Raise RunError for a stopped run, with the command that resumes it."""
        if not self.finished:
            raise RunError(f"{self} is not finished: {self.resume}")

    @property
    def resume(self) -> str:
        """The command that resumes this run. A network of a comparison has none of its own."""
        if self.verb == "finetune-cell":
            return "resume the run of finetune or curve whose cells/ has it"
        return f"selfie {self.verb} --resume {quote(str(self))}"

    def finish(self, measured: dict[str, Any]) -> None:
        """Mark the run as finished, record `measured`, and remove its saved states."""
        self.update(measured=measured, progress={"status": "finished"})
        shutil.rmtree(self.path / "state", ignore_errors=True)
        let_go(self.path)

    def update(self, **sections: dict[str, Any]) -> None:
        """Merge each section's keys into config.json."""
        config = copy.deepcopy(self.config)
        for section, values in sections.items():
            config.setdefault(section, {}).update(values)
        write_json(self.path / "config.json", config)
        self.config = config


def versions() -> dict[str, str]:
    found = {"selfie-cli": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hold(folder: Path) -> None:
    """Lock a run's folder until the run is finished or this process ends. Raise RunError if another process holds it.

    The first process of a job locks it for all. Some network disks do not support locks; nothing is locked there.
    """
    if os.path.realpath(folder) in _held:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if is_first():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process is working on {folder}: wait for it, or stop it first") from None
    except OSError:  # the disk does not support locks
        pass
    _held[os.path.realpath(folder)] = folder, descriptor


def let_go(folder: Path) -> None:
    if held := _held.pop(os.path.realpath(folder), None):
        os.close(held[1])


def let_go_of_all() -> None:
    while _held:
        os.close(_held.popitem()[1][1])


def begun() -> Run | None:
    """Return the unfinished run that this process works on; None if there is none."""
    for folder, _ in _held.values():  # the first one contains the others
        with contextlib.suppress(RunError):
            run = read_run(folder)
            return None if run.finished else run
    return None


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise RunError if a new run may not be written to `path`.

    A folder that is not empty needs `overwrite`. It must hold only a run, which no other process has locked.
    """
    there = nearest(path)
    if not there.is_dir():
        raise RunError(f"{path if path.exists() else there} is a file; --out takes a folder")
    if not os.access(there, os.W_OK):
        raise RunError(f"{path} cannot be made, {there} is not writable: choose another --out")
    if not path.exists() or all(file.name.startswith(TEMPORARY) for file in path.iterdir()):
        return  # empty, except for temporary files of a killed process
    try:
        run = open_run(path)
    except RunError:
        why = "holds files but no run that this version reads, so it is not deleted"
        raise RunError(f"{path} {why}: choose another --out") from None
    others = sorted(name for name in os.listdir(path) if not any(fnmatchcase(name, known) for known in CONTENTS))
    if overwrite and others:
        why = "is no part of a run, and --overwrite would delete it"
        raise RunError(f"{path / others[0]} {why}: move it elsewhere first")
    hold(path)
    if not overwrite:
        let_go(path)
        goes_on = "" if run.finished else f", continue it ({run.resume})"
        raise RunError(f"{path} is not empty: replace it with --overwrite{goes_on}, or choose another --out")


def create(
    path: Path, *, verb: str, asked: dict[str, Any], overwrite: bool = False, room: int = 0, **sections: Any
) -> Run:
    """Create a run in a new or empty folder or, with `overwrite`, replace one. `sections` go into its config.

    Raise OSError, before anything is changed, if the disk has less than `room` bytes free.
    """
    check_free(path, overwrite=overwrite)
    config: dict[str, Any] = {"format": RUN_FORMAT, "verb": verb, "asked": asked, "versions": versions()}
    config |= {"derived": {}, "measured": {}, "data": {}, "progress": {"status": "running"}, **sections}
    try:
        schema.check(json.loads(json.dumps(config)))
    except ValueError as error:  # such a run could not be opened
        raise RunError(f"this run cannot be created: {error}") from None
    there = Path(os.path.realpath(path))  # a link or a mount point is filled, not replaced
    check_room(path, room - size_of(there))
    there.mkdir(parents=True, exist_ok=True)
    hold(path)
    for old in there.iterdir():
        if old.name != "config.json":  # --overwrite recognizes the run by it if this process is killed here
            remove(old)
    write_json(path / "config.json", config)
    return Run(path, config)


def open_run(path: str | Path, *, offline: bool = False, also_foreign: bool = False, talk: Talk = SILENT) -> Run:
    """Open a run: a folder, 'bundled', hf://owner/name[@revision] on the Hub or, with `also_foreign`, foreign weights.

    Raise RunError if `path` is not a run, or its config is damaged or of another format. Raise HubError.
    """
    if hub.is_address(str(path)):
        asked = hub.parse(str(path))
        config = hub.fetch(asked, "config.json", offline=offline, talk=talk)
        run = read_run(config.parent, str(asked.at(config)), also_foreign=also_foreign)
        hub.fetch(asked.at(config), "model.safetensors", offline=offline, talk=talk)
        return run
    where, address = (bundled_folder(), "bundled") if str(path) == "bundled" else (Path(path), None)
    return read_run(where, address, also_foreign=also_foreign)


def read_run(folder: Path, address: str | None = None, *, also_foreign: bool = False) -> Run:
    if also_foreign and folder.suffix == ".safetensors" and folder.is_file():
        if folder.name != "model.safetensors" or not (folder.parent / "config.json").is_file():
            return described(folder, None, lambda: foreign.from_file(folder))
        folder = folder.parent
    try:
        if (folder / "config.json").stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        config = read_json(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        place = "a folder with a config.json" + " or a .safetensors file" * also_foreign
        named = hub.NAME.fullmatch(str(folder)) and not folder.parent.exists()
        on_hub = f", or {hub.PREFIX}{folder} for one on the Hub" if named else ""
        raise RunError(f"no run at {folder}: {place} is expected{on_hub}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if also_foreign and isinstance(config, dict) and "architecture" in config:
        return described(folder, address, lambda: foreign.from_timm(config, address))
    if not isinstance(config, dict) or type(config.get("format")) is not int:
        raise RunError(f"{folder / 'config.json'} is not the config of a selfie run")
    if config["format"] != RUN_FORMAT:
        writer = config["versions"].get("selfie-cli") if isinstance(config.get("versions"), dict) else None
        read = f"{folder} has run format {config['format']}, this selfie ({__version__}) reads {RUN_FORMAT}"
        raise RunError(f"{read}: use the selfie-cli that wrote it{f', {writer}' if writer else ''}, or start a new run")
    try:
        schema.check(config)
    except ValueError as error:
        fault = f"is damaged, or of another version, or does not describe a network of selfie's: {error}"
        raise RunError(f"{folder / 'config.json'} {fault}") from None
    return Run(folder, config, address)


def described(path: Path, address: str | None, describe: Callable[[], dict[str, Any]]) -> Run:
    """Return foreign weights as a read-only run. Raise RunError if `describe` raises ValueError."""
    try:
        config = describe()
        schema.check(config)
    except ValueError as error:
        raise RunError(f"{address or path} cannot be used: {error}") from None
    return Run(path, config, address or str(path.resolve()))


def open_to_resume(path: str, verb: str) -> Run:
    """Open and lock a stopped run of this verb, and remove half-written files. Raise RunError if it cannot resume."""
    run = open_run(path)
    if run.verb != verb:
        raise RunError(f"{path} is no run of selfie {verb}{'' if run.finished else f': {run.resume}'}")
    hold(run.path)
    run = open_run(path)  # read again: the process that held it may have finished it
    if not os.access(run.path, os.W_OK):
        raise RunError(f"{path} is not writable: change its permissions, or resume a copy of it")
    for folder in (run.path, run.path / "state"):
        remove_leftovers(folder)
    if run.finished:
        shutil.rmtree(run.path / "state", ignore_errors=True)  # if it was killed before it removed them
        let_go(run.path)
        if verb != "pretrain":
            raise RunError(f"{path} is finished. To see its results: selfie report {quote(path)}")
        use = f"To use its weights: selfie finetune --from {quote(path)} --dataset FOLDER"
        raise RunError(f"{path} is finished. selfie pretrain IMAGES --from {quote(path)} trains it for longer. {use}")
    try:
        schema.check_stopped(run.config)
    except ValueError as error:
        let_go(run.path)
        raise RunError(f"{run.path / 'config.json'} is damaged, {error}: start a new run") from None
    return run


def bundled_folder() -> Path:
    """Return the run folder of the small pretrained network that ships with the package."""
    return Path(str(resources.files("selfie_cli"))) / "bundled"


def newest_pretraining() -> Run | None:
    """Return the finished pretraining run directly below ./runs with the newest config. The demo's run is deeper."""
    for file in sorted(RUNS.glob("*/config.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(RunError):
            run = open_run(file.parent)
            if run.verb == "pretrain" and run.finished:
                return run
    return None


def resolve_from(
    from_: str | None, *, backbone: str | None = None, offline: bool = False, talk: Talk = SILENT
) -> Run | None:
    """Return and report the run that --from names; None for 'none'. backbone: the network that 'imagenet' means."""
    if from_ == "none":
        talk.say("weights: none, a freshly initialized network")
        return None
    how = ""
    if from_ is not None:
        address = foreign.imagenet(backbone) if from_ == "imagenet" else from_
        run = open_run(address, offline=offline, also_foreign=True, talk=talk)
        run.check_finished()
    elif newest := newest_pretraining():
        run, how = newest, f", the newest finished pretraining under ./{RUNS}"
    else:
        run, how = open_run("bundled"), f" (no finished pretraining under ./{RUNS})"
    where = "the network bundled with selfie" if run.address == "bundled" else str(run)
    what = f"{called(run.derived)}, {run.derived.get('backbone')}, {run.derived.get('image_size')} px"
    source = f"; {printable(run.config['source'])}" if "source" in run.config else ""
    talk.say(f"weights: {where} ({what}){source}{how}")
    return run


def weights_for(verb: str, from_: str | None, *, offline: bool = False, talk: Talk = SILENT) -> Run:
    """Return the run that --from names, as `resolve_from` does. Raise UsageError for 'none'."""
    run = None if from_ == "none" else resolve_from(from_, offline=offline, talk=talk)
    if run is None:
        raise UsageError(f"{verb} needs trained weights: name a run's folder, hf://owner/name or bundled")
    return run
