import os

import pytest
import safetensors.torch
import torch

from selfie_cli.errors import WeightsError
from selfie_cli.weights import FORMAT_VERSION, load_weights, save_weights


@pytest.fixture
def file(tmp_path):
    save_weights(tmp_path / "a.safetensors", {"a": torch.arange(1000.0)}, {"step": 3})
    return tmp_path / "a.safetensors"


def test_tensors_and_header_come_back(tmp_path):
    tensors = {
        "channels_last": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "view": torch.arange(10.0)[::2],
        "learned": torch.nn.Parameter(torch.randn(2)),
        "half": torch.randn(3).bfloat16(),
    }
    save_weights(tmp_path / "a.safetensors", tensors, {"backbone": "resnet18", "steps": 3})
    loaded, header = load_weights(tmp_path / "a.safetensors")
    assert header == {"format_version": FORMAT_VERSION, "backbone": "resnet18", "steps": "3"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].equal(tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_loaded_tensors_survive_the_file(file):
    tensors, _ = load_weights(file)
    save_weights(file, {"a": torch.zeros(1000)}, {})
    assert tensors["a"].equal(torch.arange(1000.0))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="no weights"):
        load_weights(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError):
        load_weights(tmp_path)


def test_a_damaged_file_is_named(file):
    """Cut, cut in the header, empty, with something before, with a header that is no JSON."""
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\x80\x04." + whole, whole[:8] + b"?" + whole[9:]):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=f"{file} is damaged"):
            load_weights(file)


@pytest.mark.parametrize(("metadata", "named"), [({"format_version": "99"}, "99"), ({}, "unknown"), (None, "unknown")])
def test_another_format_version_is_refused(tmp_path, metadata, named):
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, metadata)
    with pytest.raises(WeightsError, match=f"version {named}, this selfie reads {FORMAT_VERSION}"):
        load_weights(file)


def test_equal_weights_make_equal_files(tmp_path):
    header = {name: name for name in "abcdefgh"}
    tensors = {"w": torch.arange(5.0), "b": torch.ones(1, dtype=torch.int64)}
    for name in ("one", "two", "three"):
        save_weights(tmp_path / name, tensors, header)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1
    loaded, metadata = load_weights(tmp_path / "one")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert header.items() <= metadata.items()
