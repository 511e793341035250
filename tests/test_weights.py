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


def test_tensors_and_header_come_back_and_equal_ones_make_equal_files(tmp_path):
    tensors = {
        "channels_last": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "view": torch.arange(10.0)[::2],
        "learned": torch.nn.Parameter(torch.randn(2)),
        "half": torch.randn(3).bfloat16(),
    }
    header = {"backbone": "resnet18", "steps": 3, **{name: name for name in "abcdefgh"}}
    for name in ("one", "two", "three"):
        save_weights(tmp_path / name, tensors, header)
    assert set(os.listdir(tmp_path)) == {"one", "two", "three"}
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1
    loaded, about = load_weights(tmp_path / "one")
    assert about == {**header, "format_version": FORMAT_VERSION, "steps": "3"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].equal(tensor), name
        assert loaded[name].dtype == tensor.dtype


def test_loaded_tensors_survive_the_file(file):
    tensors, _ = load_weights(file)
    save_weights(file, {"a": torch.zeros(1000)}, {})
    assert tensors["a"].equal(torch.arange(1000.0))


def test_a_missing_or_damaged_file_is_named(file):
    """Cut, cut in the header, empty, with something before, with a header that is no JSON."""
    with pytest.raises(WeightsError, match="no weights"):
        load_weights(file.with_name("nowhere"))
    with pytest.raises(WeightsError):
        load_weights(file.parent)
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\x80\x04." + whole, whole[:8] + b"?" + whole[9:]):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=f"{file} is damaged"):
            load_weights(file)


@pytest.mark.parametrize(("metadata", "named"), [({"format_version": "99"}, "99"), ({}, "unknown"), (None, "unknown")])
def test_another_format_version_is_refused(file, metadata, named):
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, metadata)
    with pytest.raises(WeightsError, match=f"version {named}, this selfie reads {FORMAT_VERSION}"):
        load_weights(file)
