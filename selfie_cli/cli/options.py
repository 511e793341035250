"""Signatures for typer, made from options classes."""

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from selfie_cli.option import flag_of, negated, options_of


class VerbCommand(TyperCommand):
    """A command whose help shows a repeated value as <str>, not as <list[str]>."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if parameter.nargs == -1 or getattr(parameter, "multiple", False):
                parameter.display_type = lambda ctx: "<str>"  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """Return a keyword parameter per option, in the order of the help."""
    parameters: list[inspect.Parameter] = []
    for one in options_of(kind):
        field, hint, panel = one.field, one.hint, one.field.metadata["panel"]
        repeated = get_origin(hint) is tuple
        text = re.sub(r"\[(?=[a-z#/@])", r"\\[", one.help)  # rich would take [@revision] for markup
        shown: Any
        if field.metadata["argument"]:
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


def command(kind: type, run: Callable[[dict[str, Any], list[str]], None]) -> Callable[..., None]:
    """Return a function with the signature and docstring that typer reads; it calls `run(values, typed)`."""

    def invoke(context: typer.Context, **values: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        run(values, [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"])

    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [first, *parameters_of(kind)]
    invoke.__doc__ = kind.__doc__
    invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    invoke.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return invoke
