"""The Python interface: the command line's options, checks and results as functions, and networks as torch modules."""

import inspect
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from PIL import Image
from running import ENVIRONMENT, rows, same_weights, selfie

import selfie_cli as api
from selfie_cli import runs
from selfie_cli.commands import VERBS, function_name
from selfie_cli.data.bad_files import BadFile
from selfie_cli.option import options_of

SMALL: dict[str, Any] = {
    **{"backbone": "resnetv2_18_w16", "batch_size": 8, "steps": 4, "warmup_steps": 2, "lr": 0.05},
    **{"precision": "fp32", "report": False, "quiet": True},
}


@pytest.mark.parametrize("verb", VERBS)
def test_signature_and_docstring_hold_every_option_of_the_verb(verb: str) -> None:
    function = getattr(api, function_name(verb))
    options = {one.name: one.field for one in options_of(VERBS[verb]) if one.name != "json"}
    parameters = inspect.signature(function).parameters
    assert {name: each.default for name, each in parameters.items()} == {n: f.default for n, f in options.items()}
    positional = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name, field in options.items() if field.metadata["argument"]]
    for name in options:
        assert f"\n{name}: " in function.__doc__
    assert "--" not in function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


def test_the_package_is_light_until_a_function_is_called() -> None:
    program = (
        "import sys\n"
        "import selfie_cli as selfie\n"
        "print(*sorted({'torch', 'typer', 'rich', 'numpy', 'selfie_cli.api'} & sys.modules.keys()))\n"
        "assert {'pretrain', 'load', 'SelfieError', '__version__'} <= {*dir(selfie)}\n"
        "print(selfie.pretrain.__name__, *sorted({'torch', 'typer', 'rich', 'numpy'} & sys.modules.keys()))\n"
        "from selfie_cli import *\n"
        "print(evaluate.__name__, hasattr(selfie, 'nonsense'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == "\npretrain\nevaluate False\n", done.stderr


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"imag_size": 1}, TypeError, "did you mean 'image_size'"),
        ({"zzz": 1}, TypeError, r"'zzz': help\(selfie.pretrain\)"),
        ({"device": "tpu"}, api.SelfieError, "^--device must be one of 'auto', 'cpu', 'cuda', 'mps', got 'tpu'$"),
        ({"image_size": "64"}, api.SelfieError, r"^--image-size must be int \| None, got '64'$"),
        ({"steps": True}, api.SelfieError, "^--steps must be int"),
        ({"out": ""}, api.SelfieError, "^--out is empty"),
    ],
)
def test_values_are_checked_as_on_the_command_line(wrong: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        api.pretrain("images", **wrong)


def test_what_is_given_by_place_is_a_path_or_several() -> None:
    for wrong in (5, [b"a.png"], [["a.png"]], np.zeros((2, 3)), Image.new("RGB", (4, 4))):
        with pytest.raises(api.SelfieError, match=r"^--paths must be a path or several, got .{,60}$"):
            api.embed(wrong)
    with pytest.raises(TypeError, match=r"finetune.. takes 0 positional arguments: give the others by name"):
        api.finetune("labelled")


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"lr": 0.1, "fraction": np.float32(0.5), "seeds": np.int64(2)}, {"lr": "0.1", "fraction": 0.5, "seeds": 2}),
        ({"lr": [0.03, 0.1]}, {"lr": "0.03,0.1"}),
        ({"lr": np.array([0.03, 0.1])}, {"lr": "0.03,0.1"}),
        ({"lr": None, "device": None}, {}),
        ({"dataset": Path("nowhere")}, {"dataset": "nowhere"}),
    ],
)
def test_numbers_lists_and_paths_are_taken_as_python_has_them(
    given: dict[str, Any], same: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("selfie_cli.api.perform", lambda verb, values, names: seen.append((values, names)))
    api.finetune(**given)
    api.finetune(**same)
    assert seen[0] == seen[1]


def test_embed_gives_the_vectors_and_paths_of_the_command_line(images: Path, pretrained: Path) -> None:
    files = sorted((images / "test").rglob("*.png"))[:5]
    Path("bad.png").write_text("no image")
    shown = rows("embed", *files, "--from", pretrained)
    found = api.embed([*files, "bad.png"], from_=pretrained, quiet=True)
    assert found.vectors.dtype == np.float32
    assert found.paths == [row["path"] for row in shown] == [str(file) for file in files]
    np.testing.assert_allclose(found.vectors, [row["vector"] for row in shown], atol=1e-6)
    assert [(each.name, type(each)) for each in found.bad_files] == [("bad.png", BadFile)]
    assert "5 vectors" in pickle.loads(pickle.dumps(found))._repr_html_()
    one = api.embed(str(files[0]), from_=pretrained, quiet=True)
    np.testing.assert_allclose(one.vectors, found.vectors[:1], atol=1e-5)


def test_embed_to_a_file_and_similar(images: Path, pretrained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = api.embed(images / "test", from_=str(pretrained), out="v.npy", quiet=True)
    assert written.images == len(np.load("v.npy")) == 30
    query = Path(shutil.copy(sorted((images / "test").rglob("*.png"))[3], "<i>&.png"))
    found = api.similar(query, in_="v.npy", from_=pretrained, top=3, quiet=True)
    (answer,) = found.answers
    assert answer.matches[0].cosine == pytest.approx(1)
    html = found._repr_html_()
    assert html.count("test/") == 3
    assert "&lt;i&gt;&amp;.png" in html
    assert capfd.readouterr() == ("", "")


def test_pretrain_finetune_predict_and_evaluate(images: Path) -> None:
    asked = (*running.SMALL, "--steps", 4, "--warmup-steps", 2, "--lr", 0.05)
    selfie("pretrain", images / "train", *asked, "--out", "one")
    trained = api.pretrain(images / "train", out="two", **SMALL)
    assert trained.step == 4
    assert same_weights(Path("one"), trained.run)
    labelled = {**SMALL, "backbone": None, "dataset": images, "from_": trained.run, "check_length": False}
    result = api.finetune(seeds=2, out="tuned", **labelled)
    html = result._repr_html_()
    assert html.startswith("<pre")
    for told in (result.sentence, *(f"{arm.mean * 100:.1f} ± {arm.std * 100:.1f}" for arm in result.arms)):
        assert told in html
    found, shown = api.predict("tuned", images / "test", quiet=True), rows("predict", "tuned", images / "test")[0]
    assert found.rows[0] == {**shown, "probability": pytest.approx(shown["probability"], abs=1e-4)}
    html = found._repr_html_()
    assert (html.count(".png"), "and 10 more" in html) == (20, True)
    judged = api.evaluate(trained.run, dataset=images, quiet=True)
    assert 0 <= judged.trained.knn <= 1
    assert "kNN" in judged._repr_html_()


def test_errors_are_those_of_the_command_line_and_leave_no_lock(images: Path, pretrained: Path) -> None:
    with pytest.raises(api.SelfieError, match="classes: selfie finetune"):
        api.predict(pretrained, images)
    for run in ("none", "nowhere"):
        with pytest.raises(api.SelfieError, match="folder"):
            api.load(run)
    assert not runs._held


def test_torch_is_left_as_it_was_and_calls_from_threads_wait_for_each_other(images: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        api.pretrain(images / "train", out="run", deterministic=True, **SMALL)
        assert not torch.is_grad_enabled()
    assert torch.rand(3).equal(expected)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) is handler
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(api.pretrain, images / "train", out=f"run{number}", **SMALL) for number in range(2)]
    assert same_weights(*(call.result().run for call in calls))
    assert not runs._held


def test_ctrl_c_ends_a_training_that_can_be_resumed(images: Path) -> None:
    endless = {**SMALL, "steps": 100_000}

    def interrupt() -> None:
        while not Path("run/metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match=r"nothing is lost\. Resume with: selfie pretrain --resume run"):
        api.pretrain(images / "train", out="run", **endless)
    thread.join()
    assert not runs._held
    assert list(Path("run/state").iterdir())
    with pytest.raises(api.SelfieError, match="--steps cannot change"):
        api.pretrain(resume="run", steps=5, quiet=True)


@pytest.mark.parametrize("kind", ["bundled", "pretrained", "finetuned"])
def test_loaded_networks_give_what_embed_and_predict_do_and_train(
    kind: str, images: Path, request: pytest.FixtureRequest
) -> None:
    run = kind if kind == "bundled" else request.getfixturevalue(kind)
    files = sorted((images / "test").rglob("*.png"))[:6]
    module, transform = api.load(run)
    assert not module.training
    found = module(torch.stack([pickle.loads(pickle.dumps(transform))(Image.open(file)) for file in files]))
    if kind == "finetuned":  # logits
        shown = [row["probability"] for row in api.predict(run, files, precision="fp32", quiet=True).rows]
        np.testing.assert_allclose(found.softmax(1).max(1).values.detach(), shown, atol=1e-4)
    else:
        vectors = api.embed(files, from_=run, precision="fp32", quiet=True).vectors
        np.testing.assert_allclose(found.detach(), vectors, atol=2e-5)
    found.square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
