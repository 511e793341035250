"""Who speaks when a process that decodes has died, and who does not."""

import os
import signal
import subprocess
import sys

import pytest
from commands import ENVIRONMENT

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there is a guard on Linux alone")
PREPARED = """
import os, signal, sys, threading
from selfie_cli.data import guard
from selfie_cli.data.guard import reading
with reading("done.jpg"):
    pass
"""


def ended(code: str, *, expected: int) -> str:
    """What a process that runs `code` writes to stderr."""
    argv = [sys.executable, "-c", PREPARED + code]
    ran = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert ran.returncode == expected, ran.stderr
    return ran.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_images_in_hand_are_named(number):
    code = f"""
inside, name = threading.Barrier(2), "a\\nb\\x1b[31m \\udcff\\N{{CAT FACE}}.jpg"
def hold():
    with reading("other.png"):
        inside.wait()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
inside.wait()
with reading(name):
    os.kill(os.getpid(), {int(number)})
"""
    lines = ended(code, expected=-number).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: selfie ended without a word (killed, out of memory, or a crash in a decoder)")
    names = lines[0].partition(" while it decoded ")[2].partition(": look at them with selfie doctor, ")[0]
    assert sorted(names.split(", ")) == [r"a\nb\x1b[31m \udcff" + "\N{CAT FACE}.jpg", "other.png"]


def test_a_name_may_be_long():
    code = "with reading('long' * 999): os.kill(os.getpid(), signal.SIGKILL)"
    assert " " + "long" * 255 + "lon: look" in ended(code, expected=-signal.SIGKILL)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("with reading('a.jpg'): sys.exit(3)", 3),
        ("with reading('a.jpg'): guard.dismiss(); os._exit(130)", 130),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),  # nothing was being decoded
        ("os.killpg(guard._guard.process.pid, signal.SIGKILL)", 0),  # the guard itself is killed
    ],
)
def test_otherwise_nothing_is_said(code, expected):
    assert ended(code, expected=expected) == ""


def test_the_guard_is_gone_when_we_are():
    print_guard = "os.write(1, str(guard._guard.process.pid).encode())"
    argv = [sys.executable, "-c", PREPARED + print_guard]
    ran = subprocess.run(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran.stdout), 0)


def test_more_threads_than_slots():
    code = """
from selfie_cli.data.guard import SLOTS
held = [reading(f"{number}.jpg") for number in range(SLOTS + 3)]
for each in held:
    each.__exit__(None, None, None)
with reading("after.jpg"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert " while it decoded after.jpg: " in ended(code, expected=-signal.SIGKILL)
