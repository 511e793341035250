"""Tensors in safetensors files, whose header has everything needed to rebuild the network."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfie_cli.errors import WeightsError
from selfie_cli.files import replacing

FORMAT_VERSION = "1"


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Write tensors and `header`, whose values become strings; return the SHA-256 of the file."""
    metadata = {"format_version": FORMAT_VERSION, **{key: str(value) for key, value in header.items()}}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = with_sorted_header(safetensors.torch.save(contiguous, metadata))
    with replacing(path) as temporary:
        temporary.write_bytes(data)  # save_file makes a file that only its owner can read
    return hashlib.sha256(data).hexdigest()


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def with_sorted_header(data: bytes) -> bytes:
    """Sort the header, so that equal tensors and metadata give equal files; safetensors' order of metadata varies."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and header of any safetensors file. Raise WeightsError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError:
        raise WeightsError(f"no weights at {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and header of a file that `save_weights` wrote.

    Raise WeightsError if the file is missing, damaged, or of another format version.
    """
    tensors, header = read_tensors(path)
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {version or 'unknown'}, this selfie reads {FORMAT_VERSION}: "
            "use the selfie that wrote it, or pretrain again"
        )
    return tensors, header
