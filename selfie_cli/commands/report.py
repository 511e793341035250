"""selfie report: write one HTML page about a run, which shows on real images what the network learned."""

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from selfie_cli import __version__, runs
from selfie_cli.comparison.labels import Data
from selfie_cli.config import ReportOptions, TrainingOptions
from selfie_cli.errors import DataError, SelfieError, UsageError
from selfie_cli.files import followed, write_text
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network
from selfie_cli.inference.outputs import check_file
from selfie_cli.methods.selfie import Selfie
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.reporting import examples
from selfie_cli.reporting.images import Images, embed, open_images, tested_on
from selfie_cli.reporting.page import Page, describing, document
from selfie_cli.reporting.record import details, heading_of, read_lines, results, training
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.checkpoint import saved_states
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import num_cores, precisions, prepare
from selfie_cli.training.step import reason_of
from selfie_cli.weights import load_weights

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The page, its size in bytes, and the number of images that the network was run on for it."""

    run: Path
    out: Path
    bytes: int
    num_images: int


def report(options: ReportOptions, talk: Talk, images: Images | None = None) -> Reported:
    """Write the page of a run, finished or not. images: the images to show, if they are open already."""
    if not options.run:
        raise UsageError("name a run: its folder, hf://owner/name, or bundled")
    run = runs.open_run(options.run, offline=options.offline, talk=talk)
    out = page_file(run, options)
    page = Page()
    with describing(run):
        heading = heading_of(run)
        results(run, page)
        if run.verb == "pretrain":
            training(run, page)
    num_images = add_images(run, page, options, talk, images)
    with describing(run):
        if run.verb != "pretrain":
            training(run, page)
        details(run, page)
    written = f"Written by selfie {__version__}, {datetime.datetime.now():%Y-%m-%d %H:%M}."
    text = document(page, title=f"{run.name}: selfie {run.verb}", header=heading, footer=written)
    write_text(out if options.out is None else followed(out), text)
    return Reported(run=run.path, out=out, bytes=len(text.encode()), num_images=num_images)


def report_at_end(run: Run, asked: TrainingOptions, talk: Talk, data: Data | None = None) -> None:
    """Write the page of a run that has just finished. Errors become warnings: the run is complete without its page.

    data: the labelled images of the run, if it has any.
    """
    if not asked.report or not group().first:
        return
    same = {name: getattr(asked, name) for name in ("data_root", "workers", "device")}
    again = f"selfie report {quote(str(run.path))}"
    try:
        options = ReportOptions(run=str(run.path), offline=True, max_bad=1.0, **same)
        talk.say(f"page: {report(options, talk, tested_on(run, data) if data else None).out}")
    except KeyboardInterrupt:
        talk.warn(f"the run is finished, but not its page: {again}")
        raise
    except Exception as error:
        if os.environ.get("SELFIE_DEBUG") == "1" and not isinstance(error, SelfieError | OSError):
            raise
        talk.warn(f"the run is finished, but its page could not be made ({reason_of(error)}): {again}")


def page_file(run: Run, options: ReportOptions) -> Path:
    """Return the page's file. Raise UsageError if --out exists without --overwrite, or if it cannot be written."""
    if options.out is None:
        if run.address is not None:  # in the package, or the Hub's cache
            raise UsageError(f"nothing can be written into {run}: name the page with --out PAGE.html")
        return check_file(str(run.path / "report.html"), SUFFIXES, overwrite=True)
    return check_file(options.out, SUFFIXES, overwrite=options.overwrite)


def load(run: Run, device: torch.device, talk: Talk) -> Network | None:
    """Return the run's network, with the last saved weights if pretraining is not finished; None if there are none."""
    if run.weights.is_file():
        return networks.load_network(run, features=None, device=device)
    states = saved_states(run.path / "state") if run.verb == "pretrain" else []
    if not states:
        return None
    module = networks.build_method(run.derived)
    weights, _ = load_weights(states[-1] / "weights.safetensors")
    module.load_state_dict(weights)
    talk.say(f"the run is not finished: using the weights of step {int(states[-1].name):,}")
    features = networks.choose_features(run.derived, None)
    return Network(module.to(device).eval(), int(run.derived["image_size"]), features, module.preprocessing)


def add_images(run: Run, page: Page, options: ReportOptions, talk: Talk, images: Images | None) -> int:
    """Add every section that needs images; return the number of images that the network was run on."""
    network = load(run, prepare(options.device), talk)
    if network is None:
        return 0
    bf16, workers = precisions(network.device, options.precision)[0] == "bf16", options.workers or num_cores()
    here: dict[str, Any] = {"data_root": Path(options.data_root), "offline": options.offline, "talk": talk}
    how: dict[str, Any] = {"limit": options.images, "bf16": bf16, "max_bad": options.max_bad, "talk": talk}
    try:
        with describing(run):
            images = images or open_images(run, options.dataset, workers=workers, **here)
            seen = read_lines(run.path / "seen_test_images.jsonl") if run.config["asked"].get("exclude_seen") else []
            exclude = {each["path"] for each in seen}
        embedded = embed(images, network, exclude=exclude, **how)
    except DataError as error:
        if options.dataset:
            raise
        # The run's own data are never downloaded for a page, so remove the advice to run without --offline.
        reason = re.sub(": (run|fetch it) once without --offline.*", "", str(error))
        talk.say(f"without images: {reason}")
        page.add("images", "Images", "images_missing", command=quote(str(run)), reason=reason)
        return 0
    if isinstance(network.module, Selfie):
        examples.patch_picks(network.module, images, embedded, page)
    elif run.verb == "pretrain" and run.derived[run.derived["method"]].get("views") != 2:
        examples.view_picks(networks.build_method(run.derived), network, images, embedded, page)
    elif isinstance(network.module, AnyClassifier) and images.labels is not None:
        pretrained = f"the {'first ' * (run.verb == 'curve')}pretrained arm"
        arm = pretrained if run.derived.get("pretraining", "none") != "none" else "supervised"
        which = f"the first seed of {arm}{', with the most labels' if run.verb == 'curve' else ''}"
        which = run.name if run.verb == "finetune-cell" else which
        examples.classified(which, images.labels, images, embedded, page)
    if len(embedded.vectors) > 2:
        examples.neighbours(images, embedded, page)
        talk.say(f"drawing a map of {len(embedded.vectors):,} images")
        examples.mapped(images, embedded, page)
    return len(embedded.rows)
