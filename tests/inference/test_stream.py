"""What embed and predict share: precision, batches, files that grow, several processes, compiling."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from listening import Listener
from PIL import Image
from running import COMMAND, ENVIRONMENT, TORCHRUN, error_of, selfie
from safetensors.numpy import load_file
from torch import nn

from selfie_cli.errors import UsageError
from selfie_cli.hardware import has_vnni
from selfie_cli.inference import stream as inference
from selfie_cli.inference.networks import Network, estimate_batch_norm
from selfie_cli.inference.stream import SHORT_JOB, Result, Worker, made_lean
from selfie_cli.inference.vector_files import HEADERS, writing
from selfie_cli.models.encoder import Encoder
from selfie_cli.models.resnet import PREACTIVATION, TORCHVISION
from selfie_cli.talk import Talk


def network(backbone: str = "resnetv2_18_w16", image_size: int = 32) -> Network:
    torch.manual_seed(0)
    return Network(Encoder(backbone, stem="3x3" if image_size < 64 else "7x7").eval(), image_size, "whole")


@pytest.fixture
def names(images: Path) -> list[str]:
    """More than a short job."""
    found = [str(path) for path in sorted(images.rglob("*.png"))]
    assert len(found) > SHORT_JOB
    return found


@pytest.fixture
def _bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "bf16_pays", lambda device: True)


def turned(degrees: float):
    """Vectors that bf16 turns by an angle."""

    def compute(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        coarse = any(tensor.dtype == torch.bfloat16 for tensor in network.module.state_dict().values())
        angle = torch.tensor(np.deg2rad(degrees) if coarse else 0.0)
        return torch.stack([angle.cos(), angle.sin()]).expand(len(pixels), 2).float()

    return compute


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize(("degrees", "chosen"), [(2.5, "bf16"), (2.6, "fp32")])  # the cosine of 2.56 degrees is 0.999
def test_auto_takes_bf16_where_it_gives_the_same_vectors(names: list[str], degrees: float, chosen: str) -> None:
    talk = Listener()
    _, dtype = made_lean(network(), turned(degrees), names, precision="auto", talk=talk)
    assert dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen]
    (line,) = talk.lines
    assert line.startswith(f"precision: {chosen}; in bf16 the cosine to fp32 is at least 0.99")
    assert ("below 0.999" in line) == (chosen == "fp32")


@pytest.mark.usefixtures("_bf16")
def test_what_is_asked_for_is_not_questioned(names: list[str]) -> None:
    talk = Listener()
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert made_lean(network(), turned(90), names, precision=precision, talk=talk)[1] == dtype
    assert made_lean(network(), turned(0), names[:SHORT_JOB], precision="auto", talk=talk)[1] == torch.float32
    assert talk.lines == []


def test_auto_is_fp32_on_hardware_without_bf16(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "bf16_pays", lambda device: False)
    assert made_lean(network(), turned(0), names, precision="auto", talk=Talk())[1] == torch.float32


@pytest.fixture(scope="module")
def photos(real_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(real_archives / "clothing256.tar") as tar:
        members = [member for member in tar if member.isfile()][::90][: SHORT_JOB + 8]
        tar.extractall(folder, members, filter="data")
    return [str(folder / member.name) for member in members]


@pytest.mark.usefixtures("_bf16")
@pytest.mark.parametrize("estimated", [False, True], ids=["as drawn", "with statistics"])
@pytest.mark.parametrize("backbone", [*PREACTIVATION, *TORCHVISION])
def test_real_photos_keep_their_direction(photos: list[str], backbone: str, estimated: bool) -> None:
    """At 224 px, with random weights: what is chosen keeps a cosine of 0.999, on images that had no say in it, too.

    With statistics of its own in each of 16 blocks, a random ResNet-50 makes a rounding error grow, and fp32 is taken.
    """
    exact, talk = network(backbone, 224), Listener()
    pixels = inference.decode(photos, range(16), exact, 16)[0]
    if estimated:
        estimate_batch_norm(exact.module, exact.vectors, pixels)
        exact.module.eval()
    lean, dtype = made_lean(exact, Network.vectors, photos, precision="auto", talk=talk)
    if not estimated or backbone.startswith("resnetv2_18") or backbone == "resnet18":
        assert dtype == torch.bfloat16
    cosines = F.cosine_similarity(lean.vectors(pixels[8:]), exact.vectors(pixels[8:]))
    assert cosines.min() > 0.9985
    assert f"precision: {'bf16' if dtype == torch.bfloat16 else 'fp32'}" in talk.lines[0]


def working(names: list[str], compute: inference.Compute, *, batch: int) -> Worker:
    exact = network()
    return Worker(names, exact, compute, lean=exact.lean(torch.float32), dtype=torch.float32, batch=batch)


def test_batches_are_padded_to_one_shape(names: list[str]) -> None:
    seen: list[torch.Size] = []

    def compute(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.shape)
        return network.vectors(pixels)

    Path("bad.png").write_bytes(b"no image")
    worker = working([*names[:5], "bad.png", names[5]], compute, batch=4)
    first, second = worker(range(4)), worker(range(4, 7))
    assert seen == [(4, 32, 32, 3)] * 2
    assert [result.name for result in first.results + second.results] == names[:6]
    assert [one.name for one in second.bad] == ["bad.png"]
    alone = working(names[4:5], Network.vectors, batch=1)(range(1))
    np.testing.assert_allclose(second.results[0].vector, alone.results[0].vector, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", HEADERS)
def test_rows_reach_the_file_as_they_come(suffix: str) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float32)
    with writing(Path(f"v{suffix}")) as write:
        for number, row in enumerate(rows):
            write(Result(f"{number}.jpg", row, 1, 1, b""))
            if number == 500:
                (growing,) = Path().glob(f".tmp-*{suffix}")
                assert growing.stat().st_size > 400 * row.nbytes
                assert not Path(f"v{suffix}").exists()
    found = np.load(f"v{suffix}") if suffix == ".npy" else load_file(f"v{suffix}")["vectors"]
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)
    listed = [json.loads(line) for line in Path(f"v{suffix}.rows.jsonl").read_text().splitlines()]
    assert listed == [{"row": number, "path": f"{number}.jpg"} for number in range(1000)]


@pytest.mark.parametrize("suffix", HEADERS)
def test_a_job_that_ends_early_leaves_nothing(suffix: str) -> None:
    with contextlib.suppress(ZeroDivisionError), writing(Path(f"v{suffix}")) as write:
        write(Result("a.jpg", np.ones(3, np.float32), 1, 1, b""))
        raise ZeroDivisionError
    assert list(Path().iterdir()) == []


def test_a_runs_own_files_are_no_place_for_results(finetuned: Path, images: Path) -> None:
    shutil.copytree(finetuned, "run")
    Path("run/metrics.jsonl").touch()
    Path("link.safetensors").symlink_to("run/model.safetensors")
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    Path("linked").mkdir()
    shutil.copy("run/config.json", "linked")
    Path("linked/model.safetensors").symlink_to(Path("other/weights.safetensors").resolve())
    before = {file: file.read_bytes() for file in Path("run").iterdir() if file.is_file()}
    exported, embedded = ("export", "run", "--to", "safetensors"), ("embed", images / "test", "--from", "run")
    for command, out in (
        (exported, "run/model.safetensors"),
        (exported, "link.safetensors"),
        (exported, "linked/model.safetensors"),
        (embedded, "run/seen.safetensors"),
        (embedded, "run/metrics.jsonl"),
        (("predict", "run", images / "test"), "run/eval-photos-seen.jsonl"),
    ):
        assert "is a file of a run" in error_of(*command, "--out", out, "--overwrite", code=2)
    for out in ("run/mine.safetensors", "other/model.safetensors"):
        selfie(*exported, "--out", out)
        selfie(*exported, "--out", out, "--overwrite")
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("suffix", HEADERS)
def test_headers_are_as_long_whatever_they_say(suffix: str) -> None:
    assert len({len(HEADERS[suffix](height, 2048)) for height in (0, 1, 10**6, 10**12)}) == 1


def test_a_header_for_numpy() -> None:
    data = HEADERS[".npy"](2, 3) + np.arange(6, dtype="<f4").tobytes()
    assert np.load(io.BytesIO(data)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(pretrained: Path, images: Path) -> None:
    """Their files, the unreadable ones in their places, and nothing on stdout but what the first one says."""
    Path("bad.png").write_bytes(b"no image")
    paths = sorted((images / "test").rglob("*.png"))[:9]
    mixed = [*paths[:3], Path("bad.png"), *paths[3:], Path("nowhere.png")]
    common = ["embed", *map(str, mixed[:4]), "-", "--from", str(pretrained), "--batch-size", "2"]
    lines = "".join(f"{path}\n" for path in mixed[4:])
    selfie(*common, "--out", "one/v.npy", stdin=lines)
    done = subprocess.run(
        [*TORCHRUN, "-m", "selfie_cli", *common, "--out", "two/v.npy"],
        env=ENVIRONMENT,
        input=lines,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two/v.npy: 9 vectors\n"
    assert done.stderr.count("left out: bad.png") == 1
    for file in ("v.npy.rows.jsonl", "v.npy.bad_files.jsonl"):
        assert Path("two", file).read_text() == Path("one", file).read_text()
    np.testing.assert_allclose(np.load("two/v.npy"), np.load("one/v.npy"), rtol=1e-5, atol=1e-6)
    assert {file.name for file in Path("two").iterdir()} == {"v.npy", "v.npy.rows.jsonl", "v.npy.bad_files.jsonl"}


@pytest.mark.slow
def test_without_a_compiler_it_goes_on(pretrained: Path, images: Path) -> None:
    environment = {**ENVIRONMENT, "CXX": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": os.path.abspath("cache")}
    argv = [*COMMAND, "embed", images / "test", "--from", pretrained, "--compile", "on", "--out", "v.npy"]
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.compile does not work here, going on without (" in done.stderr
    selfie("embed", images / "test", "--from", pretrained, "--out", "w.npy")
    np.testing.assert_allclose(np.load("v.npy"), np.load("w.npy"), rtol=1e-5, atol=1e-6)


def test_a_compiled_network_takes_over(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is compiled as it is, with a backend that needs no compiler: what counts is what is used after."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **options: object) -> object:
        calls.append(len(inputs))
        return graph.forward

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: real(self, dynamic=how["dynamic"], backend=backend))
    worker = working(names, Network.vectors, batch=4)
    before, plain = worker(range(4)), worker.lean
    worker.compile(Talk())
    assert worker.lean is not plain
    assert len(calls) == 1
    after = worker(range(4))
    assert len(calls) == 1  # one shape, compiled once
    for one, other in zip(before.results, after.results, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, rtol=1e-4, atol=1e-6)


def test_large_pictures_and_small(pretrained: Path) -> None:
    for number, size in enumerate([(8, 8), (3000, 20), (640, 480)]):
        Image.new("RGB", size, (200, number * 40, 10)).save(f"{number}.png")
    assert len(selfie("embed", ".", "--from", pretrained, "--workers", 3).stdout.splitlines()) == 3


needs_vnni = pytest.mark.skipif(not has_vnni(torch.device("cpu")), reason="no VNNI here")


@needs_vnni
def test_int8_on_request(images: Path) -> None:
    selfie("embed", images, "--from", "bundled", "--out", "exact.npy", "--precision", "fp32")
    asked = ("embed", images, "--from", "bundled", "--precision", "int8")
    result = selfie(*asked, "--out", "v.npy", "--batch-size", 7)
    assert "precision: int8; the cosine to fp32 is at least 0.99" in result.stderr
    exact, found = torch.from_numpy(np.load("exact.npy")), torch.from_numpy(np.load("v.npy"))
    assert 0.99 < F.cosine_similarity(found, exact).min() < 0.99999
    assert "--compile on" in error_of(*asked, "--compile", "on", code=2)


@needs_vnni
def test_int8_that_loses_too_much_is_warned_of(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "USABLE", 1.1)
    talk = Listener()
    made_lean(network(), Network.vectors, names, precision="int8", talk=talk)
    assert len(talk.lines) == 2
    assert "take bf16 or fp32" in talk.lines[1]


def test_int8_is_refused_where_it_is_not_to_be_had(
    pretrained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "has_vnni", lambda device: False)
    assert "VNNI" in error_of("embed", images, "--from", pretrained, "--precision", "int8", code=2)


def test_paths_that_zero_bytes_part_are_no_lines() -> None:
    with pytest.raises(UsageError, match="one path a line"):
        inference.expand(["-"], ["a.png\0b.png\0"], Talk())
