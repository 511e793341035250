"""From an options class to a command's signature, back to an object of that class, and through a resumed run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from selfie_cli import config
from selfie_cli.cli.options import command
from selfie_cli.commands import VERBS
from selfie_cli.errors import UsageError
from selfie_cli.option import Options, build, option, resumed


class InnerOptions(Options):
    share: float = option(0.5, "A share.", above=0, at_most=1)
    mirror: bool = option(True, "Mirror.")


class OuterOptions(Options):
    names: tuple[str, ...] = option((), "Names.", argument=True)
    from_: str | None = option(None, "From where.")
    two_words: Literal["a", "b-c"] = option("a", "A choice.", panel="Panel")
    count: int | None = option(None, "A count.", at_least=1)
    loud: bool = option(False, "Loud.")
    inner: InnerOptions = dataclasses.field(default_factory=InnerOptions)


def parsed(arguments: Sequence[str], kind: type = OuterOptions) -> Any:
    """Return the options for the arguments. Raise SystemExit if the command line refuses them."""
    found: list[Any] = []

    def run(values: dict[str, Any], typed: list[str]) -> None:
        found.append(build(kind, values, typed))

    app = typer.Typer()
    app.command()(command(kind, run))
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_every_kind_of_option_comes_through() -> None:
    assert parsed([]) == OuterOptions()
    inner = InnerOptions(share=1.0, mirror=False)
    expected = OuterOptions(names=("x", "y z"), from_="run", two_words="b-c", count=3, loud=True, inner=inner)
    arguments = ["x", "y z", "--from", "run", "--two-words", "b-c", "--count", "3", "--loud", "--share", "1"]
    assert parsed([*arguments, "--no-mirror"]) == expected
    assert parsed(["--mirror"]).inner.mirror is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--share", "1.01"], "--share must be above 0 and at most 1, got 1.01"),
        (["--share", "nan"], "--share must be above 0 and at most 1, got nan"),
        (["--from", ""], "--from is empty: give it a value, or leave it out"),
        (["x", ""], "NAMES is empty: give it a value, or leave it out"),
    ],
)
def test_values_outside_their_limits_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        parsed(arguments)


@pytest.mark.parametrize("kind", [*VERBS.values(), config.SelfieOptions], ids=lambda kind: kind.__name__)
def test_the_projects_own_options_survive_the_round_trip_and_have_limits(kind: type) -> None:
    assert parsed([], kind) == kind()
    for field in dataclasses.fields(kind):
        if field.metadata.get("limits") or isinstance(field.default, float):
            for value in (math.nan, math.inf, 10**40):
                with pytest.raises(UsageError):
                    kind(**{field.name: value})
        if field.name in ("steps", "epochs", "batch_size", "micro_batch", "workers"):  # no machine could honour these
            with pytest.raises(UsageError, match=r"at most [\d,]+, got"):
                kind(**{field.name: 10**13})


def test_resumed_takes_the_runs_own_options_and_refuses_others() -> None:
    then = config.PretrainOptions(data=("a",), lr=0.2, steps=7, selfie=config.SelfieOptions(flip=False))
    asked = dataclasses.asdict(then) | {"data": ["a"]}  # as JSON gives it back
    now = resumed(config.PretrainOptions(resume="run", workers=3), asked)
    assert now == dataclasses.replace(then, resume="run", workers=3)
    with pytest.raises(UsageError, match="--lr cannot change"):
        resumed(config.PretrainOptions(resume="run", lr=0.3), asked)
    assert resumed(config.PretrainOptions(), asked | {"data": [None], "max_bad": None}).max_bad == 0.1
    for unknown in ({"patience": 3}, {"selfie": {"patience": 3}}):
        with pytest.raises(UsageError, match="the run asks for 'patience', not known here"):
            resumed(config.PretrainOptions(resume="run"), asked | unknown)


def test_what_is_typed_counts_as_given_even_where_it_is_the_default() -> None:
    kind = config.PretrainOptions
    asked = dataclasses.asdict(kind(data=("a",), seed=3, save_every=600)) | {"data": ["a"]}
    assert resumed(parsed(["--resume", "run"], kind), asked).save_every == 600
    assert resumed(parsed(["--resume", "run", "--save-every", "60"], kind), asked).save_every == 60
    with pytest.raises(UsageError, match="--seed cannot change"):
        resumed(parsed(["--resume", "run", "--seed", "0"], kind), asked)
