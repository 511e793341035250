"""The Python interface: a function per verb, which takes the verb's options as keywords, and `load`.

The package loads this module when one of the functions is first used; torch is loaded when one is called.
"""

import contextlib
import difflib
import functools
import keyword
import os
import re
import reprlib
import textwrap
import threading
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from selfie_cli import runs
from selfie_cli.cli.console import Console, failure, how_to_resume
from selfie_cli.commands import VERBS, call, function_name
from selfie_cli.errors import SelfieError, Stopped, UsageError
from selfie_cli.option import Options, build, fits, flag_of, options_of
from selfie_cli.talk import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from selfie_cli.data.augment import Preprocessing
    from selfie_cli.data.bad_files import BadFile
    from selfie_cli.inference.outputs import Predictions, Vectors

_one_at_a_time = threading.Lock()
"""Runs calls from several threads one after another: each uses all cores, and torch's settings are global."""


def function_of(verb: str, kind: type[Options]) -> Callable[..., Any]:
    """Return the function of a verb, with a signature and a docstring made of its options.

    The function raises TypeError for an unknown option; its other errors are those of `perform`.
    """
    options = {one.name: one for one in options_of(kind) if one.name != "json"}
    parameters = []
    for name, one in options.items():
        place = Parameter.POSITIONAL_OR_KEYWORD if one.field.metadata["argument"] else Parameter.KEYWORD_ONLY
        parameters.append(Parameter(name, place, default=one.field.default, annotation=one.hint))
    signature = Signature(parameters)

    def function(*arguments: Any, **keywords: Any) -> Any:
        if unknown := sorted(keywords.keys() - options.keys()):
            close = difflib.get_close_matches(unknown[0], options, n=1)
            instead = f"did you mean {close[0]!r}?" if close else f"help(selfie.{function.__name__}) lists all"
            raise TypeError(f"{function.__name__}() has no option {unknown[0]!r}: {instead}")
        if len(arguments) > (most := sum(each.kind is Parameter.POSITIONAL_OR_KEYWORD for each in parameters)):
            named = f"give the others by name, as help(selfie.{function.__name__}) lists them"
            raise TypeError(f"{function.__name__}() takes {counted(most, 'positional argument')}: {named}")
        given = signature.bind(*arguments, **keywords).arguments
        given = {name: as_given(name, value, options[name].hint) for name, value in given.items() if value is not None}
        values = {"json": False} | {name: one.field.default for name, one in options.items()} | given
        return perform(verb, values, list(given))

    lines = [
        textwrap.fill(f"{one.name}: {one.help}", 100, subsequent_indent="    ", break_on_hyphens=False)
        for one in options.values()
    ]
    beginning = [str(kind.__doc__), "", "What the command prints to stdout is returned; its errors are raised.", ""]
    text = "\n".join([*beginning, *lines, ""])
    function.__doc__ = re.sub(r"--([a-z][a-z-]*)", lambda flag: f"`{keyword_of(flag[1])}`", text)
    function.__name__ = function.__qualname__ = function_name(verb)
    function.__module__ = "selfie_cli"
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def keyword_of(flag: str) -> str:
    name = flag.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def as_given(name: str, value: Any, hint: Any) -> Any:
    """Return a value as the command line would give it: a path as text, several paths as a list, numbers as one text.

    Raise UsageError for a value of the wrong type or outside the choices.
    """
    if hasattr(value, "tolist"):  # a number or an array of NumPy, torch or pandas
        value = value.tolist()
    several, is_text = get_origin(hint) is tuple, str in (hint, *get_args(hint))
    if several:
        with contextlib.suppress(TypeError):  # `fits` refuses it below
            value = [os.fspath(each) for each in ([value] if isinstance(value, str | os.PathLike) else value)]
    elif is_text and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    elif is_text and isinstance(value, os.PathLike | int | float) and not isinstance(value, bool):
        value = str(value)
    if not fits(tuple(value) if isinstance(value, list) else value, hint):
        choices = [each for part in (hint, *get_args(hint)) if get_origin(part) is Literal for each in get_args(part)]
        allowed = f"one of {', '.join(map(repr, choices))}" if choices else getattr(hint, "__name__", str(hint))
        allowed = "a path or several" if several else allowed
        raise UsageError(f"{flag_of(name)} must be {allowed}, got {reprlib.repr(value):.80}")
    return value


def perform(verb: str, values: dict[str, Any], given: list[str]) -> Any:
    """Run a verb, as the command line does, and return its result; `given` names the options given.

    Raise SelfieError with the message that the command line prints; KeyboardInterrupt after a signal, with the state of
    a training on disk.
    """
    options = build(VERBS[verb], values, given)
    rows: list[Any] = []
    with _one_at_a_time, torch_as_before():
        try:
            result = call(verb, options, Console(quiet=options.quiet), stdin=(), emit=rows.append, ask=None)
        except Stopped as error:  # ends a user's loop over trainings that catches SelfieError
            raise KeyboardInterrupt(f"{error}{how_to_resume()}") from None
        except Exception as error:
            found = failure(error)
            if found is None or isinstance(error, SelfieError):
                raise
            raise SelfieError(found.message) from error
        finally:
            runs.let_go_of_all()
    what = verb
    if verb in ("embed", "predict") and options.out is None:
        what, result = in_memory(verb, rows, result.bad_files)

    # Notebooks call this method. It is set here because the class of `result` cannot import `cli.render`.
    object.__setattr__(result, "_repr_html_", functools.partial(as_html, what, result, options))
    return result


def as_html(what: str, result: Any, options: Options) -> str:
    from selfie_cli.cli import render

    return render.as_html(render.rendered(what, result, options))


def in_memory(verb: str, rows: list[Any], bad_files: "list[BadFile]") -> "tuple[str, Vectors | Predictions]":
    """Return the result's name in `cli.render`, and all rows of embed or predict as one result."""
    import numpy as np

    from selfie_cli.inference.outputs import Predictions, Vectors

    if verb == "predict":
        return "predictions", Predictions(rows=rows, bad_files=bad_files)
    vectors, paths = np.stack([row.vector for row in rows]), [row.name for row in rows]
    return "vectors", Vectors(vectors=vectors, paths=paths, bad_files=bad_files)


def load(run: str | os.PathLike[str]) -> "tuple[nn.Module, Callable[[Image.Image], Tensor]]":
    """Return a run's network as a torch module in evaluation mode, and the transform for its images.

    `run` takes the values of `from_`, but not None. The module maps float images [B, 3, s, s] to features [B, D], as
    `selfie embed` does, or to logits [B, C] if the run is a classifier. It can be trained like any other module. The
    transform maps a PIL image to a float tensor [3, s, s], with the pixels of `selfie embed` if Image.open's result was
    not changed.

    Raise SelfieError if there is no such run, or it is unfinished or damaged.
    """
    from torch import nn

    from selfie_cli.data.augment import Preprocessing
    from selfie_cli.inference.networks import load_module
    from selfie_cli.methods.method import Method

    found = runs.weights_for("load", os.fspath(run))
    module: nn.Module = load_module(found)
    if isinstance(module, Method):  # the paper's Selfie: keep the encoder only
        module = nn.Sequential(module.encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    size, preprocessing = int(found.derived["image_size"]), Preprocessing.of(found.derived)
    return module.eval(), functools.partial(as_input, size=size, preprocessing=preprocessing)


def as_input(image: "Image.Image", size: int, preprocessing: "Preprocessing") -> "Tensor":
    """Return a PIL image as the input of a network: float32 [3, size, size], normalized."""
    import torch

    from selfie_cli.data.augment import plain_view
    from selfie_cli.data.images import decode_square

    square = decode_square(image, preprocessing.storage_size(size), preprocessing.interpolation)  # [S, S, 3]
    return plain_view(torch.from_numpy(square)[None], size, preprocessing)[0]


@contextlib.contextmanager
def torch_as_before() -> Iterator[None]:
    """Enable gradients in the block; at its end, restore torch's threads, modes and random state."""
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        if deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


PUBLIC = {
    "SelfieError": SelfieError,
    "load": load,
    **{function_name(verb): function_of(verb, kind) for verb, kind in VERBS.items()},
}
"""The names that `import selfie_cli` offers."""
