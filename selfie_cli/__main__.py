"""The program `selfie`. It handles signals from the start, before anything heavy is imported."""

import faulthandler
import os
import signal
import sys

from selfie_cli.signals import STOPPING, ignored, is_alone, leave


def main() -> None:
    if sys.stderr is not None:
        faulthandler.enable()  # prints a traceback if a decoder crashes
    for number in STOPPING if is_alone() else ():
        if not ignored(number):
            signal.signal(number, leave)
    from selfie_cli.cli import app

    try:
        app.main()
    except SystemExit as ended:
        if is_alone() or isinstance(ended.code, str):
            raise
        # Output is flushed and the process group is destroyed. About one finished process in twenty aborted during
        # interpreter shutdown, probably in a C++ thread of torch.distributed. Skip shutdown, as multiprocessing does.
        os._exit(ended.code or 0)


if __name__ == "__main__":
    main()
