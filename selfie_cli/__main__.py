"""The program `selfie`. It handles signals from the start, before anything heavy is imported."""

import faulthandler
import os
import signal
import sys

from selfie_cli.signals import STOPPING, ignored, is_alone, leave


def main() -> None:
    if sys.stderr is not None:
        faulthandler.enable()  # a decoder that crashes leaves a traceback
    for number in STOPPING if is_alone() else ():
        if not ignored(number):
            signal.signal(number, leave)
    from selfie_cli.cli import app

    try:
        app.main()
    except SystemExit as ended:
        if is_alone() or isinstance(ended.code, str):
            raise
        # All is flushed, and the process group is left. One finished process in twenty aborted while the interpreter
        # shut down, probably by a C++ thread of torch.distributed, so skip the shutdown, as multiprocessing does.
        os._exit(ended.code or 0)


if __name__ == "__main__":
    main()
