"""selfie pull: download a run from the Hugging Face Hub into a folder, and verify it."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from selfie_cli import hub, runs
from selfie_cli.config import PullOptions
from selfie_cli.errors import HubError, UsageError
from selfie_cli.files import replacing_folder, write_json
from selfie_cli.inference import networks
from selfie_cli.talk import Talk


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """`address` names the commit that is now in the folder `run`."""

    run: Path
    address: str
    verb: str


def pull(options: PullOptions, talk: Talk) -> Pulled:
    """Download a run through the Hub's cache. The folder is created only after the network has loaded the weights."""
    if not options.repo:
        raise UsageError("name the repository: selfie pull owner/name")
    address = hub.parse(options.repo, options.revision)
    out = Path(options.out) if options.out else runs.RUNS / address.repo.partition("/")[2]
    runs.check_free(out, overwrite=options.overwrite)
    run = runs.open_run(str(address), offline=options.offline, talk=talk)
    run.check_finished()
    networks.load_module(run)
    with contextlib.suppress(HubError):  # it may have no model card
        hub.fetch(hub.parse(str(run)), "README.md", offline=options.offline, talk=talk)
    with replacing_folder(out, overwrite=options.overwrite) as temporary:
        for name in ("model.safetensors", "README.md"):
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, temporary / name)
        write_json(temporary / "config.json", {**run.config, "hub": {"address": str(run)}})
    return Pulled(run=out, address=str(run), verb=run.verb)
