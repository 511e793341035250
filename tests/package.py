"""Check the sdist and the wheel before a release: python tests/package.py DIST [VERSION]

DIST holds both, made by `python -m build` of this checkout. They must hold exactly the files in git, small ones, and
no paths of this machine. Exit 1 with a list of what is wrong.
"""

import argparse
import email
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_SDIST = (".ci/", ".github/")
WHEEL_ALONE = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
# In MB. Measurements add to docs/results/ a few kilobytes at a time, which would go unnoticed until PyPI.
LARGEST_SDIST, LARGEST_WHEEL, LARGEST_FILE = 4.0, 3.0, 0.25
LARGER = {"selfie_cli/bundled/model.safetensors": 2.0, r"tests/golden/format-\d+/.*\.safetensors": 1.1}


def in_git() -> set[str]:
    """Return the files of this checkout, including new ones, without ignored ones."""
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


def wrong_files(file: Path, most_of_all: float, found: dict[str, bytes], expected: set[str]) -> list[str]:
    size = file.stat().st_size / 1e6
    print(f"{file.name}: {len(found)} files, {size:.1f} MB")
    wrong = [f"{file.name} has more than {most_of_all} MB"] if size > most_of_all else []
    wrong += [f"{file.name} lacks {name}" for name in sorted(expected - found.keys())]
    wrong += [f"{file.name} holds {name}" for name in sorted(found.keys() - expected)]
    places = [f"{place}/".encode() for place in (ROOT, Path.home())]
    for name, data in sorted(found.items()):
        most = next((most for larger, most in LARGER.items() if re.fullmatch(larger, name)), LARGEST_FILE)
        if len(data) > most * 1e6:
            wrong.append(f"{file.name}: {name} has {len(data) / 1e6:.2f} MB, more than {most}")
        wrong += [f"{file.name}: {name} holds the path {place.decode()}" for place in places if place in data]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("version", nargs="?", help="The version in the tag, which the package must have.")
    arguments = parser.parse_args()
    files = sorted(arguments.dist.iterdir())
    if [file.name.endswith(".tar.gz") or file.suffix == ".whl" for file in files] != [True, True]:
        raise SystemExit(f"{arguments.dist} holds {[file.name for file in files]}: an sdist and a wheel are expected")
    wheel, sdist = sorted(files, key=lambda file: file.suffix != ".whl")
    in_sdist = read_sdist(sdist)
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}

    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "selfie_cli/__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    known = in_git()
    about = f"selfie_cli-{version[1]}.dist-info/"
    package = {name for name in known if name.startswith("selfie_cli/")}
    source = {name for name in known if not name.startswith(NOT_IN_SDIST)}
    wrong = wrong_files(wheel, LARGEST_WHEEL, in_wheel, package | {about + name for name in WHEEL_ALONE})
    wrong += wrong_files(sdist, LARGEST_SDIST, in_sdist, source | {"PKG-INFO"})
    others = [name for name in sorted(package & in_wheel.keys()) if in_wheel[name] != (ROOT / name).read_bytes()]
    wrong += [f"{wheel.name}: {name} is another than here" for name in others]
    metadata = in_wheel.get(about + "METADATA", b"")
    if metadata != in_sdist.get("PKG-INFO"):
        wrong.append("the metadata of sdist and wheel differ")
    if in_wheel.get(about + "entry_points.txt") != b"[console_scripts]\nselfie = selfie_cli.__main__:main\n":
        wrong.append("the wheel does not give the command selfie, or gives more")
    links = re.findall(r"\]\((?!https://|#)([^)]+)\)", str(email.message_from_bytes(metadata).get_payload()))
    wrong += [f"metadata: the description links to {each}, which is not on PyPI" for each in sorted({*links})]
    if f"-{version[1]}" not in wheel.name or f"-{version[1]}" not in sdist.name:
        wrong.append(f"the files are not of version {version[1]}")
    if arguments.version not in (None, version[1]):
        wrong.append(f"the tag says {arguments.version}, the package {version[1]}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
