"""Options: fields of frozen dataclasses with help and limits, and how a resumed run restores them."""

import dataclasses
import math
import operator
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from selfie_cli.errors import UsageError
from selfie_cli.recipes import recipe_note

TRAINING, VIEWS, SELFIE, BYOL = "Training", "Views", "Only with --method selfie", "Only with --method byol"
DATA, RUN, MACHINE, OUTPUT = "Data", "Run", "Machine", "Output"
PANELS = (TRAINING, VIEWS, SELFIE, BYOL, DATA, RUN, MACHINE, OUTPUT)
"""Groups of options, in the order of the help. Options without a group come first."""


def option(
    default: Any,
    help: str,
    panel: str | None = None,
    *,
    argument: bool = False,
    recipe: bool = False,
    off: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Return a dataclass field for an option.

    panel: its group in the help. argument: whether it is positional. recipe: whether its default comes from --recipe.
    off: the name of the flag that negates it (None: no-<name>). at_least, above, at_most: limits of a number. Each
    parameter is a fact that the command line or the reference page shows.
    """
    given = {"at least": at_least, "above": above, "at most": at_most}
    limits = {word: limit for word, limit in given.items() if limit is not None}
    metadata = {"help": help, "panel": panel, "argument": argument, "recipe": recipe, "off": off, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


WITHIN = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def flag_of(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


def spelled(field: "dataclasses.Field[Any]") -> str:
    """Return an option as the command line's help names it."""
    return field.name.upper() if field.metadata["argument"] else flag_of(field.name)


def negated(field: "dataclasses.Field[Any]") -> str:
    """Return the flag that negates an option: --no-baseline for --baseline, unless the option names another."""
    return f"--{field.metadata['off'] or 'no-' + flag_of(field.name)[2:]}"


def as_typed(field: "dataclasses.Field[Any]", value: Any) -> str:
    """Return the flag that gives an option this value: its own, or the one that negates it."""
    return negated(field) if value is False else flag_of(field.name)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of all options classes: each is a frozen, keyword-only dataclass.

    Raise UsageError for a number outside its limits.
    """

    typed: ClassVar[frozenset[str]] = frozenset()
    """Names of the options given explicitly on the command line, even if equal to the default."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata["limits"]
            if isinstance(value, int):
                limits = {**limits, "below": 2**63} if value >= 2**63 and "at most" not in limits else limits
            elif not isinstance(value, float):
                continue
            if not all(WITHIN[word](value, limit) for word, limit in limits.items()) or not math.isfinite(value):
                allowed = " and ".join(f"{word} {limit:,}" for word, limit in limits.items()) or "a finite number"
                given = f"{value:g}" if isinstance(value, float) else str(value)[:30]
                raise UsageError(f"{flag_of(field.name)} must be {allowed}, got {given}")

    def asks_for(self, name: str) -> bool:
        """Return whether an option was given on the command line, or differs from its default."""
        return name in self.typed or getattr(self, name) != getattr(type(self)(), name)


@dataclass(frozen=True)
class Option:
    """An option of a verb. hint: its type."""

    field: "dataclasses.Field[Any]"
    hint: Any

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def help(self) -> str:
        """Its help, with its default in each recipe."""
        text = str(self.field.metadata["help"])
        return text + recipe_note(self.name) if self.field.metadata["recipe"] else text


def options_of(kind: type) -> list[Option]:
    """Return the options of a class, arguments first, then in the order of the help."""
    hints = get_type_hints(kind)
    order = (None, *PANELS)

    def place(field: "dataclasses.Field[Any]") -> tuple[bool, int]:
        return not field.metadata["argument"], order.index(field.metadata["panel"])

    return [Option(field, hints[field.name]) for field in sorted(dataclasses.fields(kind), key=place)]


def build(kind: type, values: dict[str, Any], typed: Iterable[str] = ()) -> Any:
    """Build an options object from a value for each of `options_of(kind)`; `typed` names the options given.

    Raise UsageError for an empty value that was given: it usually comes from an unset shell variable.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if field.name in typed and "" in (value if isinstance(value, list) else [value]):
            raise UsageError(f"{spelled(field)} is empty: give it a value, or leave it out")
        given[field.name] = tuple(map(expanded, value)) if isinstance(value, list) else expanded(value)
    options = kind(**given)
    object.__setattr__(options, "typed", frozenset(typed))
    return options


def expanded(value: Any) -> Any:
    """Return a path with `~` replaced by the home folder. Shells do not replace it in --out=~/v."""
    return os.path.expanduser(value) if isinstance(value, str) and f"{value}/".startswith("~/") else value


def flags(default: Options, asked: dict[str, Any]) -> list[str]:
    """Return the options in `asked` that differ from `default` as command-line words, except those of OUTPUT and RUN.

    Private values of --dataset and --from, which are None in a published config, become FOLDER and RUN.
    """
    found = []
    for field in dataclasses.fields(default):
        value, usual = asked.get(field.name), getattr(default, field.name)
        if field.name == "dataset":
            found += ["--dataset", value or "FOLDER"]
        elif field.name == "from_" and asked.get("from_", usual) != "none":
            each = value if isinstance(value, list | tuple) else [value]
            found += [word for one in each for word in ("--from", one or "RUN")]
        elif value in (None, usual) or field.metadata["argument"] or field.metadata["panel"] in (OUTPUT, RUN):
            continue
        elif isinstance(value, bool):
            found.append(as_typed(field, value))
        else:
            found += [flag_of(field.name), shlex.quote(str(value))]
    return found


Picked = TypeVar("Picked")


def pick(kind: type[Picked], options: Options, **others: Any) -> Picked:
    """Build a dataclass from the options with the same names as its fields, and from `others`."""
    fields: Any = kind
    names = {field.name for field in dataclasses.fields(fields)} - others.keys()
    return kind(**{name: getattr(options, name) for name in names}, **others)


PER_INVOCATION = ("resume", "json", "quiet")
"""Options of one invocation, which are never restored from a resumed run's config."""
CHANGEABLE = ("device", "compile", "workers", "store", "store_gb", "save_every", "log", "report")
"""Options that may change when a run is resumed. If not given, they are restored from its config like all others."""


def fits(value: Any, hint: Any) -> bool:
    """Return whether `value` has an option's declared type."""
    allowed = get_args(hint)
    if get_origin(hint) is Literal:
        return value in allowed
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    if allowed:  # int | None
        return any(fits(value, one) for one in allowed)
    return type(value) in ((int, float) if hint is float else (hint,))


AnyOptions = TypeVar("AnyOptions", bound=Options)


def resumed(given: AnyOptions, asked: dict[str, Any], *, also: tuple[str, ...] = ()) -> AnyOptions:
    """Return the options in a stopped run's config, with the allowed changes of this invocation.

    `asked` must have passed `schema.check`. `given` may change options in CHANGEABLE and `also`. An option is changed
    if it was given on the command line or differs from its default.

    Raise UsageError if `given` changes any other option, or if `asked` has an unknown or invalid one.
    """
    then = restored(type(given), asked)
    changed = {name: getattr(given, name) for name in PER_INVOCATION}
    for field in dataclasses.fields(given):
        name = field.name
        if getattr(given, name) == getattr(then, name) or not given.asks_for(name):
            continue
        if name not in (*PER_INVOCATION, *CHANGEABLE, *also):
            raise UsageError(f"{spelled(field)} cannot change when a run is resumed: leave it out, or start a new run")
        changed[name] = getattr(given, name)
    return dataclasses.replace(then, **changed)


def restored(kind: type[AnyOptions], asked: dict[str, Any]) -> AnyOptions:
    """Return the options in a run's config. Raise UsageError for an unknown or invalid option.

    An option newer than the run gets its default, which must therefore reproduce what was done before the option
    existed. An option whose private value was left out of a published config gets its default, too.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    values.pop("profile", None)  # an option of earlier versions without effect on a run
    for method in ("selfie", "byol"):  # earlier versions nested the options of one method
        if isinstance(values.get(method), dict):
            values |= values.pop(method)
    if unknown := sorted(values.keys() - hints.keys()):
        raise UsageError(f"the run asks for {unknown[0]!r}, not known here: resume it with the selfie that wrote it")
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(each for each in value if each is not None)
    return kind(**values)
