"""The text that people see on stderr and stdout."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table
from running import COMMAND, ENVIRONMENT, error_of, process

from selfie_cli.cli import console as module
from selfie_cli.cli.console import Console
from selfie_cli.talk import printable

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("red\x1b[31m", "red\\x1b[31m"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("half\udcff", "half\\udcff"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        *((name, name) for name in ("a photo of 木 😀.jpg", "[/x] :smile:", "word " * 60)),
    ],
)
def test_names_are_shown_as_they_are_without_control_characters(name: str, shown: str, capsys: Captured) -> None:
    assert printable(name) == shown
    console = Console(quiet=False)
    for tell in (console.say, console.warn, console.error, console.show):
        tell(name)
    captured = capsys.readouterr()
    assert captured.err == f"{shown}\nwarning: {shown}\nerror: {shown}\n"
    assert captured.out == f"{shown}\n"


def test_tables_are_text_json_is_one_document_without_nan_and_quiet_leaves_warnings(capsys: Captured) -> None:
    console, table = Console(quiet=False), Table("[b]c", title="[red]t")
    table.add_row("[/x] :smile:")
    console.show(table)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[red]t", "[b]c", "[/x] :smile:"))
    console.json({"a": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        console.json({"a": float("nan")})
    console = Console(quiet=True)
    for tell in (console.say, console.warn, console.error):
        tell("something")
    with console.track("work", 10) as advance:
        advance(10, "note")
    assert capsys.readouterr().err == "warning: something\nerror: something\n"


def test_progress_without_a_terminal_is_lines_with_the_time_left(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console(quiet=False).track("short work", 2) as advance:
        advance(1, "")
        advance(2, "")
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Console(quiet=False).track("work", 1000) as advance:
        for done in range(10, 1001, 10):
            clock[0] += 1.0
            advance(done, "loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7  # every 15 s of 100 s, and the end
    assert re.fullmatch(r"work: 150 of 1,000, 0:01:25 left, loss 1.5", lines[0])
    assert all(re.search(r", \d+:\d\d:\d\d left, ", line) for line in lines[:-1])
    assert lines[-1] == "work: 1,000 of 1,000, loss 1.5"


EMBED = ("embed", "a.png", "--from", "bundled", "--quiet")


@pytest.mark.parametrize(
    ("full", "words", "code"), [("stdout", EMBED, 1), ("stdout", ("--help",), 1), ("stderr", EMBED[:-1], 0)]
)
def test_a_full_disk_under_results_is_one_line_and_under_the_log_stops_nothing(
    full: str, words: tuple[str, ...], code: int
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    Image.new("RGB", (32, 32)).save("a.png")
    with open("/dev/full", "w") as disk:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: disk}
        done = subprocess.run([*COMMAND, *words], env=ENVIRONMENT, text=True, check=False, **streams)
    said = done.stderr if full == "stdout" else done.stdout
    assert (done.returncode, said.count("\n")) == (code, 1)
    assert said.startswith("error: standard output: No space left on device" if full == "stdout" else '{"path"')


def test_a_locale_without_our_characters_shows_them_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with such names are read there all the same."""
    Path("é").mkdir()
    Image.new("RGB", (40, 30)).save("é/木.png")
    Path("list.txt").write_text("é/木.png\n", encoding="utf-8")
    monkeypatch.delitem(ENVIRONMENT, "PYTHONIOENCODING", raising=False)
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    done = process("embed", "list.txt", "--from", "bundled")
    assert json.loads(done.stdout)["path"].endswith(".png"), done.stderr
    assert b"\\u2026" in process("finetune", "--help").stdout


NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to ...",
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
)


@pytest.mark.parametrize("error", [MemoryError(), *map(RuntimeError, NO_MEMORY)], ids=str)
def test_without_memory_one_line_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("selfie_cli.commands.embed.embed", fails)
    assert error_of("embed", "a.png").startswith("out of memory: choose a smaller --batch-size")


def test_without_memory_to_load_torch_one_line_says_so() -> None:
    argv = ["sh", "-c", 'ulimit -v 262144 && exec "$@"', "sh", *COMMAND, "embed", "a.png"]  # in kB
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: out of memory: ")
