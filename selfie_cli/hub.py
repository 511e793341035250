"""Repositories on the Hugging Face Hub: addresses, verified downloads, uploads, and one-line errors."""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selfie_cli.errors import HubError, SelfieError, UsageError
from selfie_cli.files import check_room
from selfie_cli.talk import Talk

# huggingface_hub reads this on import. Without it, requests tell which version of torch is installed.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
PREFIX = "hf://"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[\w./+-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
WAITS = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry."""
TRANSIENT = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


class NoRevision(HubError):
    """The repository exists, but not this branch, tag or commit."""


@dataclass(frozen=True)
class Address:
    """A repository owner/name and its branch, tag or commit; None is the main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def at(self, path: Path) -> "Address":
        """Return the address of the same repository at the commit of a file in the Hub's cache."""
        return Address(self.repo, path.parent.name)


def is_address(text: str) -> bool:
    return text.startswith(PREFIX)


def parse(text: str, revision: str | None = None) -> Address:
    """Parse owner/name or hf://owner/name[@revision], with the value of --revision. Raise UsageError for others."""
    repo, _, named = text.removeprefix(PREFIX).partition("@")
    if not NAME.fullmatch(repo) or text.endswith("@") or not REVISION.fullmatch(revision or named or "main"):
        raise UsageError(f"{text!r} is no repository on the Hub: expected owner/name or hf://owner/name[@revision]")
    if named and revision and named != revision:
        raise UsageError(f"{text} and --revision {revision} name two revisions: leave one out")
    return Address(repo, named or revision)


def fetch(address: Address, name: str, *, offline: bool, talk: Talk) -> Path:
    """Return a repository's file in the Hub's cache. Its folder is named after the commit: see `Address.at`.

    The Hub is asked for the commit, unless `offline` or HF_HUB_OFFLINE is set, or the address is a commit and the file
    is cached. huggingface_hub downloads, resumes and compares sizes; hashes are compared here. Raise HubError.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode
    from huggingface_hub import try_to_load_from_cache as cached

    asked: dict[str, Any] = {"repo_id": address.repo, "filename": name, "revision": address.revision}
    offline_by = "--offline" if offline else "HF_HUB_OFFLINE" if is_offline_mode() else ""
    mark: str | None
    with in_our_words(address):
        there = cached(**asked)
        if isinstance(there, str) and (offline_by or COMMIT.fullmatch(address.revision or "")):
            path = Path(there)
            mark = path.readlink().name if path.is_symlink() else None  # a cache without links keeps no hashes
        elif offline_by:
            raise HubError(f"{name} of {address} is not in the Hub's cache here: fetch it once without {offline_by}")
        else:
            told = retried(lambda: get_hf_file_metadata(hf_hub_url(**asked)), talk=talk)
            commit, size, mark = str(told.commit_hash), told.size or 0, str(told.etag)
            missing = cached(**{**asked, "revision": commit}) is None
            if missing:
                check_cache("models", address.repo, size)
            if missing and name.endswith(".safetensors"):
                talk.say(f"fetching {Address(address.repo, commit)} ({size / 1e6:.1f} MB) from {host()}")
            with progress(name, size if missing else 0, talk) as bar:
                # Pass the revision, not the commit, so that the cache stores the revision's commit for offline use.
                path = Path(hf_hub_download(**asked, tqdm_class=bar))
            if path.parent.name != commit:
                raise HubError(f"{address} has changed while it was fetched, or the Hub did not answer: try again")
    if mark is not None:
        check(path, mark, address.at(path))
    return path


@contextlib.contextmanager
def progress(name: str, size: int, talk: Talk) -> Iterator[Any]:
    """Yield a progress bar class for huggingface_hub that reports to `talk`."""
    from huggingface_hub.utils.tqdm import tqdm

    with talk.track(f"fetching {name}", size) as advance:

        class Bar(tqdm):
            def __init__(self, *args: Any, **more: Any) -> None:
                super().__init__(*args, **{**more, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                if self.total == size:  # Xet has a second bar for transferred bytes
                    advance(int(self.n), f"{self.n / 1e6:.1f} MB")

        yield Bar


def check_cache(kind: str, repo: str, num_bytes: int) -> None:
    """Raise OSError if the Hub's cache has no room for `num_bytes` minus the size of partial downloads.

    huggingface_hub itself only warns, once per file.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    begun = (cache / f"{kind}--{repo.replace('/', '--')}" / "blobs").glob("*.incomplete")
    check_room(cache, num_bytes - sum(file.stat().st_size for file in begun))


def check(path: Path, mark: str, address: Address) -> None:
    """Compare a file with its hash on the Hub: sha256 for large files, git's sha1 for others.

    huggingface_hub compares sizes only. If the hashes differ, remove the file from the cache and raise HubError.
    """
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", mark):
        raise HubError(f"{host()} gives no hash of {path.name}, so the file cannot be verified")
    digest = hashlib.sha256()
    if len(mark) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: digest).hexdigest()
    if found != mark:
        for each in {path.resolve(), path}:
            each.unlink(missing_ok=True)
        raise HubError(f"{path.name} of {address} is damaged (its hash differs from the Hub's): download it again")


def host() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).partition("://")[2]


def send(
    address: Address, files: dict[str, Path | bytes], *, private: Callable[[], bool], message: str, talk: Talk
) -> tuple[str, str, bool]:
    """Send files as one commit to a branch. The branch and the repository are created if they do not exist.

    `private` is called only if the repository has to be created. The token is the one that `hf` stores. Return the
    repository's page, the commit, and whether the repository was created. Raise HubError.
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

        num_bytes = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in files.values())
        talk.say(f"uploading {num_bytes / 1e6:.1f} MB to {address} on {host()}")

        def commit() -> Any:
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            return api.create_commit(address.repo, added, commit_message=message, revision=branch)

        # If only the response was lost, a second attempt finds no changes and makes no second commit.
        oid = str(retried(commit, talk=talk).oid)
    return f"{constants.ENDPOINT}/{address.repo}", oid, created


def retried(call: Callable[[], T], *, talk: Talk) -> T:
    """Call, and retry after transient errors that huggingface_hub does not retry itself."""
    for wait in WAITS:
        try:
            return call()
        except Exception as raised:
            error = cause(raised)
            if status_of(error) not in TRANSIENT and (
                not is_connection_error(error) or type(error).__name__ == "ConnectError"
            ):
                raise
        talk.say(f"the Hub did not answer properly, trying again in {wait:g} s")
        time.sleep(wait)
    return call()


def cause(error: Exception) -> Exception:
    """Return the error inside huggingface_hub's RuntimeError (uploads) or LocalEntryNotFoundError (downloads)."""
    wrapped = type(error) is RuntimeError or type(error).__name__ == "LocalEntryNotFoundError"
    return error.__cause__ if wrapped and isinstance(error.__cause__, Exception) else error


def status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def is_connection_error(error: Exception) -> bool:
    """Return whether the HTTP library of huggingface_hub raised this: httpx, or httpx2 since huggingface_hub 2."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


@contextlib.contextmanager
def in_our_words(address: Address) -> Iterator[None]:
    """Turn huggingface_hub's errors into one-line HubErrors. Errors of the system and bugs pass unchanged.

    The original messages are not shown, chained or logged: they may contain signed storage addresses and, for a faulty
    header, the token.
    """
    from huggingface_hub.utils import logging as client

    level = client.get_verbosity()
    client.set_verbosity(logging.ERROR)
    try:
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
    """Return the error to raise for an error of huggingface_hub; None for any other error."""
    from huggingface_hub import errors, get_token

    repo, status = address.repo, status_of(error)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{repo!r} is not a valid name on the Hub: expected owner/name")
    if isinstance(error, errors.GatedRepoError):
        text = f"{repo} is gated: ask for access at {host()}/{repo}, and log in with hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        return NoRevision(f"{repo} has no revision {address.revision}: name a branch, a tag or a whole commit")
    elif isinstance(error, errors.RepositoryNotFoundError):
        seen = "the token here may not see it" if get_token() else "it is private: log in with hf auth login"
        text = f"no repository {repo} on {host()}, or {seen}"
    elif isinstance(error, errors.EntryNotFoundError) and status == 404:
        text = f"{address} lacks a file of a run, or of timm: config.json and model.safetensors are expected"
    elif status == 401:
        text = "the token for the Hub is not valid: log in again with hf auth login, or mend HF_TOKEN"
    elif status == 403:
        text = f"the token here may not do this with {repo}: take one that may write there, or another owner"
    elif status is not None:
        text = f"{host()} answered {status} on {repo}: try again later, or look there"
    elif is_connection_error(error):
        hint = "check the connection; what is in the cache is taken with HF_HUB_OFFLINE=1"
        text = f"{host()} cannot be reached, or broke off ({type(error).__name__}): {hint}"
    elif (isinstance(error, OSError) and error.errno is None) or isinstance(error, ValueError | RuntimeError):
        text = f"{repo} could not be transferred ({type(error).__name__}): try again"
    else:
        return None
    return HubError(text)
