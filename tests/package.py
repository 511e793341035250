"""What goes to users, looked at before it goes: python tests/package.py DIST [VERSION]

DIST holds an sdist and a wheel, made by `python -m build` of this checkout. What is in git has to be in them and
nothing else; metadata and requirements have to be those of pyproject.toml. Exits 1 with what is wrong.
"""

import argparse
import email
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_SDIST = (".ci/", ".github/")
WHEEL_ALONE = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
# MB. What is measured goes into docs/results/ a few kilobytes at a time; nobody should notice first on PyPI.
LARGEST_SDIST, LARGEST_WHEEL = 4.0, 3.0
LARGEST_FILE = 0.25
LARGER = {"selfie_cli/bundled/model.safetensors": 2.0, r"tests/golden/format-\d+/.*\.safetensors": 1.1}


def in_git() -> set[str]:
    """Files of this checkout, new ones included, ignored ones not."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    return {os.fsdecode(name) for name in names if name and (ROOT / os.fsdecode(name)).is_file()}


def read_sdist(file: Path) -> dict[str, bytes]:
    top = file.name.removesuffix(".tar.gz") + "/"
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if not member.isreg() or not member.name.startswith(top):
                raise SystemExit(f"{file.name}: {member.name} is no plain file below {top}")
            if member.uname or member.gname or member.uid or member.gid:
                raise SystemExit(f"{file.name}: {member.name} tells who built it")
            found[member.name.removeprefix(top)] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found


def read_wheel(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def wrong_files(kind: str, found: dict[str, bytes], expected: set[str]) -> list[str]:
    wrong = [f"{kind} lacks {name}" for name in sorted(expected - found.keys())]
    wrong += [f"{kind} holds {name}" for name in sorted(found.keys() - expected)]
    places = [f"{place}/".encode() for place in (ROOT, Path.home())]
    for name, data in sorted(found.items()):
        most = next((most for larger, most in LARGER.items() if re.fullmatch(larger, name)), LARGEST_FILE)
        if len(data) > most * 1e6:
            wrong.append(f"{kind}: {name} has {len(data) / 1e6:.2f} MB, more than {most}")
        wrong += [f"{kind}: {name} holds the path {place.decode()}" for place in places if place in data]
    return wrong


def requirements(project: dict[str, object], extra: str | None) -> set[str]:
    """Of pyproject.toml; what they ask for in place of extras of its own."""
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    found = set()
    for each in optional[extra] if extra else project["dependencies"]:  # type: ignore[attr-defined]
        own = re.fullmatch(rf"{project['name']}\[(.*)\]", each)
        found |= {one for name in own[1].split(",") for one in requirements(project, name)} if own else {each}
    return found


def wrong_metadata(metadata: Message, version: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {*requirements(project, None)}
    for extra in project["optional-dependencies"]:
        needed |= {f"{each}; extra == '{extra}'" for each in requirements(project, extra)}
    expected = {
        "Name": {project["name"]},
        "Version": {version},
        "Summary": {project["description"]},
        "License-Expression": {project["license"]},
        "License-File": {"LICENSE"},
        "Requires-Python": {project["requires-python"]},
        "Classifier": {*project["classifiers"]},
        "Provides-Extra": {*project["optional-dependencies"]},
        "Requires-Dist": needed,
        "Description-Content-Type": {"text/markdown"},
    }
    wrong = []
    for field, values in expected.items():
        if values != (found := {*metadata.get_all(field, [])}):
            wrong.append(f"metadata: {field} {sorted(found ^ values)} is not as in pyproject.toml, or too much")
    # On PyPI there is nothing beside the description that a relative address could lead to.
    relative = re.findall(r"\]\((?!https://|#)([^)]+)\)", str(metadata.get_payload()))
    return wrong + [f"metadata: the description leads to {each}, which is nowhere" for each in sorted({*relative})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("version", nargs="?", help="That of the tag, which the package has to have.")
    arguments = parser.parse_args()
    files = sorted(arguments.dist.iterdir())
    if [file.name.endswith(".tar.gz") or file.suffix == ".whl" for file in files] != [True, True]:
        raise SystemExit(f"{arguments.dist} holds {[file.name for file in files]}: an sdist and a wheel are expected")
    wheel, sdist = sorted(files, key=lambda file: file.suffix != ".whl")
    in_wheel, in_sdist = read_wheel(wheel), read_sdist(sdist)

    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "selfie_cli/__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    known = in_git()
    about = f"selfie_cli-{version[1]}.dist-info/"
    package = {name for name in known if name.startswith("selfie_cli/")}
    source = {name for name in known if not name.startswith(NOT_IN_SDIST)}
    wrong = wrong_files("wheel", in_wheel, package | {about + name for name in WHEEL_ALONE})
    wrong += wrong_files("sdist", in_sdist, source | {"PKG-INFO"})
    for file, most in ((sdist, LARGEST_SDIST), (wheel, LARGEST_WHEEL)):
        size = file.stat().st_size / 1e6
        print(f"{file.name}: {len(in_wheel if file == wheel else in_sdist)} files, {size:.1f} MB")
        if size > most:
            wrong.append(f"{file.name} has more than {most} MB")
    for name in sorted(package & in_wheel.keys()):
        if in_wheel[name] != (ROOT / name).read_bytes():
            wrong.append(f"wheel: {name} is another than here")
    metadata = in_wheel.get(about + "METADATA", b"")
    if metadata != in_sdist.get("PKG-INFO"):
        wrong.append("the metadata of sdist and wheel differ")
    if in_wheel.get(about + "entry_points.txt") != b"[console_scripts]\nselfie = selfie_cli.__main__:main\n":
        wrong.append("the wheel does not give the command selfie, or gives more")
    wrong += wrong_metadata(email.message_from_bytes(metadata), version[1])
    if arguments.version not in (None, version[1]):
        wrong.append(f"the tag says {arguments.version}, the package {version[1]}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
