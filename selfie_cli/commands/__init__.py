"""One file per verb: a function takes the verb's options object and a `Talk`, and returns a frozen result.

An options object goes no deeper than this package; what two verbs share lives below, in the package it is about.
Commands return and never print; `cli` shows what they return.
"""

import inspect
import os
from importlib import import_module
from typing import Any

from selfie_cli import config
from selfie_cli.option import Options
from selfie_cli.talk import Talk

# torch and OpenMP read these when they are loaded. Idle OpenMP threads yield to those that decode.
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
"""Options of each verb, in the order of the help. The verb's function has its name, in `<verb>.py`."""


def function_name(verb: str) -> str:
    """Return the name of a verb's function: the verb, but `evaluate` for eval, which is Python's own."""
    return "evaluate" if verb == "eval" else verb


def call(verb: str, options: Any, talk: Talk, **streams: Any) -> Any:
    """Return the result of a verb's function, which is given those of `streams` (stdin, emit, ask) that it takes."""
    function = getattr(import_module(f"{__name__}.{verb}"), function_name(verb))
    taken = inspect.signature(function).parameters.keys() & streams
    return function(options, talk=talk, **{name: streams[name] for name in taken})
