"""What a stranger's config.json may say: whatever it is, each verb reads it, or refuses it in a line."""

import functools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from running import error_of

from selfie_cli import runs, schema
from selfie_cli.errors import RunError
from selfie_cli.files import read_json, write_json
from selfie_cli.inference import networks
from selfie_cli.runs import bundled_folder


def changed(path: str, value: Any) -> dict[str, Any]:
    """The bundled network's config with the value at a dotted path replaced; ... removes it."""
    config: dict[str, Any] = read_json(bundled_folder() / "config.json")
    *folders, last = path.split(".")
    table = functools.reduce(dict.__getitem__, folders, config)
    table[last] = value
    if value is ...:
        del table[last]
    return config


FAULTS = [
    # larger than any honest run
    *[("derived.image_size", 4097), ("derived.selfie.hidden", 2**14 + 1), ("derived.batch_size", 2**40)],
    # of another type, or missing
    *[("derived.image_size", "32"), ("derived.image_size", 32.0), ("derived.image_size", True)],
    *[("derived.image_size", ...), ("derived.patch_size", 0), ("derived.method", None), ("derived.selfie", [])],
    *[(section, ...) for section in ("verb", "asked", "derived", "measured", "progress", "progress.status")],
    *[("derived.selfie.mask_ratio", "half"), ("asked.seed", "0"), ("asked.data", [3]), ("asked.flip", 7)],
    *[("measured.last", {"loss": "low"}), ("data", []), ("versions", ["1"]), ("from", [{"path": 3}])],
    # unknown
    *[("derived.optimizer", "sgdx"), ("derived.selfie.patience", 3), ("derived.trust_remote_code", True)],
    *[("progress.status", True), ("verb", "embed"), ("derived.frozen", {"num_stages": 9}), ("derived.frozen", [])],
    ("derived.frozen", {"num_stages": 3, "frozen_width": 9}),
]


@pytest.mark.parametrize(("path", "value"), FAULTS)
def test_a_config_that_no_run_has_is_refused_before_anything_is_built(tmp_path: Path, path: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(RunError, match=r"is damaged|lacks|not the config") as caught:
        runs.open_run(tmp_path)
    assert path.rpartition(".")[2] in str(caught.value) or "status" in path or path == "data"
    assert "\n" not in str(caught.value)


def test_a_network_of_a_million_classes_is_not_built() -> None:
    derived = read_json(bundled_folder() / "config.json")["derived"] | {"method": "finetune", "arch": "resnet"}
    networks.build(derived | {"classes": ["a", "b"]})
    with pytest.raises(RunError, match=f"not 1 to {schema.MOST_CLASSES:,}"):
        networks.build(derived | {"classes": ["a"] * 1_000_000})
    with pytest.raises(RunError, match=r"not 1 to 128 patches of 8 px"):
        networks.build({**derived, "method": "selfie", "patch_size": 8, "image_size": 8 * 129})


def test_weights_decide_whether_a_network_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are of a network with a smaller stem."""
    shutil.copy(bundled_folder() / "model.safetensors", tmp_path)
    write_json(tmp_path / "config.json", changed("derived.stem", "7x7"))
    made: list[str] = []
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda derived: made.append(derived["method"]) or build(derived))
    message = error_of("embed", "x.jpg", "--from", tmp_path)
    assert re.search(r"is torch.float32 \[.*\], not torch.float32 \[", message)
    assert made == ["selfie"]  # without memory


VERBS = """embed x.jpg --from run | predict run x.jpg | eval run --dataset x | export run --to safetensors
 | report run | push run a/b | finetune --from run --dataset x | curve --from run --dataset x | pretrain --resume run"""


def test_every_verb_refuses_it_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(bundled_folder(), "run")
    write_json(Path("run/config.json"), changed("derived.selfie", 3))
    for command in VERBS.split(" | "):
        assert "config.json is damaged" in error_of(*command.split())
    assert sorted(each.name for each in Path().iterdir()) == ["run"]


def test_resuming_needs_every_value_that_trains(tmp_path: Path) -> None:
    config = changed("progress.status", "running")
    for name in ("steps", "recipe", "selfie"):
        derived = {key: value for key, value in config["derived"].items() if key != name}
        write_json(tmp_path / "config.json", {**config, "derived": derived})
        assert f"lacks {name}" in error_of("pretrain", "--resume", tmp_path)


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 2**33)
    with pytest.raises(RunError, match="has more than"):
        runs.open_run(tmp_path)
