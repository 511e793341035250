"""From an options class to the signature that typer reads, and from parsed values back to an options object."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from selfie_cli.config import DATA, MACHINE, OUTPUT, RUN, TRAINING, VIEWS
from selfie_cli.errors import UsageError
from selfie_cli.option import flag_of, negated
from selfie_cli.recipes import recipe_note

LAST_PANELS = (DATA, RUN, MACHINE, OUTPUT)


class VerbCommand(TyperCommand):
    """A command whose help shows a repeated value as <str>, not as <list[str]>."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if parameter.nargs == -1 or getattr(parameter, "multiple", False):
                parameter.display_type = lambda ctx: "<str>"  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """Return a keyword parameter per option, in the order of the help's panels.

    Options of a nested class, those of one method, get a panel of their own.
    """
    order = {None: 0, TRAINING: 1, VIEWS: 2} | {panel: 4 + index for index, panel in enumerate(LAST_PANELS)}
    parameters = unsorted_parameters(kind)
    return sorted(parameters, key=lambda each: order.get(each.annotation.__metadata__[0].rich_help_panel, 3))


def unsorted_parameters(kind: type, method: str | None = None) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    parameters: list[inspect.Parameter] = []
    for field in dataclasses.fields(kind):
        hint, metadata = hints[field.name], field.metadata
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            parameters += unsorted_parameters(hint, field.name)
            continue
        repeated = str in get_args(hint) and Ellipsis in get_args(hint)
        panel = f"Only with --method {method}" if method else metadata["panel"]
        note = recipe_note(field.name, method) if metadata["recipe"] else ""
        text = re.sub(r"\[(?=[a-z#/@])", r"\\[", metadata["help"] + note)  # rich would take [@revision] for markup
        shown: Any
        if metadata["argument"]:
            metavar = field.name.upper()
            shown = typer.Argument(metavar=metavar, show_default=False, help=text, rich_help_panel=panel)
        else:
            two_sided = bool in (hint, *get_args(hint)) and field.default is not False
            flag = flag_of(field.name) + (f"/{negated(field)}" if two_sided else "")
            shown = typer.Option(flag, help=text, rich_help_panel=panel)
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
    """Return the options object for the parsed values of `parameters_of(kind)`; `typed` names the options given.

    Raise UsageError for a given value that is empty: it comes from an unset shell variable, not from "no value".
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
    """Return a path with `~` replaced by the home folder; shells leave it in --out=~/v."""
    return os.path.expanduser(value) if isinstance(value, str) and f"{value}/".startswith("~/") else value


def command(kind: type, run: Callable[[dict[str, Any], list[str]], None]) -> Callable[..., None]:
    """Return a function with the signature and docstring that typer reads; it calls `run` with what `build` takes."""

    def invoke(context: typer.Context, **values: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        run(values, [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"])

    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [first, *parameters_of(kind)]
    invoke.__doc__ = kind.__doc__
    invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    invoke.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return invoke
