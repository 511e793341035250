"""What a command does not import, it does not wait for."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from running import ENVIRONMENT

HEAVY = ("torch", "torchvision", "numpy", "PIL", "safetensors")
# Needed to compile, or by torchvision, and as slow to import as torch itself.
NOT_TO_EMBED = (
    "torchvision",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "pandas",
    "matplotlib",
    "scipy",
    "sklearn",
    "jinja2",
)


def loaded(arguments: list[str], names: tuple[str, ...], **environment: str) -> tuple[list[str], str]:
    """Which of the modules `names` a command has imported when it ends, and what it printed."""
    program = (
        "import sys\n"
        "from selfie_cli.cli.app import main\n"
        f"sys.argv = ['selfie', *{arguments}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('\\nloaded:', *sorted(set({names}) & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=True
    )
    shown, _, last = done.stdout.rpartition("\nloaded:")
    return last.split(), shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_imports_nothing_heavy(shell: str) -> None:
    words = {"_TYPER_COMPLETE_ARGS": "selfie emb", "COMP_WORDS": "selfie emb", "COMP_CWORD": "1"}
    asked = {"_SELFIE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found, shown = loaded([], HEAVY, **words, **asked)
    assert found == []
    assert "embed" in shown


def test_embedding_imports_no_more_than_torch(tmp_path: Path) -> None:
    """With our own kind of network, that is; torchvision's own comes from there."""
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    found, shown = loaded(["embed", str(tmp_path / "photo.png"), "--from", "bundled"], NOT_TO_EMBED)
    assert found == []
    assert shown.startswith('{"path": ')
