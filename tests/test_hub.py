"""What comes from the Hub: the real client over real HTTP against a server on loopback (tests/hub_server.py).

Xet, the Hub's other way to move large files, is switched off (HF_HUB_DISABLE_XET=1): its own servers and chunks are not
imitated. Neither are multipart uploads, rate limits, OIDC tokens, or a cache on a file system without links.
"""

import os
import shutil
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_server import READ_ONLY, TOKEN, Hub, Repository, sha256
from running import config_of, draw_folder, error_of, same_weights, selfie
from safetensors.torch import load_file, save

from selfie_cli import hub as on_hub
from selfie_cli import runs
from selfie_cli.errors import HubError, UsageError

BUNDLED = runs.bundled_folder()
NET = "hf://acme/net"
Patch = pytest.MonkeyPatch


@pytest.fixture
def net(hub: Hub) -> Repository:
    """The bundled network as a repository, beside files that nobody has asked for."""
    hub.repositories["acme/net"] = repository = Repository()
    commit(repository)
    return repository


def commit(repository: Repository, **changed: bytes) -> str:
    names = {"config": "config.json", "model": "model.safetensors"}
    files = {names[key]: changed.get(key, (BUNDLED / names[key]).read_bytes()) for key in names}
    files |= {"README.md": b"# net\n", "weights.pkl": b"cos\nsystem\n.", "run.py": b"1/0\n"}
    files |= {"../../x": b"x", "a\x1b[2J": b"x"}
    large = (".safetensors", ".pkl")
    return repository.commit("main", {name: (data, name.endswith(large)) for name, data in files.items()})


def weights_of(net: Repository) -> bytes:
    return net.commits[net.branches["main"]]["model.safetensors"][0]


def cache() -> set[Path]:
    """Everything in the Hub's cache."""
    from huggingface_hub import constants

    return {*Path(constants.HF_HUB_CACHE).rglob("*")}


def fetched(hub: Hub) -> bool:
    """Whether weights were asked for."""
    return any(path.startswith("/storage/") for _, path, _ in hub.requests)


NO_ADDRESSES = ("net", "a/b/c", "", "hf://datasets/acme/net", "acme/net@", "a/ne t", "../net", "a\n/b", "a/b@../x")


def test_addresses() -> None:
    for text in ("acme/net", NET):
        assert on_hub.parse(text) == on_hub.Address("acme/net")
        assert str(on_hub.parse(f"{text}@feature/x")) == str(on_hub.parse(text, "feature/x")) == f"{NET}@feature/x"
        with pytest.raises(UsageError, match="two revisions"):
            on_hub.parse(f"{text}@a", "b")
    for text in NO_ADDRESSES:
        with pytest.raises(UsageError):
            on_hub.parse(text)


def test_only_the_runs_own_files_are_fetched_and_storage_gets_no_token(
    hub: Hub, net: Repository, monkeypatch: Patch
) -> None:
    net.private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    selfie("pull", "acme/net")
    assert sorted(os.listdir("runs/net")) == ["README.md", "config.json", "model.safetensors"]
    assert same_weights(Path("runs/net"), BUNDLED)
    asked = [path.rpartition("/")[2] for _, path, _ in hub.requests if "/resolve/" in path]
    assert set(asked) == {"README.md", "config.json", "model.safetensors"}
    sent = [(path.startswith("/storage"), headers.get("authorization")) for _, path, headers in hub.requests]
    assert {token for stored, token in sent if stored} == {None}
    assert {token for stored, token in sent if not stored} == {f"Bearer {TOKEN}"}


LOST = [("cut", 0, "broke off"), ("corrupt", 0, "is damaged"), ("corrupt", 1000, "could not be transferred")]


@pytest.mark.parametrize(("fault", "lost", "words"), LOST)
def test_weights_cut_damaged_or_truncated_are_refused_and_forgotten(
    hub: Hub, net: Repository, fault: str, lost: int, words: str
) -> None:
    good = weights_of(net)
    kept = 2 * len(good) // 3
    hub.cuts, hub.corrupt = (1000, None) if fault == "cut" else (0, good[:kept] + b"\1" * (len(good) - kept - lost))
    assert words in error_of("pull", "acme/net")
    assert not Path("runs").exists()
    assert sha256(good) not in {path.name for path in cache()}
    hub.cuts, hub.corrupt = 1, None
    run = runs.open_run(NET)
    run.weights.resolve().write_bytes(good[:-4] + b"\1\2\3\4")
    with pytest.raises(HubError, match="is damaged"):
        runs.open_run(NET, offline=True)
    selfie("pull", "acme/net")
    assert same_weights(Path("runs/net"), BUNDLED)


def weights_with(change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    tensors = load_file(BUNDLED / "model.safetensors")
    return save({key: change(each) for key, each in tensors.items()}, {"format_version": "1"})


NO_RUNS = [
    ({"config": b'{"architectures": ["ViT"]}'}, "is not the config of a selfie run"),
    ({"model": b"cos\nsystem\n(S'true'\ntR."}, "no safetensors file"),
    ({"model": weights_with(torch.Tensor.half)}, "torch.float16 [128], not torch.float32 [128]"),
]


@pytest.mark.parametrize(("changed", "words"), NO_RUNS)
def test_what_is_no_run_or_does_not_fit_is_not_placed(
    hub: Hub, net: Repository, changed: dict[str, bytes], words: str
) -> None:
    commit(net, **changed)
    assert words in error_of("pull", "acme/net")
    assert not Path("runs").exists()
    assert fetched(hub) == ("config" not in changed)  # a config that is none is told before


REFUSED: list[tuple[str, str | None, dict[str, bool], str]] = [
    ("pull acme/nothing", None, {}, "no repository acme/nothing"),
    ("pull acme/net", None, {"private": True}, "log in with hf auth login"),
    ("pull acme/net", READ_ONLY, {"private": True}, "the token here may not see it"),
    ("pull acme/net", "hf_wrong", {}, "is not valid"),
    ("pull acme/net", None, {"gated": True}, "is gated: ask for access at"),
    ("pull acme/net@v9", None, {}, "no revision v9"),
    ("pull acme--x/net", None, {}, "is not a valid name on the Hub"),
    ("push bundled acme/new --public", None, {}, "no token for the Hub: log in with hf auth login, or set HF_TOKEN"),
    ("push bundled acme/new --public", "hf_wrong", {}, "is not valid"),
    ("push bundled acme/new --public", READ_ONLY, {}, "may not do this"),
    ("push bundled others/new --public", TOKEN, {}, "may not do this"),
]


@pytest.mark.parametrize(("command", "token", "change", "words"), REFUSED)
def test_what_may_not_be_read_or_written_is_one_line(
    hub: Hub, net: Repository, monkeypatch: Patch, command: str, token: str | None, change: Any, words: str
) -> None:
    vars(net).update(change)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = error_of(*command.split(), code=2 if "acme--x" in command else 1)
    assert words in said
    assert token is None or token not in said
    assert hub.repositories.keys() == {"acme/net"}


def test_a_server_in_trouble_is_asked_again_but_not_for_ever(hub: Hub, net: Repository, monkeypatch: Patch) -> None:
    from huggingface_hub import constants

    hub.answers = {"HEAD /acme/net": [500, 503, 429], "GET /storage": [429]}
    selfie("pull", "acme/net")
    hub.answers = {"HEAD /acme/net": [500] * 99}
    assert "answered 500" in error_of("pull", "acme/net", "--out", "again")
    hub.answers = {}
    del net.commits[net.branches["main"]]["config.json"]
    assert "lacks a file" in error_of("pull", "acme/net", "--out", "again")
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.url, "http://127.0.0.1:9"))
    assert "127.0.0.1:9 cannot be reached" in error_of("pull", "acme/net", "--out", "again")


def test_a_cache_without_room_is_one_line_and_fetches_nothing(hub: Hub, net: Repository, monkeypatch: Patch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**9, free=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as a user has it
        assert "MB will be written, and 0.00 MB are free" in error_of("pull", "acme/net")
    assert not fetched(hub)


@pytest.mark.parametrize("token", ["hf_secret\x01", "hf_secrét", "hf_secret"])
def test_no_token_in_any_error_nor_its_traceback(hub: Hub, net: Repository, monkeypatch: Patch, token: str) -> None:
    monkeypatch.setenv("SELFIE_DEBUG", "1")
    monkeypatch.setenv("HF_TOKEN", token)
    for arguments in (("pull", "acme/net"), ("push", "bundled", "acme/net")):
        with pytest.raises(HubError) as caught:
            selfie(*arguments)
        assert "hf_secr" not in "".join(traceback.format_exception(caught.value))


def test_it_says_once_what_is_fetched_and_offline_the_cache_serves(
    hub: Hub, net: Repository, monkeypatch: Patch
) -> None:
    draw_folder(Path("drawn"), train=1, test=1)
    said, again = (selfie("embed", "drawn", "--from", NET) for _ in range(2))
    commit, online = f"{NET}@{net.branches['main']}", again.stdout
    assert f"fetching {commit} ({len(weights_of(net)) / 1e6:.1f} MB) from {hub.url[7:]}" in said.stderr
    assert f"weights: {commit} (Selfie over many small views" in said.stderr
    assert "fetching" not in again.stderr
    hub.requests.clear()
    selfie("pull", "acme/net", "--offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert selfie("embed", "drawn", "--from", NET).stdout == online
    assert "not in the Hub's cache" in error_of("embed", "drawn", "--from", f"{NET}@v2")
    assert "HF_HUB_OFFLINE is set" in error_of("push", "bundled", "acme/net")
    assert "--offline" in error_of("pull", "acme/other", "--offline")
    assert hub.requests == []


def test_a_commit_stays_what_it_was_and_needs_no_network_again(hub: Hub, net: Repository, monkeypatch: Patch) -> None:
    first = net.branches["main"]
    second = commit(net, model=weights_with(torch.zeros_like))
    pinned, newest = runs.open_run(f"{NET}@{first}"), runs.open_run(NET)
    assert (pinned.address, newest.address) == (f"{NET}@{first}", f"{NET}@{second}")
    assert same_weights(pinned.path, BUNDLED)
    assert not same_weights(newest.path, BUNDLED)
    hub.requests.clear()
    runs.open_run(f"{NET}@{first}")
    assert hub.requests == []


def test_other_verbs_take_it_and_write_nothing_into_the_cache(hub: Hub, net: Repository) -> None:
    photo = next(draw_folder(Path("drawn"), train=40, test=20).rglob("*.png"))
    selfie("embed", "drawn", "--from", NET, "--out", "vectors.npy")
    files = cache()
    assert photo.name in selfie("similar", photo, "--in", "vectors.npy", "--from", NET).stdout
    selfie("export", NET, "--to", "safetensors")
    selfie("report", NET, "--dataset", "drawn", "--out", "page.html")
    assert Path("page.html").stat().st_size > 10_000
    assert f"{NET}@{net.branches['main']} is not one of yours" in selfie("eval", NET, "--dataset", "drawn").stderr
    assert cache() == files


def test_a_pulled_run_says_where_it_came_from_and_an_occupied_folder_stays(
    hub: Hub, net: Repository, monkeypatch: Patch
) -> None:
    shown, address = selfie("pull", NET).stdout, f"{NET}@{net.branches['main']}"
    assert address in shown
    assert "next: selfie embed photo.jpg --from runs/net" in shown
    assert config_of("runs/net")["hub"] == {"address": address}
    assert "--overwrite, or choose another --out" in error_of("pull", "acme/net")
    selfie("pull", "acme/net", "--overwrite")
    shutil.rmtree("runs/net")
    Path("runs/net").mkdir()
    Path("runs/net/photo.jpg").touch()
    assert "no run that this version reads" in error_of("pull", "acme/net", "--overwrite")
    monkeypatch.setattr(runs, "check_free", lambda *_, **__: None)  # as if the photo came during the download
    assert "not empty" in error_of("pull", "acme/net")
    assert os.listdir("runs/net") == ["photo.jpg"]
