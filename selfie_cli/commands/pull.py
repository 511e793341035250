"""selfie pull: a run from the Hugging Face Hub into a folder, checked."""

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
    """Fetch a run through the Hub's cache. The folder appears once the network is built and the weights fit."""
    if not options.repo:
        raise UsageError("name the repository: selfie pull owner/name")
    address = hub.parse(options.repo, options.revision)
    out = Path(options.out) if options.out else runs.RUNS / address.repo.partition("/")[2]
    runs.check_free(out, overwrite=options.overwrite)
    run = runs.open_run(str(address), offline=options.offline, talk=talk)
    run.check_finished()
    networks.load_module(run)
    with contextlib.suppress(HubError):  # its card, if there is one
        hub.fetch(hub.parse(str(run)), "README.md", offline=options.offline, talk=talk)
    with replacing_folder(out, overwrite=True) as temporary:
        for name in ("model.safetensors", "README.md"):
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, temporary / name)
        write_json(temporary / "config.json", {**run.config, "hub": {"address": str(run)}})
    return Pulled(run=out, address=str(run), verb=run.verb)
