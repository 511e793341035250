"""Data sets on the Hugging Face Hub: their parquet files, in the Hub's own cache. No code of a repository is run."""

import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from selfie_cli import hub
from selfie_cli.data.packed import DATASETS, check_numbers, packed_set
from selfie_cli.data.sources import DataSet
from selfie_cli.errors import DataError, HubError, UsageError
from selfie_cli.files import read_json, write_json
from selfie_cli.talk import Talk

ADDRESS = re.compile(DATASETS + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+))?", re.ASCII)
CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub keeps parquet files converted from other formats."""
ONCE_ONLINE = "fetch it once online (no --offline, no HF_HUB_OFFLINE)"


@dataclass(frozen=True)
class Listing:
    """Size and hash of the parquet files of a data set at a commit."""

    commit: str
    files: Mapping[str, tuple[int, str]]


def fetch(address: str, *, offline: bool, talk: Talk) -> DataSet:
    """The parquet files of `hf://datasets/owner/name[@revision][:configuration]`.

    The files of a part are downloaded when it is opened, unless they are cached. If the repository has none, the files
    that the Hub has converted are used.

    Raises:
        UsageError: if the address is malformed.
        HubError: if the data set cannot be found or reached, or if it is not cached and `offline`.
        DataError: if it has no parquet files, or several configurations.
    """
    from huggingface_hub import is_offline_mode

    match = ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise UsageError(
            f"{address!r} is no data set on the Hub: expected hf://datasets/owner/name[@revision][:config]"
        )
    repo, revision, config = match.groups()
    offline = offline or is_offline_mode()
    where = hub.Address(f"datasets/{repo}", revision)
    listing = list_files(repo, revision, where, offline=offline, talk=talk)
    if not listing.files and revision is None:
        with contextlib.suppress(hub.NoRevision):
            listing = list_files(repo, CONVERTED, where, offline=offline, talk=talk)
    if not listing.files:
        raise DataError(
            f"{where} has no parquet files, and the Hub has not converted it: download it and arrange it in folders"
        )
    for name in listing.files:  # not every version of the client checks this
        if name.startswith("/") or ".." in name.split("/"):
            raise HubError(f"{where} has a file {name!r}, whose path leads out of the cache: nothing is downloaded")
    at = hub.Address(where.repo, listing.commit)
    talk.say(f"data: {at}")
    return packed_set(
        "-".join([repo.partition("/")[2], *(config.split("/") if config else [])]),
        sorted(listing.files),
        functools.partial(download, repo, listing, where, offline=offline, talk=talk),
        where=str(where),
        hint=f"name one as hf://datasets/{repo}:config",
        talk=talk,
        config=config,
        pinned={address: f"{at}:{config}" if config else str(at)},
    )


def download(
    repo: str, listing: Listing, where: hub.Address, wanted: list[str], *, offline: bool, talk: Talk
) -> list[str]:
    """Return the paths of files in the Hub's cache; missing files are downloaded and checked."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    check_numbers(wanted, str(where))
    if any(Path(name).parent.name.startswith("partial-") for name in wanted):
        talk.warn(f"{where}: the Hub has converted only the first part of this data set")
    with hub.in_our_words(where):
        cached = {
            name: try_to_load_from_cache(repo, name, repo_type="dataset", revision=listing.commit) for name in wanted
        }
    paths = {name: path for name, path in cached.items() if isinstance(path, str)}
    missing = [name for name in wanted if name not in paths]
    if missing and offline:
        raise HubError(f"{where} is not complete in the Hub's cache: {ONCE_ONLINE}")
    if missing:
        size = sum(listing.files[name][0] for name in missing)
        hub.check_cache("datasets", repo, size)
        talk.say(
            f"downloading {len(missing)} files ({size / 1e6:,.1f} MB) of {where} from {hub.host()} to "
            f"{constants.HF_HUB_CACHE}"
        )
    at = hub.Address(where.repo, listing.commit)
    for name in missing:
        size, mark = listing.files[name]
        try:
            with hub.in_our_words(where), hub.progress(name, size, talk) as bar:
                path = hf_hub_download(repo, name, repo_type="dataset", revision=listing.commit, tqdm_class=bar)
        except OSError as error:
            raise DataError(f"{name} cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror}") from None
        hub.check(Path(path), mark, at)
        paths[name] = str(path)
    return [paths[name] for name in wanted]


def list_files(repo: str, revision: str | None, where: hub.Address, *, offline: bool, talk: Talk) -> Listing:
    """List the parquet files of a revision. The list is stored in the Hub's cache, and read from there if `offline`.

    Raises HubError, or its subclass `hub.NoRevision`.
    """
    from huggingface_hub import HfApi, constants

    named = (revision or constants.DEFAULT_REVISION).replace("/", "--")
    note = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "selfie" / f"{named}.json"
    if offline:
        try:
            noted = read_json(note)
            if not hub.COMMIT.fullmatch(noted["commit"]):
                raise ValueError("no commit")
            return Listing(noted["commit"], {name: (size, mark) for name, (size, mark) in noted["files"].items()})
        except FileNotFoundError:
            error = hub.NoRevision if revision == CONVERTED else HubError
            raise error(f"{where} is not in the Hub's cache here: {ONCE_ONLINE}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise HubError(f"{note} is damaged: remove it, and fetch {where} once without --offline") from None

    with hub.in_our_words(where):
        info = hub.retried(lambda: HfApi().dataset_info(repo, revision=revision, files_metadata=True), talk=talk)
    files = {
        each.rfilename: (each.size or 0, str(each.lfs.sha256 if each.lfs else each.blob_id))
        for each in info.siblings or []
        if each.rfilename.endswith(".parquet") and not each.rfilename.startswith(".")
    }
    with contextlib.suppress(OSError):  # a read-only cache works, too
        for each in (note, note.with_name(f"{info.sha}.json")):
            write_json(each, {"commit": info.sha, "files": files})
    return Listing(str(info.sha), files)
