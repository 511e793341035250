"""The program. It answers signals from its first instant on, before anything heavy is imported."""

import signal

from selfie_cli.signals import STOPPING, ignored, is_alone, leave


def main() -> None:
    for number in STOPPING if is_alone() else ():
        if not ignored(number):
            signal.signal(number, leave)
    from selfie_cli.cli import app

    app.main()


if __name__ == "__main__":
    main()
