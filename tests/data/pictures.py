"""Small images, in memory and on disk, and both ways to open them, offline: what the tests of data share."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from selfie_cli.data.blocks import BlockReader
from selfie_cli.data.labelled import LabelledSplits, open_labelled
from selfie_cli.data.sources import Source
from selfie_cli.data.unlabelled import open_unlabelled
from selfie_cli.talk import Talk


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(num_images: int, side: int) -> torch.Tensor:
    """uint8 [B, S, S, 3], without black."""
    return torch.randint(1, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=seeded())


def png(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(data, "PNG")
    return data.getvalue()


def put(folder: Path | str, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write(root: Path, *names: str) -> list[str]:
    put(root, {name: png(shade) for shade, name in enumerate(names)})
    return [str(root / name) for name in names]


def write_tar(path: Path, members: dict[str, bytes] | Iterable[tuple[str, bytes | str]]) -> str:
    """Write members of some names and contents; text in place of contents is where a link leads to."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info, data = tarfile.TarInfo(name), b""
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size, data = len(content), content
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_parquet(
    path: Path,
    images: Sequence[bytes | dict[str, Any] | None],
    labels: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
    group: int = 1000,
    **columns: Any,
) -> str:
    """As `datasets` 5 does: `classes` make `labels` a ClassLabel, `group` rows go into a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [
        {"bytes": one, "path": f"{row:04d}.png"} if isinstance(one, bytes) else one for row, one in enumerate(images)
    ]
    table = {"image": pa.array(cells, cell)} | ({} if labels is None else {"label": pa.array(labels)}) | columns
    features = {"image": {"_type": "Image"}} | (
        {"label": {"names": list(classes), "_type": "ClassLabel"}} if classes else {}
    )
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).replace_schema_metadata(noted), path, row_group_size=group)
    return str(path)


def unlabelled(*data: object, root: Path | str = "/nonexistent", talk: Talk | None = None) -> Source:
    return open_unlabelled([str(one) for one in data], data_root=Path(root), offline=True, talk=talk or Talk())


def labelled(dataset: object, root: Path | str = "/nonexistent", talk: Talk | None = None) -> LabelledSplits:
    return open_labelled(str(dataset), data_root=Path(root), offline=True, talk=talk or Talk())


def shade(source: Source | BlockReader, index: int) -> int:
    """Return the grey level of an image that `png` made."""
    with source.open(index) as image:
        return int(np.asarray(image)[0, 0, 0])


def shades(source: Source) -> list[int]:
    return [shade(source, index) for index in range(len(source))]
