"""Repositories on the Hugging Face Hub: their addresses, files fetched and checked, files sent, errors in our words."""

import contextlib
import hashlib
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selfie_cli.errors import HubError, SelfieError, UsageError
from selfie_cli.files import check_room
from selfie_cli.talk import Talk

# Else the client tells which torch is here and looks for signs of an agent. It reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
PREFIX = "hf://"
FILES = ("config.json", "model.safetensors", "README.md")
"""All that is ever sent or fetched; the last may be absent."""
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[\w./+-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# Seconds before each further attempt, where another may be answered better.
WAITS = (1.0, 2.0, 4.0)
TRANSIENT = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """owner/name, and a branch, tag or commit of it; None is the main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    return text.startswith(PREFIX)


def parse(text: str, revision: str | None = None) -> Address:
    """'owner/name' or 'hf://owner/name[@revision]', with the value of --revision. Raises UsageError for others."""
    repo, _, named = text.removeprefix(PREFIX).partition("@")
    if not NAME.fullmatch(repo) or text.endswith("@") or not REVISION.fullmatch(revision or named or "main"):
        raise UsageError(f"{text!r} is no repository on the Hub: expected owner/name or hf://owner/name[@revision]")
    if named and revision and named != revision:
        raise UsageError(f"{text} and --revision {revision} name two revisions: leave one out")
    return Address(repo, named or revision)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files of a repository at one commit; `address` names the commit.

    `marks` are size and hash of each file as the Hub tells them; None where it is not asked, and the cache serves.
    """

    address: Address
    asked: Address
    marks: dict[str, tuple[int, str]] | None
    talk: Talk

    def fetch(self, name: str) -> Path:
        """The file in the Hub's cache, downloaded if it is not there, and checked. Raises HubError."""
        from huggingface_hub import hf_hub_download

        path = cached(self.address, name)
        if self.marks is None:
            if path is None:
                raise HubError(f"{self.address} is in the Hub's cache without {name}: fetch it once more, online")
            if path.is_symlink():  # to a file that is named by its hash; where the cache cannot link it keeps none
                check(path, path.readlink().name, self.address)
            return path
        if name not in self.marks:
            raise HubError(f"{self.address} has no {name}: it is no run that selfie push has sent")
        size, mark = self.marks[name]
        with in_our_words(self.asked), self.progress(name, size if path is None else 0) as bar:
            # By the revision that was asked for: so the cache learns which commit it means, for when it is offline.
            path = Path(hf_hub_download(self.asked.repo, name, revision=self.asked.revision, tqdm_class=bar))
        if path.parent.name != self.address.revision:
            raise HubError(f"{self.asked} has changed while it was fetched, or the Hub did not answer: try again")
        check(path, mark, self.address)
        return path

    def has(self, name: str) -> bool:
        return cached(self.address, name) is not None if self.marks is None else name in self.marks

    @contextlib.contextmanager
    def progress(self, name: str, size: int) -> Iterator[Any]:
        """A bar for the client to call that shows on `talk`."""
        from huggingface_hub.utils.tqdm import tqdm

        with self.talk.track(f"fetching {name}", size) as advance:

            class Bar(tqdm):
                def __init__(self, *args: Any, **more: Any) -> None:
                    super().__init__(*args, **{**more, "disable": True})  # type: ignore[no-untyped-call]

                def update(self, n: float | None = 1) -> None:
                    self.n += n or 0
                    if self.total == size:  # Xet has a second bar, of what goes over the wire
                        advance(int(self.n), f"{self.n / 1e6:.1f} MB")

            yield Bar


def find(address: Address, *, offline: bool, talk: Talk) -> Snapshot:
    """The commit that an address means: by the cache if `offline`, HF_HUB_OFFLINE is set, or it is a commit that is
    there whole; else the Hub is asked. Raises HubError."""
    from huggingface_hub import HfApi, is_offline_mode

    there = [cached(address, name) for name in FILES[:2]]
    pinned = bool(COMMIT.fullmatch(address.revision or ""))
    if None in there and (offline or is_offline_mode()):
        why = "--offline" if offline else "HF_HUB_OFFLINE"
        raise HubError(f"{address} is not in the Hub's cache here: fetch it once without {why}")
    if there[0] is not None and None not in there and (offline or is_offline_mode() or pinned):
        return Snapshot(address=Address(address.repo, there[0].parent.name), asked=address, marks=None, talk=talk)
    with in_our_words(address):
        info = retried(
            lambda: HfApi().model_info(address.repo, revision=address.revision, files_metadata=True), talk=talk
        )
    marks = {
        each.rfilename: (each.size or 0, str(each.lfs.sha256 if each.lfs else each.blob_id))
        for each in info.siblings or []
    }
    found = Snapshot(address=Address(address.repo, info.sha), asked=address, marks=marks, talk=talk)
    missing = sum(marks[name][0] for name in FILES if name in marks and cached(found.address, name) is None)
    if missing:
        check_cache("models", address.repo, missing)
        talk.say(f"fetching {found.address} ({missing / 1e6:.1f} MB) from {host()}")
    return found


def check_cache(kind: str, repo: str, num_bytes: int) -> None:
    """Raises OSError if the Hub's cache has no room for what is to be fetched, but for files that were begun."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    begun = (cache / f"{kind}--{repo.replace('/', '--')}" / "blobs").glob("*.incomplete")
    check_room(cache, num_bytes - sum(file.stat().st_size for file in begun))


def cached(address: Address, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with in_our_words(address):
        path = try_to_load_from_cache(address.repo, name, revision=address.revision)
    return Path(path) if isinstance(path, str) else None


def check(path: Path, mark: str, address: Address) -> None:
    """Compare a file with its hash on the Hub: sha256 of what is stored large, else git's, the sha1 of a header and it.

    Raises HubError, and takes the file out of the cache, if they differ. The client itself looks at sizes only.
    """
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", mark):
        raise HubError(f"{host()} does not tell the hash of {path.name}, so that it cannot be checked")
    digest = hashlib.sha256()
    if len(mark) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: digest).hexdigest()
    if found != mark:
        blob = path.parent / path.readlink() if path.is_symlink() else path
        for each in {path.resolve(), blob, path}:
            each.unlink(missing_ok=True)
        raise HubError(f"{path.name} of {address} is damaged (its hash is another than the Hub's): fetch it again")


def host() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).partition("://")[2]


@dataclass(frozen=True, kw_only=True)
class Sent:
    url: str
    commit: str
    created: bool


def send(
    address: Address, files: dict[str, Path | bytes], *, private: Callable[[], bool], message: str, talk: Talk
) -> Sent:
    """Send files as one commit to a branch, made if it is not there; so is the repository, and then `private` is asked.

    Raises HubError; it never holds the token, which is taken from where `hf` keeps it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, is_offline_mode
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set: unset it to push")
    created = False
    with in_our_words(address):
        token = get_token()
        if token is None:
            raise HubError("no token for the Hub: log in with hf auth login, or set HF_TOKEN to one that may write")
        api = HfApi(token=token)
        try:
            retried(lambda: api.model_info(address.repo), talk=talk)
        except RepositoryNotFoundError:
            wanted, created = private(), True
            retried(lambda: api.create_repo(address.repo, private=wanted, exist_ok=True), talk=talk)
        branch = address.revision
        if branch and branch != constants.DEFAULT_REVISION:
            retried(lambda: api.create_branch(address.repo, branch=branch, exist_ok=True), talk=talk)

        def commit() -> Any:
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            return api.create_commit(address.repo, added, commit_message=message, revision=branch)

        # If only the answer to a first attempt was lost, a second one finds nothing changed and makes no other commit.
        oid = str(retried(commit, talk=talk).oid)
    return Sent(url=f"{constants.ENDPOINT}/{address.repo}", commit=oid, created=created)


def retried(call: Callable[[], T], *, talk: Talk) -> T:
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        talk.say(f"the Hub did not answer properly, trying again in {wait:g} s")
        time.sleep(wait)
    return call()


def cause(error: Exception) -> Exception:
    """Uploads wrap what went wrong in a RuntimeError."""
    return error.__cause__ if type(error) is RuntimeError and isinstance(error.__cause__, Exception) else error


def is_transient(error: Exception) -> bool:
    error = cause(error)
    return status_of(error) in TRANSIENT or (of_http_library(error) and type(error).__name__ != "ConnectError")


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def of_http_library(error: Exception) -> bool:
    """Whether this is an error of the connection: httpx, or since huggingface_hub 2 its successor."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


@contextlib.contextmanager
def in_our_words(address: Address) -> Iterator[None]:
    """What the client raises becomes a HubError of one line; errors of the system and bugs pass.

    Its own words are repeated nowhere: addresses of storage are signed, and a faulty header is shown with the token. So
    nothing is chained either, and while it works it logs nothing but errors. That a disk has too little room is an
    error, too, before anything is fetched; to the client it is a warning.
    """
    from huggingface_hub.utils import logging as client

    level = client.get_verbosity()
    client.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough free disk space", UserWarning)
            yield
    except SelfieError:
        raise
    except Exception as error:
        said = reason(cause(error), address)
        if said is None:
            raise
        raise said from None
    finally:
        client.set_verbosity(level)


def reason(error: Exception, address: Address) -> SelfieError | None:
    """What to tell of an error of the client; None if it is none of its."""
    from huggingface_hub import constants, errors, get_token

    repo, status = address.repo, status_of(error)
    if isinstance(error, UserWarning):
        where = f"{constants.HF_HUB_CACHE}, the Hub's cache"
        return HubError(f"no room for {repo} in {where}: make some, or set HF_HUB_CACHE to a folder on another disk")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo!r} is no name that the Hub allows: expected owner/name")
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo} is gated: ask for access at {host()}/{repo}, and log in with hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {address.revision}: name a branch, a tag or a whole commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        seen = "the token here may not see it" if get_token() else "it is private: log in with hf auth login"
        return HubError(f"no repository {repo} on {host()}, or {seen}")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return HubError(f"{address} lacks a file: it is no run that selfie push has sent")
    if status == 401:
        return HubError("the token for the Hub is not valid: log in again with hf auth login, or mend HF_TOKEN")
    if status == 403:
        return HubError(f"the token here may not do this with {repo}: take one that may write there, or another owner")
    if status is not None:
        return HubError(f"{host()} answered {status} on {repo}: try again later, or look there")
    if of_http_library(error):
        hint = "check the connection; what is in the cache is taken with HF_HUB_OFFLINE=1"
        return HubError(f"{host()} cannot be reached, or broke off ({type(error).__name__}): {hint}")
    if (isinstance(error, OSError) and error.errno is None) or isinstance(error, ValueError | RuntimeError):
        return HubError(f"{repo} could not be transferred ({type(error).__name__}): try again")
    return None
