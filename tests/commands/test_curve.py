"""selfie curve, end to end: every arm with the same budget and the same search, and what is said about it."""

import shutil
from pathlib import Path

import pytest
from running import SMALL, change, config_of, document, error_of, lines_of, read, rows, same_weights, selfie, stopped

from selfie_cli.commands.curve import seeds_of_fractions
from selfie_cli.errors import UsageError

SHORT = ("--steps", 2, "--batch-size", 8, "--precision", "fp32", "--no-report", "--no-check-length")


@pytest.fixture(scope="session")
def second(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another pretraining run of the same method."""
    run = tmp_path_factory.mktemp("runs") / "second"
    selfie("pretrain", images, *SMALL, "--steps", 2, "--seed", 1, "--out", run)
    return run


@pytest.fixture(scope="session")
def curved(images: Path, pretrained: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, two shares, three and two seeds."""
    run = tmp_path_factory.mktemp("runs") / "curve"
    selfie(
        *("curve", "--dataset", images, "--from", pretrained, "--from", second, "--fractions", "1,0.5"),
        *("--seeds", "2,3", "--seed", 4, *SHORT, "--lr", 0.03, "--out", run),
    )
    return run


ARMS = ("supervised", "pretrained", "second")
CELLS = {0.5: (4, 5, 6), 1.0: (4, 5)}


def test_files_and_results_that_agree_with_the_cells(curved: Path) -> None:
    cells = {f"{arm}-f{fraction:g}-s{seed}" for arm in ARMS for fraction, seeds in CELLS.items() for seed in seeds}
    assert {cell.name for cell in (curved / "cells").iterdir()} == cells
    for cell in cells:
        assert lines_of(curved / "cells" / cell / "metrics.jsonl")[-1]["step"] == 2  # the same budget for all
    assert [Path(source["path"]).name for source in config_of(curved)["from"]] == ["pretrained", "second"]
    assert same_weights(curved, curved / "cells" / "pretrained-f1-s4")
    for seed in CELLS[1.0]:
        assert [len(lines_of(curved / f"labels-f{fraction}-s{seed}.jsonl")) for fraction in ("0.5", "1")] == [30, 60]

    results = read(curved / "results.json")
    assert [point["fraction"] for point in results["points"]] == [0.5, 1.0]
    for point, (fraction, seeds) in zip(results["points"], CELLS.items(), strict=True):
        assert (point["seeds"], point["steps"]) == (list(seeds), 2)
        for arm, name in zip(point["arms"], ARMS, strict=True):
            cells = [read(curved / "cells" / f"{name}-f{fraction:g}-s{s}" / "results.json") for s in seeds]
            assert arm["name"] == name
            assert arm["accuracies"] == [cell["accuracy"] for cell in cells]
            assert {cell["num_test"] for cell in cells} == {30}
        assert [(each["arm"], each["baseline"]) for each in point["comparisons"]] == [
            (name, "supervised") for name in ARMS[1:]
        ]
        assert all((each["interval"] is None) == (len(seeds) < 3) for each in point["comparisons"])
    assert len(results["sentences"]) == 2
    assert all("at 50 %" in sentence and "at 100 %" in sentence for sentence in results["sentences"])


def test_none_alone_is_a_plain_label_curve(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfie_cli.commands.finetune.usual_batch_size", lambda image_size, num_labels: num_labels // 2)
    results = document(
        *("curve", "--dataset", images, "--from", "none", "--backbone", "resnetv2_18_w16", "--image-size", 8),
        *("--fractions", "0.5,1", "--seeds", 1, *SHORT[:2], *SHORT[4:], "--out", "r"),
    )
    assert (results, results["sentences"]) == (read("r/results.json"), [])
    for point in results["points"]:
        (arm,), cell = point["arms"], config_of(f"r/cells/supervised-f{point['fraction']:g}-s0")
        assert (arm["name"], cell["derived"]["batch_size"]) == ("supervised", point["num_labels"] // 2)
    photo = next((images / "test" / "cat").iterdir())
    assert rows("predict", "r", photo)[0]["path"] == str(photo)


def test_resume_repeats_nothing_and_ends_the_same(curved: Path) -> None:
    stopped(curved, "part")
    shutil.rmtree("part/cells/second-f1-s5")
    kept = {file: file.stat().st_mtime_ns for file in Path("part/cells").rglob("*") if file.is_file()}
    selfie("curve", "--resume", "part")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert read("part/results.json") | {"run": ""} == read(curved / "results.json") | {"run": ""}
    assert same_weights(Path("part/cells/second-f1-s5"), curved / "cells/second-f1-s5")
    assert same_weights(Path("part"), curved)


def test_what_cannot_be_resumed(curved: Path) -> None:
    assert f"is finished. To see its results: selfie report {curved}" in error_of("curve", "--resume", curved)
    stopped(curved, "part")
    assert "--fractions cannot change" in error_of("curve", "--resume", "part", "--fractions", "0.1", code=2)
    change("part", derived=config_of("part")["derived"] | {"steps_of_shares": [2]})
    assert "is damaged" in error_of("curve", "--resume", "part")


@pytest.mark.parametrize(
    ("fractions", "seeds", "wrong"),
    [
        *((fractions, "3", "--fractions") for fractions in ("", "0", "0.5,x", "0.5,1.5", "0.5,0.5", "nan")),
        *(("0.05,0.2,1", seeds, "--seeds") for seeds in ("0", "3,2", "x", "1001")),
    ],
)
def test_fractions_are_different_shares_and_seeds_are_one_or_one_each(fractions: str, seeds: str, wrong: str) -> None:
    assert seeds_of_fractions("1,0.1,0.2", "5,3,4") == {0.1: 3, 0.2: 4, 1.0: 5}
    with pytest.raises(UsageError, match=wrong):
        seeds_of_fractions(fractions, seeds)


def test_runs_of_other_sizes_cannot_be_compared(images: Path, pretrained: Path) -> None:
    selfie("pretrain", images, *SMALL, "--image-size", 64, "--steps", 1, "--out", "larger")
    arguments = ("curve", "--dataset", images, "--from", pretrained, "--from", "larger", "--out", "r")
    assert "image_size 64" in error_of(*arguments, code=2)
