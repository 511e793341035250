"""selfie similar: what it finds is what comparing everything with everything finds, in every format."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, Repository
from PIL import Image
from running import document, error_of, lines_of, selfie

from selfie_cli.inference.neighbours import unit
from selfie_cli.inference.stream import Result
from selfie_cli.inference.vector_files import NETWORK, vector_writer
from selfie_cli.runs import bundled_folder

FORMATS = ("v.npy", "v.jsonl", "v.parquet")
RECORDED = ("v.parquet", "parts")  # these name the network


def found(*arguments: object) -> Any:
    return document("similar", *arguments)


@pytest.fixture(scope="module")
def embedded(pretrained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    for name in (*FORMATS, "parts"):
        selfie("embed", images / "test", "--from", pretrained, "--out", folder / name)
    return folder


def test_every_format_gives_one_answer(embedded: Path, pretrained: Path, images: Path) -> None:
    query = sorted((images / "test").rglob("*.png"))[3]
    vectors = unit(np.load(embedded / "v.npy"))
    names = [row["path"] for row in lines_of(embedded / "v.npy.rows.jsonl")]
    cosines = vectors @ vectors[names.index(str(query))]
    best = np.argsort(-cosines)[:4]
    for name in (*FORMATS, "parts"):
        weights = [] if name in RECORDED else ["--from", pretrained]
        answer = found(query, "--in", embedded / name, "--top", 4, *weights)
        (one,) = answer["answers"]
        assert (answer["num_vectors"], one["query"], names[best[0]]) == (30, str(query), str(query))
        assert [(match["rank"], match["path"]) for match in one["matches"]] == [
            (rank, names[row]) for rank, row in enumerate(best, 1)
        ]
        np.testing.assert_allclose([match["cosine"] for match in one["matches"]], cosines[best], atol=1e-5)
    assert "does not name the network that made it" in error_of("similar", query, "--in", embedded / "v.npy", code=2)
    assert selfie("similar", query, "--in", embedded / "v.parquet", "--top", 100).stdout.count(".png") == 31
    (group,) = found("--duplicates", "--in", embedded / "v.npy", "--threshold", -0.9)["groups"]
    assert {member["copy"] for member in group} == {None}  # without hashes nothing is known


def test_only_the_network_that_made_the_file(embedded: Path, pretrained: Path, images: Path) -> None:
    query = next((images / "test").rglob("*.png"))
    recorded = ("similar", query, "--in", embedded / "v.parquet")
    shutil.copytree(pretrained, "moved")
    assert found(*recorded[1:], "--from", "moved")["num_vectors"] == 30
    assert "made by other weights" in error_of(*recorded, "--from", "bundled", code=2)
    table = pq.read_table(embedded / "v.parquet")
    about = table.schema.metadata[b"selfie"].replace(str(pretrained).encode(), b"/gone")
    pq.write_table(table.replace_schema_metadata({"selfie": about}), "gone.parquet")
    assert "say where that is with --from" in error_of("similar", query, "--in", "gone.parquet")
    np.save("wide.npy", np.ones((1, 9), np.float32))
    Path("wide.npy.rows.jsonl").write_text('{"row": 0, "path": "a"}\n')
    assert "9 values" in error_of("similar", query, "--in", "wide.npy", "--from", pretrained, code=2)
    Path("bad.jpg").write_bytes(b"no image")
    assert "bad.jpg" in error_of("similar", "bad.jpg", "--in", embedded / "v.parquet")


def test_what_a_file_names_is_not_fetched(images: Path, hub: Hub) -> None:
    """It may come from a stranger; what the user names is."""
    photo = next((images / "test").rglob("*.png"))
    hub.repositories["acme/net"] = Repository()
    there = {name: ((bundled_folder() / name).read_bytes(), True) for name in ("config.json", "model.safetensors")}
    address = f"hf://acme/net@{hub.repositories['acme/net'].commit('main', there)}"
    selfie("embed", images / "test", "--from", address, "--out", "v.parquet")
    shutil.rmtree("hf")  # the cache
    hub.requests.clear()
    assert f"give --from {address} to fetch it" in error_of("similar", photo, "--in", "v.parquet")
    assert not hub.requests
    assert found(photo, "--in", "v.parquet", "--from", address)["answers"][0]["matches"][0]["path"] == str(photo)


def test_groups_by_cosine_or_equal_contents() -> None:
    vectors = (np.eye(8)[[0, 1, 2, 1, 0, 3, 1, 4]] + 1e-5).astype(np.float32)
    vectors[4, 7] = 1  # the same contents as row 0, but far from it
    hashes = [bytes([row % 4]) * 16 if row in (0, 4) else bytes([row + 9]) * 16 for row in range(8)]
    names = [f"{i}.jpg" for i in range(8)]
    for file in FORMATS:
        with vector_writer(Path(file), width=8, network=dict.fromkeys(NETWORK, "0")) as write:
            for name, vector, content_hash in zip(names, vectors, hashes, strict=True):
                write(Result(name, vector, 4, 3, content_hash))
        groups = found("--duplicates", "--in", file)["groups"]
        assert [(member["path"], member["cosine"]) for member in groups[0]] == [(f"{i}.jpg", 1.0) for i in (1, 3, 6)]
        if file != "v.parquet":  # only tables hold hashes
            assert len(groups) == 1
            continue
        assert [(member["path"], member["copy"]) for member in groups[1]] == [(names[0], True), ("4.jpg", True)]
        assert groups[1][1]["cosine"] < 0.8
    shown = selfie("similar", "--duplicates", "--in", file, "--threshold", -0.9).stdout
    assert "8 of 8 images are in 1 group:" in shown


def test_planted_copies_are_found(images: Path) -> None:
    """Re-encoded and mirrored ones, with the bundled network, and nothing else at the default threshold."""
    for number, file in enumerate(sorted((images / "train").rglob("*.png"))[:10]):
        shutil.copy(file, f"{number}.png")
    Image.open("3.png").convert("RGB").save("3-again.webp", lossless=True)
    Image.open("5.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("5-mirrored.png")
    shutil.copy("7.png", "copy-of-7.png")
    selfie("embed", ".", "--from", "bundled", "--precision", "fp32", "--out", "v.parquet")
    groups = found("--duplicates", "--in", "v.parquet", "--threshold", 0.99)["groups"]
    as_sets = [{Path(member["path"]).name for member in group} for group in groups]
    for pair in ({"3.png", "3-again.webp"}, {"5.png", "5-mirrored.png"}, {"7.png", "copy-of-7.png"}):
        assert any(pair <= group for group in as_sets)
