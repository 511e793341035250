import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def test_lowest_versions_are_those_that_the_package_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [each for extra in project["optional-dependencies"].values() for each in extra]
    bounds = {each.replace(">=", "==") for each in [*project["dependencies"], *optional] if ">=" in each}
    ours, _, _ = (ROOT / "tests/lowest.txt").read_text().partition("\n# What these stand on")
    assert ours.splitlines()[1:] == sorted(bounds)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_run_pinned_actions_and_ask_for_little(workflow: Path) -> None:
    text = workflow.read_text()
    assert "secrets." not in text
    assert "pull_request_target" not in text
    for action in re.findall(r"uses: (.+)", text):
        assert re.fullmatch(r"\./\S+|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert re.search(r"^permissions:( \{\}|\n  contents: read)\n\n", text, re.MULTILINE)
    assert ": write" not in text.replace("id-token: write", "", 1 if workflow.name == "release.yml" else 0)
