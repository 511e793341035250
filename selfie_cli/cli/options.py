"""From an options dataclass to a command's signature: typer reads it as if someone had typed every option out."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args, get_type_hints

import typer

from selfie_cli.errors import UsageError
from selfie_cli.option import flag_of, negated
from selfie_cli.recipes import recipe_note


def parameters_of(kind: type, method: str | None = None) -> list[inspect.Parameter]:
    """A keyword parameter for each field; a field that is itself a dataclass (a method's own options) is laid out flat,
    under a panel of its own. What recipes decide, they say in the option's help."""
    hints = get_type_hints(kind)
    parameters: list[inspect.Parameter] = []
    for field in dataclasses.fields(kind):
        hint, metadata = hints[field.name], field.metadata
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            parameters += parameters_of(hint, field.name)
            continue
        repeated = str in get_args(hint) and Ellipsis in get_args(hint)
        panel = f"Only with --method {method}" if method else metadata["panel"]
        note = recipe_note(field.name, method) if metadata["recipe"] else ""
        text = re.sub(r"\[(?=[a-z#/@])", r"\\[", metadata["help"] + note)  # else rich takes [@revision] for its markup
        common: dict[str, Any] = {"help": text, "rich_help_panel": panel}
        if metadata["argument"]:
            shown = typer.Argument(
                metavar=field.name.upper() + ("..." if repeated else ""), show_default=False, **common
            )
        elif bool in (hint, *get_args(hint)) and field.default is not False:
            shown = typer.Option(f"{flag_of(field.name)}/{negated(field)}", **common)
        else:
            shown = typer.Option(flag_of(field.name), **common)
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=[] if repeated else field.default,
                annotation=Annotated[list[str] if repeated else hint, shown],
            )
        )
    return parameters


def build(kind: type, values: dict[str, Any], typed: Iterable[str] = ()) -> Any:
    """The options object from the parsed values of `parameters_of(kind)`; `typed` stood on the command line.

    Raises UsageError for what was typed and is empty: an unset variable of a shell means something else than nothing.
    """
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            given[field.name] = build(hints[field.name], values)
        else:
            value = values[field.name]
            if field.name in typed and "" in (value if isinstance(value, list) else [value]):
                name = field.name.upper() if field.metadata["argument"] else flag_of(field.name)
                raise UsageError(f"{name} is empty: give it a value, or leave it out")
            given[field.name] = tuple(map(expanded, value)) if isinstance(value, list) else expanded(value)
    options = kind(**given)
    object.__setattr__(options, "typed", frozenset(typed))
    return options


def expanded(value: Any) -> Any:
    """A path with the home folder in place of `~`, which shells leave in --out=~/v."""
    return os.path.expanduser(value) if isinstance(value, str) and f"{value}/".startswith("~/") else value


def command(kind: type, run: Callable[[dict[str, Any], list[str]], None]) -> Callable[..., None]:
    """A function with the signature and docstring typer wants, which calls `run` with what `build` takes."""

    def invoke(context: typer.Context, **values: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        run(values, [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"])

    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [first, *parameters_of(kind)]
    invoke.__name__ = run.__name__
    invoke.__doc__ = run.__doc__
    invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    invoke.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return invoke
