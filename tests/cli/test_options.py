"""From options to help, to a command's signature, to an object and through a resumed run; and what help imports."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image
from running import ENVIRONMENT, selfie
from typer.testing import CliRunner

from selfie_cli import __version__, config
from selfie_cli.cli.app import app
from selfie_cli.cli.options import command
from selfie_cli.commands import VERBS
from selfie_cli.errors import UsageError
from selfie_cli.option import build, flag_of, resumed

# A changed command line is a conscious change: after one, write the new list there.
FROZEN = Path(__file__).with_name("options.json")
HEAVY = ("torch", "torchvision", "numpy", "PIL", "safetensors")
# Imported by compilation or by torchvision, and as slow to import as torch itself.
SLOW = ("torchvision", "torch._dynamo", "torch._inductor", "sympy", "pandas", "matplotlib", "scipy", "sklearn")
SLOW += ("jinja2",)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")


def test_options_are_the_frozen_ones_and_unique() -> None:
    found = {}
    for verb, known in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        flags = ["/".join([*each.opts, *each.secondary_opts]) for each in known.params]
        assert len(flags) == len(set(flags))
        found[verb] = sorted(flag for flag in flags if "--help" not in flag)
    assert found == json.loads(FROZEN.read_text())


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_option_with_its_default(verb: str) -> None:
    shown = " ".join(selfie(verb, "--help").stdout.replace("│", " ").split())
    assert "list[str]" not in shown
    assert str(VERBS[verb].__doc__) in shown
    for field in dataclasses.fields(VERBS[verb]):
        told, argument = field.metadata["help"], field.metadata["argument"]
        assert told.split()[0] in shown
        assert all(bracketed in shown for bracketed in re.findall(r"\S*\[\S*\]", told))  # which rich takes for markup
        assert (field.name.upper() if argument else flag_of(field.name)) in shown
        if not argument and field.default not in (None, False, True, ()):
            assert f"[default: {field.default}]" in shown


def test_top_help_lists_every_verb_and_no_verb_exits_2() -> None:
    shown = selfie("--help").stdout
    for verb in VERBS:
        assert f" {verb} " in shown
    assert selfie("-h").stdout == shown
    assert "pretrain" in selfie(code=2).output
    assert selfie("--version").stdout == f"selfie {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["embed", "--nonsense"], ["nonsense"], ["pretrain", "--steps", "x"], ["pretrain", "--device", "tpu"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = selfie(*arguments, code=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert arguments[-1] in result.stderr or arguments[-2] in result.stderr


def loaded(arguments: list[str], names: tuple[str, ...], **environment: str) -> tuple[list[str], str]:
    """Return which of the modules `names` a command has imported when it ends, and what it printed."""
    program = (
        "import sys\n"
        "from selfie_cli.cli.app import main\n"
        f"sys.argv = ['selfie', *{arguments}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('\\nloaded:', *sorted(set({names}) & sys.modules.keys()))\n"
    )
    argv, known = [sys.executable, "-c", program], {**ENVIRONMENT, **environment}
    done = subprocess.run(argv, env=known, capture_output=True, text=True, check=True)
    shown, _, last = done.stdout.rpartition("\nloaded:")
    return last.split(), shown


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(arguments, HEAVY)[0] == []


@pytest.mark.parametrize(
    ("shell", "words", "offered"),
    [
        ("fish", "selfie emb", "embed"),
        ("bash", "selfie pretrain --method b", "byol"),
        ("bash", "selfie finetune --seeds", "--seeds"),
    ],
)
def test_completion_offers_verbs_options_and_values_and_imports_nothing_heavy(
    shell: str, words: str, offered: str
) -> None:
    asked = {"_SELFIE_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    asked |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found, shown = loaded([], HEAVY, **asked)
    assert found == []
    assert [line.split("\t")[0] for line in shown.splitlines()] == [offered]


def test_embedding_imports_no_more_than_torch(tmp_path: Path) -> None:
    """With our own kind of network; torchvision's own networks need torchvision."""
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    found, shown = loaded(["embed", str(tmp_path / "photo.png"), "--from", "bundled"], SLOW)
    assert found == []
    assert shown.startswith('{"path": ')


def parsed(arguments: Sequence[str], kind: type = config.PretrainOptions) -> Any:
    """Return the options for the arguments. Raise SystemExit if the command line refuses them."""
    found: list[Any] = []

    def run(values: dict[str, Any], typed: list[str]) -> None:
        found.append(build(kind, values, typed))

    alone = typer.Typer()
    alone.command()(command(kind, run))
    result = CliRunner().invoke(alone, list(arguments))
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_every_kind_of_option_comes_through() -> None:
    own = {"mask_ratio": 0.5, "positions": "row-column", "flip": False}
    expected = config.PretrainOptions(data=("x", "y z"), from_="run", num_views=3, quiet=True, report=False, **own)
    arguments = ["x", "y z", "--from", "run", "--num-views", "3", "--quiet", "--no-report", "--mask-ratio", ".5"]
    assert parsed([*arguments, "--positions", "row-column", "--no-flip"]) == expected
    assert parsed(["--flip"]).flip is True


@pytest.mark.parametrize("kind", VERBS.values(), ids=lambda kind: kind.__name__)
def test_the_projects_own_options_survive_the_round_trip_and_have_limits(kind: type) -> None:
    assert parsed([], kind) == kind()
    for field in dataclasses.fields(kind):
        if field.metadata.get("limits") or isinstance(field.default, float):
            for value in (math.nan, math.inf, 10**400):
                with pytest.raises(UsageError):
                    kind(**{field.name: value})
        if field.name in ("steps", "epochs", "batch_size", "micro_batch", "workers"):  # no machine could honour these
            with pytest.raises(UsageError, match=r"at most [\d,]+, got"):
                kind(**{field.name: 10**13})


def test_resumed_takes_the_runs_own_options_and_what_is_typed_counts_as_given() -> None:
    then = config.PretrainOptions(data=("a",), lr=0.2, steps=7, flip=False)
    asked = dataclasses.asdict(then) | {"data": ["a"]}  # as JSON gives it back
    now = resumed(config.PretrainOptions(resume="run", data=("a",), steps=7, workers=3, flip=False), asked)
    assert now == dataclasses.replace(then, resume="run", workers=3)
    for name, changed in (("--lr", {"lr": 0.3}), ("DATA", {"data": ("b",)}), ("--mask-ratio", {"mask_ratio": 0.5})):
        with pytest.raises(UsageError, match=f"^{name} cannot change"):
            resumed(config.PretrainOptions(resume="run", **changed), asked)
    assert resumed(config.PretrainOptions(), asked | {"data": [None], "max_bad": None}).max_bad == 0.1
    assert resumed(config.PretrainOptions(), {"data": ["a"]}) == config.PretrainOptions(data=("a",))  # of an older run
    assert resumed(config.PretrainOptions(), {"selfie": {"flip": False}}).flip is False  # of one that nested these
    with pytest.raises(UsageError, match="the run asks for 'patience', not known here"):
        resumed(config.PretrainOptions(resume="run"), asked | {"patience": 3})
    asked = dataclasses.asdict(config.PretrainOptions(data=("a",), seed=3, save_every=600)) | {"data": ["a"]}
    assert resumed(parsed(["--resume", "run"]), asked).save_every == 600
    assert resumed(parsed(["--resume", "run", "--save-every", "60"]), asked).save_every == 60
    with pytest.raises(UsageError, match="--seed cannot change"):
        resumed(parsed(["--resume", "run", "--seed", "0"]), asked)
