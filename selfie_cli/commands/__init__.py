"""One file per verb: a function takes the verb's options object and a `Talk`, and returns a frozen result.

Options objects are not passed below this package. Code that two verbs share lives below, in the package of its subject.
Commands return and never print; `cli` shows what they return.
"""

import inspect
import os
from importlib import import_module
from typing import Any

from selfie_cli import config
from selfie_cli.option import Options
from selfie_cli.talk import Talk

# torch and OpenMP read these when they are loaded. The first makes idle OpenMP threads yield to decoding threads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection would print C++ stacks

VERBS: dict[str, type[Options]] = {
    "pretrain": config.PretrainOptions,
    "finetune": config.FinetuneOptions,
    "embed": config.EmbedOptions,
    "eval": config.EvalOptions,
    "demo": config.DemoOptions,
    "predict": config.PredictOptions,
    "curve": config.CurveOptions,
    "similar": config.SimilarOptions,
    "doctor": config.DoctorOptions,
    "report": config.ReportOptions,
    "export": config.ExportOptions,
    "push": config.PushOptions,
    "pull": config.PullOptions,
}
"""Options of each verb, in the order of the help. The verb's function is in `<verb>.py`: see `function_name`."""


def function_name(verb: str) -> str:
    """Return the name of a verb's function: the verb itself, except `evaluate` for eval, which is a Python builtin."""
    return "evaluate" if verb == "eval" else verb


def call(verb: str, options: Any, talk: Talk, **streams: Any) -> Any:
    """Call a verb's function with those of `streams` (stdin, emit, ask) that it takes, and return its result."""
    function = getattr(import_module(f"{__name__}.{verb}"), function_name(verb))
    taken = inspect.signature(function).parameters.keys() & streams
    return function(options, talk=talk, **{name: streams[name] for name in taken})
