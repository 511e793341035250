"""Small images on disk, and both ways to open them, offline: what the tests of sources share."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from selfie_cli.data.labelled import LabelledSplits, open_labelled
from selfie_cli.data.sources import Source, open_unlabelled
from selfie_cli.talk import Talk


class Lines(Talk):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def png(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(data, "PNG")
    return data.getvalue()


def write(root: Path, *names: str) -> list[str]:
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(shade))
    return [str(root / name) for name in names]


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def unlabelled(*data: object, root: str = "/nonexistent", talk: Talk | None = None) -> Source:
    return open_unlabelled([str(one) for one in data], data_root=Path(root), offline=True, talk=talk or Talk())


def labelled(dataset: object, root: Path | str = "/nonexistent", talk: Talk | None = None) -> LabelledSplits:
    return open_labelled(str(dataset), data_root=Path(root), offline=True, talk=talk or Talk())


def shade(source: Source, index: int) -> int:
    """What `png` was given."""
    with source.open(index) as image:
        return int(np.asarray(image)[0, 0, 0])
