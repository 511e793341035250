"""Runs as this version writes them, kept for versions to come: python tests/golden/make.py

Writes tests/golden/format-N/, where N is the format of a run's config.json: pictures; a pretraining that was stopped,
one that finished, and a finetuned network; and in expected.json what this version makes of them, which
test_kept_runs.py asks of every later version. To be run for a new format: older ones stay as they are.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from running import SMALL, draw_folder, lines_of, rows, selfie

from selfie_cli.commands.pretrain import pretrain
from selfie_cli.config import PretrainOptions
from selfie_cli.data import synthetic
from selfie_cli.errors import Stopped
from selfie_cli.models.attention import AttentionPooling
from selfie_cli.runs import RUN_FORMAT
from selfie_cli.talk import Advance, Talk

STEPS, STOPPED_AT = 40, 32
NUM_PICTURES = 12
TOLD = ("pictures/00.png", "pictures/01.png")
ON_CPU = ("--device", "cpu", "--precision", "fp32")
save = safetensors.torch.save


class Stopping(Talk):
    """Asks a training to stop, as a terminal would."""

    @contextlib.contextmanager
    def track(self, what: str, total: int) -> Iterator[Advance]:
        def advance(step: int, note: str) -> None:
            if step == STOPPED_AT - 1:  # a step later the loop looks at signals
                signal.raise_signal(signal.SIGINT)

        yield advance


def save_rounded(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """As safetensors saves them, but float32 numbers with three bits behind the point: they pack to a third."""

    def rounded(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        return ((tensor.view(torch.int32) + (1 << 19)) & ~((1 << 20) - 1)).view(torch.float32)

    return save({name: rounded(tensor) for name, tensor in tensors.items()}, metadata)


def make() -> None:
    """Into the current folder."""
    Path("pictures").mkdir()
    for number, picture in enumerate(synthetic.draw(NUM_PICTURES, seed=1)[0]):
        Image.fromarray(picture).save(f"pictures/{number:02d}.png")
    options = PretrainOptions(
        data=("pictures",), recipe="paper", out="stopped", backbone="resnetv2_18_w16", batch_size=8,
        steps=STEPS, lr=0.1, warmup_steps=10, save_every=0, device="cpu", precision="fp32", report=False,
    )  # fmt: skip
    with contextlib.suppress(Stopped):
        pretrain(options, Stopping())
    older, newest = sorted(Path("stopped/state").iterdir())
    assert newest.name == f"{STOPPED_AT:08d}"
    shutil.rmtree(older)

    small = (*SMALL, *ON_CPU, "--hidden", 16, "--width", 8)
    selfie("pretrain", "pictures", *small, "--steps", 20, "--out", "finished")
    draw_folder(Path("labelled"))
    one_arm = ("--from", "finished", "--no-baseline")
    selfie("finetune", "--dataset", "labelled", *one_arm, *SMALL, *ON_CPU, "--steps", 20, "--out", "finetuned")
    shutil.rmtree("labelled")
    shutil.rmtree("finetuned/cells")  # of which one holds the same weights
    for file in Path().glob("*/*.json*"):  # where it was made is nobody's business
        file.write_text(file.read_text().replace(f"{Path.cwd()}/", ""))


def outcome() -> dict[str, Any]:
    """Results of this version on the runs in the current folder. The stopped one is resumed to its end."""
    selfie("pretrain", "--resume", "stopped")
    return {
        "losses": [line["loss"] for line in lines_of("stopped/metrics.jsonl") if line["step"] > STOPPED_AT],
        "vectors": {
            run: [row["vector"] for row in rows("embed", *TOLD, "--from", run, *ON_CPU)]
            for run in ("stopped", "finished", "finetuned")
        },
        "predicted": rows("predict", "finetuned", *TOLD, *ON_CPU),
    }


def main() -> None:
    kept = Path(__file__).with_name(f"format-{RUN_FORMAT}")
    os.fsync = lambda file: None  # a state a step is much to wait for
    AttentionPooling.__init__.__kwdefaults__["dropout"] = 0.0  # its draws differ between kinds of processors
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        safetensors.torch.save = save_rounded
        make()
        safetensors.torch.save = save
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
        (kept / "expected.json").write_text(json.dumps(outcome()) + "\n")


if __name__ == "__main__":
    main()
