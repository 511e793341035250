"""What an option is: a field of a frozen dataclass, with its help and its limits; and how options survive in a run."""

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from selfie_cli.errors import UsageError


def option(
    default: Any,
    help: str,
    *,
    panel: str | None = None,
    argument: bool = False,
    recipe: bool = False,
    off: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field: `panel` groups it in the help, `argument` makes it positional, `recipe` says that recipes have a value
    for it, `off` is the word that negates a flag (unset: no-<name>); the rest are a number's limits."""
    given = {"at least": at_least, "above": above, "at most": at_most}
    limits = {word: limit for word, limit in given.items() if limit is not None}
    metadata = {"help": help, "panel": panel, "argument": argument, "recipe": recipe, "off": off, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


MOST = {int: 2**63, float: math.inf}
"""No option takes a number as large as that."""
WITHIN = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def flag_of(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


def negated(field: "dataclasses.Field[Any]") -> str:
    """The flag that says no: --no-baseline of --baseline, unless the option names another."""
    return f"--{field.metadata['off'] or 'no-' + flag_of(field.name)[2:]}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all options classes have in common: numbers that keep to their limits. Raises UsageError for others."""

    typed: ClassVar[frozenset[str]] = frozenset()
    """Of options that come from a command line, the names of those that stood there, be it with their default."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata.get("limits", {})
            if not isinstance(value, int | float):
                continue
            most = MOST[float if isinstance(value, float) else int]
            if not -most < value < most and isinstance(value, int):
                limits = limits | {"below": most}
            if not -most < value < most or not all(WITHIN[word](value, limit) for word, limit in limits.items()):
                allowed = " and ".join(f"{word} {limit:,}" for word, limit in limits.items())
                given = f"{value:g}" if isinstance(value, float) else str(value)[:30]
                raise UsageError(f"{flag_of(field.name)} {given}: give a number {allowed}".rstrip())


# What belongs to an invocation, and is never taken from a resumed run's config.
PER_INVOCATION = ("resume", "profile", "json", "quiet")
# What a resumed run may be given anew; not given, it is as it was. The rest comes from its config.
CHANGEABLE = ("device", "compile", "workers", "store", "store_gb", "save_every", "log", "report")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that an option is declared with."""
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
    """The options of a stopped run, taken from its config, with what this invocation may change taken from `given`:
    what is in CHANGEABLE, and `also` these. Given is what was typed, or is not the default.

    An option that is younger than the run has its default, which has to mean what was done before there was one. One
    that is gone does not matter if the run left it out.

    Raises UsageError if `given` asks for anything else than the run did, or the run for what is not known here.
    """
    kind = type(given)
    hints = get_type_hints(kind)
    if unknown := sorted(name for name, value in asked.items() if name not in hints and value is not None):
        raise UsageError(f"the run asks for {unknown[0]!r}, not known here: resume it with the selfie that wrote it")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        now = getattr(given, field.name)
        if field.name in PER_INVOCATION:
            values[field.name] = now
            continue
        default = getattr(kind(), field.name)
        then: Any = asked.get(field.name, default)
        if isinstance(then, list):
            then = tuple(then)
        if isinstance(then, dict) and isinstance(default, Options):
            try:
                then = type(default)(**{name: value for name, value in then.items() if value is not None})
            except TypeError as error:
                raise UsageError(f"the run's config is of another version ({error}): start a new run") from None
        elif not fits(then, hints[field.name]):
            raise UsageError(f"the run's config has {field.name} = {then!r}, which cannot be: start a new run")
        anew = now != then and (now != default or field.name in given.typed)
        if anew and field.name in (*CHANGEABLE, *also):
            then = now
        elif anew:
            raise UsageError(
                f"{flag_of(field.name)} cannot change when a run is resumed: leave it out, or start a new run"
            )
        values[field.name] = then
    return kind(**values)
