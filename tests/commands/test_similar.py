"""selfie similar: what it finds is what comparing everything with everything finds, in every format."""

import hashlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, Repository
from PIL import Image
from running import error_of, selfie

from selfie_cli.inference.neighbours import Groups, Nearest, join_near, unit
from selfie_cli.inference.stream import Result
from selfie_cli.inference.vector_files import NETWORK, table_writer, writing
from selfie_cli.runs import bundled_folder

FORMATS = (".parquet", ".npy", ".jsonl")


def found(*arguments: object) -> dict:
    return json.loads(selfie("similar", *arguments, "--json").stdout)


def write(out: Path, vectors: np.ndarray, names: list[str] | None = None, hashes: list[bytes] | None = None) -> None:
    names = names or [f"{i}.jpg" for i in range(len(vectors))]
    hashes = hashes or [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names]
    about = {"network": dict.fromkeys(NETWORK, "0")}
    width = vectors.shape[1]
    with table_writer(out, width=width, about=about) if out.suffix == ".parquet" else writing(out) as put:
        for name, vector, digest in zip(names, vectors.astype(np.float32), hashes, strict=True):
            put(Result(name, vector, 4, 3, digest))


def test_nearest_are_those_of_all_products() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(500, 16)).astype(np.float32), rng.normal(size=(7, 16)).astype(np.float32)
    vectors[[3, 490]] = queries[0] * 1e20  # equal cosines, and squares that overflow
    nearest = Nearest(queries, 5)
    for start in (0, 3, 200):
        nearest.add(vectors[start : {0: 3, 3: 200, 200: 500}[start]])
    scaled = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines = scaled @ (queries / np.linalg.norm(queries, axis=1, keepdims=True)).T
    expected = np.argsort(-cosines.round(6), axis=0, kind="stable")[:5].T
    assert nearest.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(nearest.cosines, np.take_along_axis(cosines.T, expected, 1), atol=1e-6)
    few = Nearest(queries[:1], 9 * 10**18)
    few.add(vectors[:2])
    few.add(vectors[2:4])
    assert few.rows[0, 0] == 3
    assert sorted(few.rows[0]) == [0, 1, 2, 3]


def test_groups_are_connected_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search that walks from row to row."""
    monkeypatch.setattr("selfie_cli.inference.neighbours.BLOCK", 1000)
    rng = np.random.default_rng(1)
    vectors = unit(rng.normal(size=(300, 4)).astype(np.float32))
    near = vectors @ vectors.T >= 0.99
    left, expected = set(range(300)), []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            row = todo.pop()
            if row not in group:
                group.add(row)
                todo += np.flatnonzero(near[row]).tolist()
        left -= group
        expected += [sorted(group)] if len(group) > 1 else []
    assert max(map(len, expected)) > 2
    groups = Groups(300)
    join_near(groups, vectors, 0.99, lambda done: None)
    assert [group.tolist() for group in groups.found()] == sorted(expected, key=lambda group: (-len(group), group[0]))


@pytest.fixture(scope="module")
def embedded(pretrained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    for suffix in FORMATS:
        selfie("embed", images / "test", "--from", pretrained, "--out", folder / f"v{suffix}")
    selfie("embed", images / "test", "--from", pretrained, "--out", folder / "parts")
    return folder


def test_every_format_gives_one_answer(embedded: Path, pretrained: Path, images: Path) -> None:
    query = sorted((images / "test").rglob("*.png"))[3]
    answers = [
        found(query, "--in", embedded / name, "--top", 4, *(() if name in recorded else ("--from", pretrained)))
        for recorded in [("v.parquet", "parts")]
        for name in [*(f"v{suffix}" for suffix in FORMATS), "parts"]
    ]
    vectors = unit(np.load(embedded / "v.npy"))
    names = [json.loads(line)["path"] for line in (embedded / "v.npy.rows.jsonl").read_text().splitlines()]
    cosines = vectors @ vectors[names.index(str(query))]
    best = np.argsort(-cosines)[:4]
    for answer in answers:
        (one,) = answer["answers"]
        assert answer["num_vectors"] == 30
        assert one["query"] == one["matches"][0]["path"] == str(query)  # found like any other
        assert [match["path"] for match in one["matches"]] == [names[row] for row in best]
        assert [match["rank"] for match in one["matches"]] == [1, 2, 3, 4]
        np.testing.assert_allclose([match["cosine"] for match in one["matches"]], cosines[best], atol=1e-5)
    assert (
        "does not say which network"
        in selfie("similar", query, "--in", embedded / "v.npy", "--from", pretrained).stderr
    )
    shown = selfie("similar", query, "--in", embedded / "v.parquet", "--top", 100).stdout
    assert shown.count(".png") == 31


def test_only_the_network_that_made_the_file(embedded: Path, pretrained: Path, images: Path) -> None:
    query = next((images / "test").rglob("*.png"))
    shutil.copytree(pretrained, "moved")
    assert found(query, "--in", embedded / "v.parquet", "--from", "moved")["num_vectors"] == 30
    assert "made by other weights" in error_of(
        "similar", query, "--in", embedded / "v.parquet", "--from", "bundled", code=2
    )
    pq.write_table(
        (table := pq.read_table(embedded / "v.parquet")).replace_schema_metadata(
            {"selfie": table.schema.metadata[b"selfie"].replace(str(pretrained).encode(), b"/gone")}
        ),
        "gone.parquet",
    )
    assert "say where that is with --from" in error_of("similar", query, "--in", "gone.parquet")
    np.save("wide.npy", np.ones((1, 9), np.float32))
    Path("wide.npy.rows.jsonl").write_text('{"row": 0, "path": "a"}\n')
    assert "9 numbers" in error_of("similar", query, "--in", "wide.npy", "--from", pretrained, code=2)
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


def test_usage(embedded: Path) -> None:
    file = embedded / "v.npy"
    for wrong in (["--in", file], ["a.png"], ["a.png", "--duplicates", "--in", file]):
        error_of("similar", *wrong, code=2)
    assert "no file nowhere.npy" in error_of("similar", "a.png", "--in", "nowhere.npy")


def test_options_without_a_use_are_refused(embedded: Path) -> None:
    file = next(embedded.glob("*.parquet"))
    assert "--threshold" in error_of("similar", "x.png", "--in", file, "--threshold", 0.5, code=2)
    for more in (["--from", "bundled"], ["--precision", "fp32"]):
        assert "leave" in error_of("similar", "--duplicates", "--in", file, *more, code=2)


@pytest.mark.parametrize("suffix", FORMATS)
def test_groups_in_every_format(suffix: str) -> None:
    vectors = np.eye(8)[[0, 1, 2, 1, 0, 3, 1, 4]] + 1e-5
    vectors[4, 7] = 1  # the same contents as row 0, but far from it
    digests = [
        b"a" * 16,
        *(bytes([row]) * 16 for row in range(1, 4)),
        b"a" * 16,
        *(bytes([row]) * 16 for row in (5, 6, 7)),
    ]
    names = ["red\x1b[31m.jpg", *(f"{i}.jpg" for i in range(1, 8))]
    write(Path(f"v{suffix}"), vectors, names, digests)
    groups = found("--duplicates", "--in", f"v{suffix}")["groups"]
    assert [[member["path"] for member in group] for group in groups[:1]] == [["1.jpg", "3.jpg", "6.jpg"]]
    assert [member["cosine"] for member in groups[0]] == [1.0, 1.0, 1.0]
    if suffix == ".parquet":
        assert [(member["path"], member["copy"]) for member in groups[1]] == [(names[0], True), ("4.jpg", True)]
        assert groups[1][1]["cosine"] < 0.8
    assert len(groups) == 1 + (suffix == ".parquet")
    shown = selfie("similar", "--duplicates", "--in", f"v{suffix}", "--threshold", -0.9).stdout
    assert "8 of 8 images are in 1 groups" in shown
    assert "\x1b" not in shown
    assert "red\\x1b[31m.jpg" in shown


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_without_direction(suffix: str, value: float) -> None:
    vectors = np.ones((5, 3))
    vectors[3] = value
    if suffix == ".jsonl":
        lines = [json.dumps({"path": f"{row}.jpg", "vector": vector.tolist()}) for row, vector in enumerate(vectors)]
        Path("v.jsonl").write_text("\n".join(lines))
    else:
        write(Path(f"v{suffix}"), vectors)
    assert "the vector of 3.jpg (row 3)" in error_of("similar", "--duplicates", "--in", f"v{suffix}")


def test_damaged_and_foreign_files() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 64))
    for suffix in FORMATS:
        file = Path(f"v{suffix}")
        write(file, vectors)
        whole = file.read_bytes()
        for data in (b"", b"\xff" * 300, whole[: len(whole) // 2]):
            file.write_bytes(data)
            if data or suffix != ".jsonl":
                assert str(file) in error_of("similar", "--duplicates", "--in", file)
    pq.write_table(pa.table({"a": [1]}), "a.parquet")
    assert "no columns 'path' and 'vector'" in error_of("similar", "--duplicates", "--in", "a.parquet")
    pq.write_table(pa.table({"path": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}), "a.parquet")
    assert "differ in length" in error_of("similar", "--duplicates", "--in", "a.parquet")
    pq.write_table(pa.table({"path": ["a", "b"], "vector": [[1.0, 3.0], [1.0, 3.0]]}), "a.parquet")  # as DuckDB writes
    assert len(found("--duplicates", "--in", "a.parquet")["groups"][0]) == 2
    rows = pa.table(
        {"path": ["a", "b"], "content_hash": pa.array([None, None], pa.string()), "vector": [[1, 0], [0, 1]]}
    )
    pq.write_table(rows, "a.parquet")
    assert found("--duplicates", "--in", "a.parquet")["groups"] == []
    for key, value in {"from": 7, "features": None}.items():
        about = {"format": 1, "network": dict.fromkeys(NETWORK, "0") | {key: value}}
        pq.write_table(rows.replace_schema_metadata({"selfie": json.dumps(about)}), "a.parquet")
        assert "of the network that made it is damaged" in error_of("similar", "x.jpg", "--in", "a.parquet")
    Path("v.jsonl").write_text('{"path": "a", "vector": [1, 2]}\n{"path": "b", "vector": [1]}\n')
    assert "line 2: 1 numbers, not 2" in error_of("similar", "--duplicates", "--in", "v.jsonl")
    for name in ("v.csv", "v.safetensors", "v.arrow"):
        Path(name).touch()
        assert "vectors are read from .parquet, .npy, .jsonl" in error_of("similar", "--duplicates", "--in", name)


def test_planted_copies_are_found(images: Path) -> None:
    """Re-encoded and mirrored ones, with the bundled network, and nothing else at the default threshold."""
    picked = sorted((images / "train").rglob("*.png"))[:10]
    for number, file in enumerate(picked):
        shutil.copy(file, f"{number}.png")
    Image.open("3.png").convert("RGB").save("3-again.webp", lossless=True)
    Image.open("5.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("5-mirrored.png")
    shutil.copy("7.png", "copy-of-7.png")
    selfie("embed", ".", "--from", "bundled", "--precision", "fp32", "--out", "v.parquet")
    groups = found("--duplicates", "--in", "v.parquet", "--threshold", 0.99)["groups"]
    as_sets = [{Path(member["path"]).name for member in group} for group in groups]
    for pair in ({"3.png", "3-again.webp"}, {"5.png", "5-mirrored.png"}, {"7.png", "copy-of-7.png"}):
        assert any(pair <= group for group in as_sets)


@pytest.mark.slow
def test_the_page_on_vectors(images: Path) -> None:
    """Its code runs in order, on vectors that the commands on it make. Other libraries may warn, so not in here."""
    page = Path(__file__).parents[2] / "docs" / "guide" / "vectors.md"
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {"pandas", "polars", "duckdb", "faiss", "pyarrow"} <= set(
        re.findall(r"^import (\w+)", page.read_text(), re.M)
    )
    Path("photos").mkdir()
    for number, file in enumerate(sorted((images / "test").rglob("*.png"))):
        shutil.copy(file, f"photos/{number:04d}.png")
    for language, group in itertools.groupby(blocks, key=lambda block: block[0]):
        code = "\n".join(block[1] for block in group)
        if language == "python":
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "(30, 30)" in done.stdout  # rows and contents in the parts
            continue
        assert language == "sh"
        for line in filter(None, code.splitlines()):
            selfie(*shlex.split(line)[1:])
