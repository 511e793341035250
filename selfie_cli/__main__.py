"""The program `selfie`. It handles signals from the start, before anything heavy is imported."""

import faulthandler
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

    app.main()


if __name__ == "__main__":
    main()
