"""selfie push: upload a run's weights, config and a model card to a repository on the Hugging Face Hub."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from selfie_cli import hub, runs
from selfie_cli.config import PushOptions
from selfie_cli.errors import UsageError
from selfie_cli.files import read_json
from selfie_cli.inference import networks
from selfie_cli.models.portable import why_not
from selfie_cli.option import Options, flags
from selfie_cli.reporting.card import known, model_card
from selfie_cli.reporting.page import describing
from selfie_cli.reporting.record import comparison_of
from selfie_cli.runs import Run
from selfie_cli.schema import ASKED
from selfie_cli.talk import Talk

NUMBERS_OF_DATA = ("images", "fingerprint", "fingerprints", "unreadable", "seen_test_images", "like_training_images")
HARMLESS = ("lr", "fractions", "seeds", "budget")
"""Text options that contain only numbers. Any other text may be a private path or name."""
NAMES_DATA = ("data", "dataset")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of `push`. files: name -> size in bytes. url, commit, created: None after a dry run."""

    address: str
    files: dict[str, int]
    card: str
    url: str | None
    commit: str | None
    created: bool | None


def push(options: PushOptions, talk: Talk, *, ask: Callable[[str], bool] | None) -> Pushed:
    """Upload a finished run as one commit. `ask` asks the user a yes-or-no question; None if nobody can answer."""
    if not options.run or not options.repo:
        raise UsageError("name the run and the repository: selfie push RUN owner/name")
    address = hub.parse(options.repo, options.revision)
    if hub.COMMIT.fullmatch(address.revision or ""):
        raise UsageError(f"{address.revision} is a commit: push to a branch, by its name")
    run = runs.open_run(options.run, talk=talk)
    run.check_finished()
    networks.load_module(run)  # raises if the weights do not fit
    config, card = published_with_card(run, str(address))
    files: dict[str, Path | bytes] = {
        "model.safetensors": run.weights,
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        "README.md": card.encode(),
    }
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()}
    if options.dry_run:
        return Pushed(address=str(address), files=sizes, card=card, url=None, commit=None, created=None)

    def private() -> bool:
        if options.private is not None:
            return options.private
        if ask is None:
            raise UsageError(f"{address.repo} does not exist yet: choose its visibility, --private or --public")
        return ask(f"{address.repo} will be created on {hub.host()}. Make it private?")

    if options.quiet or not sys.stderr.isatty():  # huggingface_hub has no parameter for this
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    message = f"selfie push: {run.verb}, {run.derived['backbone']}"
    url, commit, created = hub.send(address, files, private=private, message=message, talk=talk)
    return Pushed(address=str(address), files=sizes, card=card, url=url, commit=commit, created=created)


def published_with_card(run: Run, address: str) -> tuple[dict[str, Any], str]:
    """Return the config and the model card to upload. Raise RunError if a file of the run is damaged."""
    with describing(run):
        config = published(run.config)
        return config, model_card(
            address,
            config=config,
            command=command_of(config),
            results=comparison_of(run),
            evaluations=[read_json(file) for file in sorted(run.path.glob("eval-*.json"))],
            in_timm=why_not(run.derived, "timm") is None,
        )


def published(config: dict[str, Any]) -> dict[str, Any]:
    """Return the public part of a run's config: what rebuilds the network, and numbers, but no paths or file names.

    Only names listed here are kept, so that nothing is published by oversight. `derived` includes the class names.
    """
    numbers = {key: value for key, value in config.get("data", {}).items() if key in NUMBERS_OF_DATA}
    kept = {key: config[key] for key in ("format", "verb", "derived", "versions")}
    measured = {
        key: value
        for key, value in config["measured"].items()
        if key in ("device", "precision") or isinstance(value, int | float | dict)
    }
    asked = published_options(ASKED.get(config["verb"], Options), config["asked"])
    origins = [
        {"path": each["path"] if public(each["path"]) else None, "sha256": each["sha256"]}
        for each in config.get("from", [])
    ]
    kept |= {"asked": asked, "measured": measured, "data": numbers, "from": origins}
    return {**kept, "progress": {"status": "finished"}}


def published_options(kind: type[Options], asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `kind` without private text: paths and names become None unless they are public."""
    kept: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if name not in asked:
            continue
        value = asked[name]
        if str in (hint, *get_args(hint)) and name not in HARMLESS:
            tell = known if name in NAMES_DATA else (lambda text: text if public(text) else None)
            value = [tell(each) for each in value] if isinstance(value, list | tuple) else tell(value)
        kept[name] = value
    return kept


def public(address: Any) -> bool:
    return address in ("bundled", "imagenet", "none") or hub.is_address(str(address))


def command_of(config: dict[str, Any]) -> str:
    """Return the command that makes such a run, from the published options that differ from their defaults."""
    kind = ASKED.get(config["verb"])
    if kind is None:
        return f"selfie {config['verb'].partition('-')[0]}"
    data = config["asked"].get("data") or []
    words = ["selfie", config["verb"], *(each or "FOLDER" for each in data)]
    return " ".join([*words, *flags(kind(), config["asked"])])
