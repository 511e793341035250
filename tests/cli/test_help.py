"""Help, version, the frozen list of options, and what is on sys.modules when help is printed."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from running import ENVIRONMENT, selfie

from selfie_cli import __version__, config
from selfie_cli.cli.app import app
from selfie_cli.option import flag_of

VERBS = (
    *("pretrain", "finetune", "embed", "eval", "demo", "predict", "curve"),
    *("similar", "doctor", "report", "export", "push", "pull"),
)
KINDS = {verb: getattr(config, f"{verb.capitalize()}Options") for verb in VERBS}
# A changed command line is a conscious change: after one, write the new list there.
FROZEN = Path(__file__).with_name("options.json")


def flags_of(verb: str) -> list[str]:
    parameters = typer.main.get_command(app).commands[verb].params  # type: ignore[attr-defined]
    flags = ["/".join([*each.opts, *each.secondary_opts]) for each in parameters]
    return sorted(flag for flag in flags if "--help" not in flag)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")


def test_options_are_the_frozen_ones() -> None:
    found = {verb: flags_of(verb) for verb in typer.main.get_command(app).commands}  # type: ignore[attr-defined]
    assert found == json.loads(FROZEN.read_text())


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from selfie_cli.cli.app import main\n"
        f"sys.argv = ['selfie', *{arguments}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        "    heavy = sorted({'torch', 'torchvision', 'numpy', 'PIL', 'safetensors'} & sys.modules.keys())\n"
        "    print('\\nloaded:', heavy, end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: [] 0"


def test_top_help_lists_every_verb() -> None:
    shown = selfie("--help").stdout
    for verb in VERBS:
        assert f" {verb} " in shown
    assert selfie("-h").stdout == shown


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_option_with_its_default(verb: str) -> None:
    shown = " ".join(selfie(verb, "--help").stdout.replace("│", " ").split())
    own = (config.SelfieOptions, config.ByolOptions) if verb == "pretrain" else ()
    for kind in (KINDS[verb], *own):
        for field in dataclasses.fields(kind):
            if "help" not in field.metadata:
                continue
            assert field.metadata["help"].split()[0] in shown
            for bracketed in re.findall(r"\S*\[\S*\]", field.metadata["help"]):
                assert bracketed in shown  # rich takes brackets for its markup
            if field.metadata["argument"]:
                assert field.name.upper() in shown
                continue
            assert flag_of(field.name) in shown
            if field.default not in (None, False, True, ()):
                assert f"[default: {field.default}]" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_no_flag_is_taken_twice(verb: str) -> None:
    flags = [flag for flag in flags_of(verb) if flag.startswith("--")]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    "arguments", [["embed", "--nonsense"], ["nonsense"], ["pretrain", "--steps", "x"], ["pretrain", "--device", "tpu"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = selfie(*arguments, code=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert arguments[-1] in result.stderr or arguments[-2] in result.stderr


def test_no_verb_shows_help_and_exits_2() -> None:
    result = selfie(code=2)
    assert "pretrain" in result.output


def test_version() -> None:
    assert selfie("--version").stdout == f"selfie {__version__}\n"
