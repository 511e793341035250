"""What recipes and loops say to whoever runs them, kept for a test."""

from selfie_cli.talk import Talk


class Listener(Talk):
    """`lines` has everything in order, `said` and `warned` one kind each."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(line)
        self.warned.append(line)
