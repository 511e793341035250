"""Pretrain an image network on your own unlabelled pictures, finetune it on few labels, and see whether it helped.

Every verb of the command line is a function here: `import selfie_cli as selfie`, then `help(selfie.pretrain)`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    *("SelfieError", "curve", "demo", "doctor", "embed", "evaluate", "export", "finetune", "load", "predict"),
    *("pretrain", "pull", "push", "report", "similar"),
]


def __getattr__(name: str) -> Any:
    """Load the Python interface on first use, so that importing a submodule stays fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = importlib.import_module("selfie_cli.api").PUBLIC[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]
