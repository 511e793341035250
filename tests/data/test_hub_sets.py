"""Data sets from the Hub: the real client over real HTTP against a server on loopback (tests/hub_server.py)."""

from pathlib import Path

import pytest
from hub_server import Hub, Repository
from listening import Listener
from pictures import png, write_parquet
from running import SMALL, config_of, lines_of, read, same_weights, selfie

from selfie_cli.data.hub_sets import fetch
from selfie_cli.data.sources import DataSet
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.errors import DataError, HubError, UsageError
from selfie_cli.files import write_json
from selfie_cli.talk import Talk

PETS = "hf://datasets/acme/pets"
FEW = ("--steps", 1, "--batch-size", 4, "--precision", "fp32", "--no-report", "--no-check-length")


def parquet(first: int) -> bytes:
    rows = range(first, first + 10)
    made = write_parquet(Path("made"), [png(row) for row in rows], [row % 2 for row in rows], ["cat", "dog"])
    return Path(made).read_bytes()


def commit(repository: Repository, *, first: int = 0, config: str = "data") -> None:
    """Two files to train on and one to test on, beside files that nobody has asked for."""
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    files = {f"{config}/{name}.parquet": (parquet(first + 10 * n), True) for n, name in enumerate(names)}
    more = {"README.md": (b"# pets\n", False), "pets.py": (b"1/0\n", False), "old.pkl": (b"cos\nsystem\n.", True)}
    repository.commit("main", {**files, **more})


@pytest.fixture
def pets(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.repositories["datasets/acme/pets"] = repository = Repository()
    commit(repository)
    return repository


def get(address: str = PETS, *, offline: bool = False) -> DataSet:
    return fetch(address, offline=offline, talk=Talk())


def paths(found: DataSet, *parts: str) -> list[str]:
    """The files of the parts, all of them by default, which are downloaded."""
    return [path for part in parts or sorted(found.parts) for path in found.open(part).paths]


def fetched(hub: Hub) -> list[str]:
    """Names of files that were asked for: what is stored large comes from elsewhere, by its hash."""
    asked = (path for method, path, _ in hub.requests if method == "HEAD" and "/resolve/" in path)
    return sorted(path.rpartition("/")[2] for path in asked)


def test_only_what_is_needed_is_downloaded_and_said(hub: Hub, pets: Repository) -> None:
    talk = Listener()
    train = open_unlabelled([PETS], data_root=Path(), offline=False, talk=talk)
    sha = pets.branches["main"]
    names = [f"train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert [Path(path).name for path in train.paths] == fetched(hub) == names
    assert train.pinned == {PETS: f"{PETS}@{sha}"}
    assert talk.lines[:2] == [f"data: {PETS}@{sha}", f"{PETS}: only train is read, test is kept for evaluation"]
    assert talk.lines[2].startswith(f"downloading 2 files (0.0 MB) of {PETS} from 127.0.0.1")
    hub.requests.clear()
    assert (get().name, paths(get(), "train")) == ("pets", train.paths)
    assert fetched(hub) == []


@pytest.mark.parametrize("listed", ["", "[]", "{}", '{"commit": "main", "files": {}}', '{"commit": null, "files": 3}'])
def test_a_damaged_list_of_files_is_named(pets: Repository, tmp_path: Path, listed: str) -> None:
    get()
    note = tmp_path / "hf/hub/datasets--acme--pets/selfie/main.json"
    assert note.is_file()
    note.write_text(listed)
    with pytest.raises(HubError, match="is damaged: remove it"):
        get(offline=True)


def test_what_is_whole_in_the_cache_is_taken_offline(hub: Hub, pets: Repository) -> None:
    with pytest.raises(HubError, match="not in the Hub's cache here: fetch it once online"):
        get(offline=True)
    hub.corrupt = bytes(len(parquet(0)))
    with pytest.raises(HubError):
        paths(get(), "train")
    hub.corrupt = None
    found = paths(get(), "train")
    assert Path(found[0]).read_bytes() == parquet(0)
    hub.requests.clear()
    assert paths(get(offline=True), "train") == found
    with pytest.raises(HubError, match="not complete in the Hub's cache"):  # the test part is known, and not there
        paths(get(offline=True))
    assert hub.requests == []


def test_what_the_hub_has_converted(pets: Repository) -> None:
    pets.commits[pets.branches["main"]] = {"pets.zip": (b"PK", True)}
    with pytest.raises(DataError, match="no parquet files, and the Hub has not converted it"):
        get()
    pets.commits["c" * 40] = {f"default/{part}/0000.parquet": (parquet(0), True) for part in ("train", "test")}
    pets.branches["refs/convert/parquet"] = "c" * 40
    assert get().parts.keys() == {"test", "train"}
    found, pinned = paths(get()), f"{PETS}@{'c' * 40}"
    assert get().open("train").pinned == {PETS: pinned}
    assert paths(get(offline=True)) == paths(get(pinned, offline=True)) == found


def test_configurations(pets: Repository) -> None:
    commit(pets, config="grey")
    with pytest.raises(DataError, match=r"several data sets default, grey: name one as hf://datasets/acme/pets:config"):
        get()
    found = get(f"{PETS}@main:grey")
    assert all("/grey/" in path for path in paths(found))
    assert found.name == "pets-grey"
    (pinned,) = found.open("train").pinned.values()
    assert paths(get(pinned)) == paths(found)
    with pytest.raises(DataError, match="has no blue, but default, grey"):
        get(f"{PETS}:blue")


@pytest.mark.parametrize("text", ["hf://datasets/pets", f"{PETS}@", f"{PETS}:", f"{PETS}@../x", "hf://datasets/a/b/c"])
def test_what_is_no_address(hub: Hub, text: str) -> None:
    with pytest.raises(UsageError, match="expected hf://datasets/owner/name"):
        get(text)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["../../train.parquet", "/train.parquet", "data/../../../train-1.parquet"])
def test_names_that_lead_out_of_the_cache(pets: Repository, tmp_path: Path, name: str) -> None:
    pets.commits[pets.commit("main", {})] = {name: (parquet(0), True)}  # and nothing else
    with pytest.raises((HubError, DataError), match=r"leads out of the cache|has no parquet files"):
        get()
    assert not [file for file in tmp_path.rglob("train*.parquet") if "hf" not in file.parts]
    assert not Path("/train.parquet").exists()


def test_a_run_records_its_commit_and_resumes_on_it(pets: Repository) -> None:
    selfie("pretrain", PETS, *SMALL, "--steps", 4, "--warmup-steps", 1, "--out", "run")
    config, pinned = config_of("run"), {PETS: f"{PETS}@{pets.branches['main']}"}
    assert (config["asked"]["data"], config["data"]["pinned"]) == ([PETS], pinned)
    selfie("finetune", "--from", "run", "--dataset", PETS, *FEW, "--out", "tuned")
    assert config_of("tuned")["data"]["pinned"] == pinned
    assert read("tuned/results.json")["num_test"] == 10

    commit(pets, first=100)
    Path("stopped").mkdir()
    write_json(Path("stopped/config.json"), {**config, "progress": {"status": "running"}})
    assert pinned[PETS] in selfie("pretrain", "--resume", "stopped").stderr
    assert same_weights(Path("run"), Path("stopped"))
    losses = [[line["loss"] for line in lines_of(f"{run}/metrics.jsonl")] for run in ("run", "stopped")]
    assert losses[0] == losses[1]
