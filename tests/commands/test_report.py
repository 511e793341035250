"""selfie report, end to end: what a run's page says is what the run's files say, and it is made when a run ends."""

import html
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from listening import Listener
from running import SMALL, change, config_of, document, draw_folder, error_of, lines_of, read, selfie

from selfie_cli import runs
from selfie_cli.commands import report
from selfie_cli.config import FinetuneOptions

WITH_PAGE = (*SMALL, "--report")


def source_of(run: Path | str) -> str:
    """The page in a run's folder."""
    return Path(run, "report.html").read_text("utf-8")


def text_of(run: Path | str) -> str:
    """What a reader reads on it, without styles, scripts and tags."""
    body = re.sub(r"(?s)<(script|style).*?</\1>", "", source_of(run))
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def sections(run: Path | str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', source_of(run))


def copy(run: Path, name: str = "run") -> Path:
    """Without what other tests may have added to it."""
    return Path(shutil.copytree(run, name, ignore=shutil.ignore_patterns("report.html", "eval-*")))


def test_pretraining_by_the_paper(images: Path) -> None:
    """Written at the end, on images of the test part, with the task that was trained."""
    paper = ("--recipe", "paper", "--steps", 20, "--warmup-steps", 2, "--save-every", 0)
    assert "page: r/report.html" in selfie("pretrain", images, *WITH_PAGE, *paper, "--out", "r").stderr
    assert Path("r/report.html").stat().st_size < 5 * 2**20
    assert sections("r") == ["training", "picks", "neighbours", "map", "details"]
    text, source = text_of("r"), source_of("r")
    last = lines_of("r/metrics.jsonl")[-1]
    for told in (
        f"picks the right patch {last['pretext_accuracy'] * 100:.1f} % of the time",
        f"a guess is right {last['chance'] * 100:.1f} %",
        f"{last['loss']:.3g} at step 20",
        *("Held-out images of images", "The test part is the folder test/", "4 of 16 patches are hidden"),
        "30 images, like ones",  # all of the test part
        config_of("r")["data"]["fingerprint"],
    ):
        assert told in text
    assert source.count("<title>row ") == 8 * 4
    loaded = re.findall(r"(?:src|href)=\"([^\"#][^\"]{0,20})", source)
    assert loaded
    assert all(each.startswith("data:") for each in loaded)


@pytest.mark.parametrize("method", ["selfie", "byol"])
def test_methods_on_views_show_which_views_they_take_for_the_same_image(images: Path, method: str) -> None:
    selfie("pretrain", images, *WITH_PAGE, "--method", method, "--steps", 2, "--out", "run")
    assert "picks" in sections("run")
    text = text_of("run")
    assert "a guess is right 3.3 % of the time" in text  # of 30 images
    assert text.count("from this view") == len(re.findall(r"another view -?\d\.\d\d, place \d", text)) == 8
    assert text.count("✓ picked") + text.count("✗ picked") == 8
    assert ("BYOL has no task that can be right or wrong" in text) == (method == "byol")
    with Path("run/metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "of_tomorrow": step / 100}) + "\n" for step in (3, 4))
    selfie("report", "run")
    assert "Of tomorrow 0.04 at step 4" in text_of("run")


def test_finetuned_runs_show_what_was_found(finetuned: Path) -> None:
    """The page that finetune wrote; its own network is judged on the whole test part."""
    found, text = read(finetuned / "results.json"), text_of(finetuned)
    assert found["sentence"] in text
    assert " to ".join(f"{each * 100:+.1f}" for each in found["gain_interval"]) in text
    for arm in found["arms"]:
        assert f"{arm['name']} {arm['mean'] * 100:.1f} ± {arm['std'] * 100:.1f} " in text
    first = found["arms"][-1]["accuracies"][0]
    assert f"on all test images, 30: {first * 100:.1f} % are right" in text
    cells = re.findall(r'title="(.*?) taken for (.*?): (\d+)"', source_of(finetuned))
    assert sum(int(count) for _, _, count in cells) == 30
    assert sum(int(count) for true, taken, count in cells if true == taken) == round(30 * first)
    sure = [float(each) for each in re.findall(r"([\d.]+) % sure; labelled", text)]
    assert sure == sorted(sure, reverse=True)
    assert len(sure) == min(12, 30 - round(30 * first))

    run = copy(finetuned)
    results = read(run / "results.json") | {"warnings": ["not converged: selfie still gained +1.8 points"]}
    (run / "results.json").write_text(json.dumps(results))
    for cell, loss in (("supervised-f0.5-s4", 0.25), ("selfie-f0.5-s4", 0.125)):
        with (run / "cells" / cell / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 16, "loss": loss}) + "\n")
    selfie("report", run)
    assert sections(run) == ["results", "classes", "mistakes", "neighbours", "map", "training", "details"]
    assert "supervised 0.25, selfie 0.125 at step 16" in text_of(run)
    assert "not converged: selfie still gained +1.8 points" in text_of(run)


def test_curves_are_drawn_and_said(images: Path, pretrained: Path) -> None:
    asked = ("--fractions", "0.5,1", "--seeds", "3,1", "--steps", 2, "--batch-size", 8, "--lr", 0.03)
    result = selfie("curve", "--dataset", images, "--from", pretrained, *asked, "--no-check-length", "--out", "run")
    for words in ("50 %", "100 %", "Gain over supervised", "test accuracy in %: o mean", "Plots: run/curve.svg"):
        assert words in result.stdout
    assert "about" in result.stderr  # the estimate of the time
    plot = ElementTree.parse("run/curve.svg").getroot()
    assert plot.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([each for each in plot.iter() if each.tag.endswith("}circle")]) == 4  # two arms, two shares
    assert ".line circle" in "".join(plot.itertext())  # with its own style
    found, text = read("run/results.json"), text_of("run")
    assert "selfie: Selfie (patches of one image, Trinh et al. 2019)." in found["notes"]
    assert all(told in text for told in (*found["sentences"], *found["notes"]))
    for arm in (arm for point in found["points"] for arm in point["arms"]):
        assert f"{arm['mean'] * 100:.1f}" + (" ± " if arm["std"] is not None else "") in text
    assert {"results", "classes"} <= {*sections("run")}
    assert source_of("run").count("<polyline") >= 2


def test_evaluations_are_shown_and_runs_that_are_not_finished(pretrained: Path, images: Path) -> None:
    run = copy(pretrained)
    selfie("eval", run, "--dataset", images)
    judged = read(run / "eval-images.json")
    selfie("report", run)
    knn = (judged["trained"]["knn"], judged["untrained"]["knn"], judged["majority"])
    shown = " ".join(f"{each * 100:.1f}" for each in knn)
    assert f"kNN (k {judged['k']}, temperature 0.07) {shown}" in text_of(run)
    run, state = copy(pretrained, "early"), Path("early/state/00000010")
    change(run, progress={"status": "running"})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "loss": 1.5}\n{"step": 30, "lo')  # cut short by a kill
    state.mkdir(parents=True)
    (run / "model.safetensors").rename(state / "weights.safetensors")
    selfie("report", run)
    assert "Not finished: step 25 of 20" in text_of(run)
    assert "picks" in sections(run)
    shutil.rmtree(run / "state")
    selfie("report", run)
    assert sections(run) == ["training", "details"]


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_without_the_images_there_is_a_page(kind: str, images: Path, request: pytest.FixtureRequest) -> None:
    """Nor does a stranger's run choose files of this machine."""
    run = copy(request.getfixturevalue(kind))
    config = config_of(run)
    asked = config["asked"]
    change(run, asked={**asked, "data": ["moved"], "dataset": "moved"})
    result = document("report", run)
    assert (result["num_images"], result["bytes"]) == (0, (run / "report.html").stat().st_size)
    assert f"selfie report {run} --dataset FOLDER" in text_of(run)
    assert "map" not in sections(run)
    result = document("report", run, "--dataset", images, "--images", 9)
    assert result["num_images"] == (9 if kind == "pretrained" else 30)
    assert "9 images of 30" in text_of(run)

    elsewhere = {"data": config["data"] | {"pinned": {"cifar10": str(images)}}, "from": [{"path": None, "sha256": ""}]}
    for changed in ({"asked": asked}, {"asked": asked | {"data": ["cifar10"], "dataset": "cifar10"}, **elsewhere}):
        change(run, hub={"address": "hf://acme/net@" + 40 * "0"}, **changed)  # as pull writes it
        assert document("report", run)["num_images"] == 0
        assert "not known here" in text_of(run)
    assert document("report", run, "--dataset", images)["num_images"] == 30


def test_images_without_a_test_part_are_said_to_be_trained_on(images: Path, pretrained: Path) -> None:
    run = copy(pretrained)
    asked = config_of(run)["asked"]
    for data, labelled in (([str(images / "train")], True), ([str(images / "train"), str(images / "test")], False)):
        change(run, asked={**asked, "data": data})
        selfie("report", run)
        assert "images that the network was pretrained on" in text_of(run)
        assert ("have the same label" in text_of(run)) == labelled


def test_unreadable_images_are_listed_and_hide_no_others(pretrained: Path) -> None:
    """The last one that is drawn is looked at by itself."""
    draw_folder(Path("mine"), train=20, test=33)
    run, files = copy(pretrained), sorted(Path("mine/test").rglob("*.png"))
    lines = [json.dumps({"path": f"a/{n}.png", "reason": "empty file"}) for n in range(15)]
    (run / "bad_files.jsonl").write_text("\n".join(lines) + "\n")
    files[np.random.default_rng(0).permutation(33)[-1]].write_bytes(b"")
    assert document("report", run, "--dataset", "mine")["num_images"] == 32
    text = text_of(run)
    assert all(told in text for told in ("Unreadable images: 15", "a/9.png", "1 more could not be read"))
    assert "a/10.png" not in text
    assert {"picks", "map"} <= set(sections(run))
    for file in files[:3]:
        file.write_bytes(b"")
    assert "4 unreadable images, over 5.0% of all 33" in error_of("report", run, "--dataset", "mine", "--max-bad", 0.05)


def test_out_is_guarded_and_links_are_followed_if_the_user_has_named_them(pretrained: Path, images: Path) -> None:
    selfie("report", pretrained, "--out", "deep/page.html")
    before = Path("deep/page.html").stat().st_size
    assert "--overwrite" in error_of("report", pretrained, "--out", "deep/page.html", code=2)
    selfie("report", pretrained, "--out", "deep/page.html", "--overwrite", "--images", 5)
    assert Path("deep/page.html").stat().st_size < before
    selfie("report", "bundled", "--out", "bundled.html", "--dataset", images)
    assert '<section id="map">' in Path("bundled.html").read_text("utf-8")
    Path("runs").mkdir()
    assert "on the Hub" not in error_of("report", "runs/typo")
    # A run may be a stranger's, and a link in it lead anywhere.
    run, dear = copy(pretrained), Path("dear")
    dear.write_text("dear")
    for link in (run / "report.html", Path("page.html")):
        link.symlink_to(dear.resolve())
    selfie("report", run)
    assert dear.read_text() == "dear"
    selfie("report", run, "--out", "page.html", "--overwrite")
    assert Path("page.html").is_symlink()
    assert dear.read_text() != "dear"


def test_a_page_that_fails_leaves_the_run_good(images: Path) -> None:
    selfie("pretrain", images, *WITH_PAGE, "--steps", 4, "--save-every", 0, "--out", "run")
    Path("run/report.html").unlink()
    change("run", progress={"status": "running"})
    Path("run/report.html").mkdir()
    said = selfie("pretrain", "--resume", "run").stderr
    assert "its page could not be made" in said
    assert "selfie report run" in said
    assert config_of("run")["progress"]["status"] == "finished"
    assert Path("run/model.safetensors").is_file()


def test_a_stop_while_the_page_is_drawn_says_how_to_get_it(finetuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt(2)

    monkeypatch.setattr(report, "report", stopped)
    talk = Listener()
    with pytest.raises(KeyboardInterrupt):
        report.report_at_end(runs.open_run(finetuned), FinetuneOptions(), talk)
    assert talk.warned == [f"the run is finished, but not its page: selfie report {finetuned}"]
