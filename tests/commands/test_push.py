"""selfie push, and pull elsewhere: what is sent, what is not, who may read it, and what a stranger reads."""

import html
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, Repository
from markdown_it import MarkdownIt
from running import COMMAND, ENVIRONMENT, SMALL, change, config_of, document, draw_folder, error_of, read, selfie

from selfie_cli import runs

# The client calls its HTTP library in a way that this discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def sent(hub: Hub, name: str = "acme/net", branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[name]
    files = repository.commits[repository.branches[branch]]
    return {path: data for path, (data, _) in files.items() if path != ".gitattributes"}


def card_of(text: str) -> Any:
    """Read back by huggingface_hub itself."""
    from huggingface_hub import ModelCard

    Path("card.md").write_text(text, encoding="utf-8")
    return ModelCard.load("card.md")


def environment_of(hub: Hub, home: str, **more: str) -> dict[str, str]:
    """The environment of a process with a home and a cache of its own."""
    known = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("HF_")}
    return known | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(Path(home).resolve()), **more}


def test_who_may_read_is_said_or_nothing_is_made(hub: Hub, token: None) -> None:
    assert "--private or --public" in error_of("push", "bundled", "acme/net", code=2)  # there is no terminal to ask on
    assert hub.repositories == {}
    for name, flag in (("acme/net", "--private"), ("acme/open", "--public")):
        assert "created, now at" in selfie("push", "bundled", name, flag).stdout
        assert "created" not in selfie("push", "bundled", name, "--public").stdout  # of what is there, nothing changes
        assert hub.repositories[name].private is (flag == "--private")


@pytest.mark.parametrize(("arguments", "code"), [("push bundled a/b --dry-run", 0), ("embed -", 2)])
def test_with_standard_input_closed(arguments: str, code: int) -> None:
    command = ["sh", "-c", '"$@" <&-', "sh", *COMMAND, *arguments.split()]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


def test_on_a_terminal_one_is_asked(hub: Hub) -> None:
    ours, theirs = pty.openpty()
    argv, environment = [*COMMAND, "push", "bundled", "acme/net"], environment_of(hub, "mine", HF_TOKEN=TOKEN)
    with subprocess.Popen(argv, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment) as process:
        shown = b""
        while b"?" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"\nn\n")  # there is no default
        assert b"now at" in process.stdout.read()  # type: ignore[union-attr]
    os.close(ours)
    os.close(theirs)
    assert hub.repositories["acme/net"].private is False


def test_a_dry_run_needs_nobody_and_shows_all(hub: Hub) -> None:
    asked = ("push", "bundled", "acme/net", "--dry-run")
    shown, told = selfie(*asked).stdout, document(*asked)
    size = (runs.bundled_folder() / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in shown
    assert "# net" in shown
    assert (sorted(told["files"]), told["url"], hub.requests) == (FILES, None, [])


def test_a_branch_is_made_and_what_lay_there_stays(hub: Hub, token: None, pretrained: Path) -> None:
    hub.repositories["acme/net"] = repository = Repository()
    repository.commit("main", {"notes.txt": (b"mine", False)})
    before = repository.branches["main"]
    for _ in range(2):  # the second finds the branch
        selfie("push", pretrained, "acme/net", "--revision", "v2")
    assert repository.branches["main"] == before
    assert sorted(sent(hub, branch="v2")) == [*FILES, "notes.txt"]
    assert "hf://acme/net@v2" in sent(hub, branch="v2")["README.md"].decode()
    selfie("pull", "hf://acme/net@v2")
    assert "lacks a file of a run" in error_of("pull", "acme/net", "--out", "other")


def test_all_goes_in_one_commit_and_transient_errors_pass(hub: Hub, token: None) -> None:
    hub.repositories["acme/net"] = repository = Repository()
    repository.commit("main", {})
    hub.answers = {"PUT /upload": [500], "POST /api/models/acme/net/commit": [503], "GET /api/models": [502]}
    selfie("push", "bundled", "acme/net")
    assert (len(repository.commits), sorted(sent(hub))) == (2, FILES)


def test_only_finished_runs_that_can_be_loaded(hub: Hub, token: None, pretrained: Path) -> None:
    shutil.copytree(pretrained, "mine")
    Path("mine/eval-x.json").write_text('{"knn": 1}')
    assert "a file in mine is damaged, or of another version" in error_of("push", "mine", "acme/net", "--public")
    run = runs.open_run("mine")
    run.update(derived={"backbone": "resnetv2_18"})
    assert "does not fit" in error_of("push", "mine", "acme/net", "--public")
    run.update(progress={"status": "running"})
    assert "is not finished: selfie pretrain --resume" in error_of("push", "mine", "acme/net", "--public")
    assert hub.requests == []


SECRET = "patients-of-dr-x"


def test_no_path_and_no_private_name_leaves(hub: Hub, token: None, images: Path) -> None:
    """Every free text that a run's config can hold is planted, and none of it is found again."""
    draw_folder(Path(SECRET), train=20, test=10)
    selfie("pretrain", images, *SMALL, "--backbone", "resnetv2_10_w32", "--steps", 1, "--out", f"{SECRET}-run")
    tuning = ("--dataset", SECRET, "--from", f"{SECRET}-run", "--steps", 1, "--no-check-length", *SMALL[2:])
    paths = ("--data-root", f"{SECRET}/d", "--store", f"{SECRET}-store")
    selfie("finetune", *tuning, *paths, "--out", f"{SECRET}-tuned")
    selfie("curve", *tuning, *paths, "--fractions", 1, "--seeds", 1, "--from", "bundled", "--out", f"{SECRET}-curve")
    for run in (f"{SECRET}-run", f"{SECRET}-tuned", f"{SECRET}-curve"):
        selfie("eval", run, "--dataset", SECRET)
        known = config_of(run)
        text = {key: SECRET for key, value in known["asked"].items() if isinstance(value, str) and "/" in value}
        change(run, asked=known["asked"] | text, notes=SECRET)
        selfie("push", run, "acme/net", "--public")
        files = sent(hub)
        for word in (SECRET, *Path.cwd().parts[-2:]):
            assert word.encode() not in b"".join(files.values()), word
        assert not re.search(r"""["' (]/\w+/\w""", files["README.md"].decode())
        config = json.loads(files["config.json"])
        assert (config["derived"], config["asked"]["seed"]) == (known["derived"], known["asked"]["seed"])
        assert config["asked"].get("dataset") is None
    assert [each["path"] for each in config["from"]] == [None, "bundled"]
    assert "FOLDER" in files["README.md"].decode()


def test_the_card_of_a_pretrained_run_holds_what_was_measured(pretrained: Path, images: Path) -> None:
    shutil.copytree(pretrained, "mine")
    selfie("eval", "mine", "--dataset", images, "--k", 7, "--temperature", 0.1)
    found = read("mine/eval-images.json")
    text = document("push", "mine", "acme/net", "--dry-run")["card"]
    data = card_of(text).data
    assert {each.metric_name: each.metric_value for each in data.eval_results} == {
        "accuracy of kNN (k 7, temperature 0.1)": round(found["trained"]["knn"], 4),
        "accuracy of a linear probe": round(found["trained"]["linear"], 4),
    }
    assert (data.library_name, data.pipeline_tag, data.license) == ("selfie-cli", "image-feature-extraction", None)
    values = (found["trained"]["knn"], found["untrained"]["knn"], found["majority"], found["chance"])
    fingerprint = runs.open_run("mine").config["data"]["fingerprint"]
    told = (*(f"{100 * value:.1f}" for value in values), fingerprint, "| steps | 20 |", "| seed | 0 |", "hf://acme/net")
    for words in (*told, "licence", "timm and torchvision have no such network"):  # a 3x3 stem, 16 wide
        assert words in text
    [line] = [line for line in text.splitlines() if line.startswith("selfie pretrain FOLDER ")]
    for asked in ("--steps 20", "--batch-size 8", "--lr 0.05", "--recipe paper", "--backbone resnetv2_18_w16"):
        assert asked in line
    assert "--out" not in line


def test_the_card_of_a_finetuned_run_holds_its_comparison(finetuned: Path) -> None:
    shutil.copytree(finetuned, "mine", ignore=shutil.ignore_patterns("eval-*"))  # other tests' evaluations
    words = "still rising: 60.0% after 1,000 steps, 61.8% after 2,000 (+1.8 ± 0.6 points on 500 held-out labels)"
    found = {"steps": 2000, "num_held": 500, "half": 0.6, "whole": 0.618, "error": 0.006}
    results = read(finetuned / "results.json")
    results["arms"][1]["convergence"] = {**found, "verdict": "still rising", "words": words}
    Path("mine/results.json").write_text(json.dumps(results))
    text = document("push", "mine", "acme/net", "--dry-run")["card"]
    data = card_of(text).data
    assert data.pipeline_tag == "image-classification"
    assert [each.metric_value for each in data.eval_results] == [round(results["arms"][1]["accuracies"][0], 4)]
    low, high = results["gain_interval"]
    for told in (
        *(f"| {arm['name']} | {100 * arm['mean']:.1f} ± {100 * arm['std']:.1f} |" for arm in results["arms"]),
        "supervised: no pretraining; selfie: Selfie (patches of one image, Trinh et al. 2019).",
        *("| not checked |", f"| {words} |", "**Not converged**", "| 4, 5, 6 |"),
        f"{100 * results['gain_mean']:+.1f} over supervised",
        f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}",
        "selfie predict hf://acme/net photo.jpg",
    ):
        assert told in text.replace("\\", "")


def test_names_in_a_run_stay_words_on_the_card(hub: Hub, token: None, finetuned: Path) -> None:
    shutil.copytree(finetuned, "mine")
    names = ["<script>alert(1)</script>", "a|b", "[x](http://x)", "`c`\n# d\x1b[31m", "---", "_e_", "&lt;", *"ghi"]
    runs.open_run("mine").update(derived={"classes": names, "recipe": names[2]}, measured={"device": names[2]})
    runs.open_run("mine").update(versions={"torch": names[2]}, data={"fingerprints": {names[2]: f"`{names[2]}`"}})
    selfie("push", "mine", "acme/net", "--public")
    card = card_of(sent(hub)["README.md"].decode()).text
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(card)
    printed = [html.escape(name.replace("\n", "\\n").replace("\x1b", "\\x1b"), quote=False) for name in names]
    assert f"<p>Classes: {', '.join(printed)}.</p>" in shown.splitlines()
    assert 'href="http://x"' not in shown
    selfie("pull", "acme/net")
    assert runs.open_run("runs/net").derived["classes"] == names


def test_a_pulled_run_can_be_pushed_again_and_says_what_it_was_made_from(hub: Hub, token: None, images: Path) -> None:
    said = [selfie("push", "bundled", "acme/net", "--public")]
    first = sent(hub)
    said += [selfie("pull", "acme/net"), selfie("push", "runs/net", "acme/copy", "--public")]
    assert not any(TOKEN in each.output for each in said)
    assert {**first, "README.md": b""} == {**sent(hub, "acme/copy"), "README.md": b""}
    assert not any("agent" in path or "torch" in headers["user-agent"] for _, path, headers in hub.requests)
    short = ("--steps", 2, "--batch-size", 8, "--precision", "fp32", "--no-report", "--no-check-length")
    selfie("finetune", "--from", "hf://acme/net", "--dataset", images, *short, "--out", "tuned")
    selfie("push", "tuned", "acme/tuned", "--public")
    assert card_of(sent(hub, "acme/tuned")["README.md"].decode()).data.base_model == ["acme/net"]
