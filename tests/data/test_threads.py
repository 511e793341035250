import subprocess
import sys

FAILING = """
import threading, torch
from selfie_cli.data.threads import thread_pool
from selfie_cli.errors import UsageError

start, started = threading.Thread.start, []

def limited(thread):
    if len(started) == 2:
        raise RuntimeError("can't start new thread")
    started.append(thread)
    start(thread)

threading.Thread.start = limited
torch.set_num_threads(3)
try:
    thread_pool(4, "test")
except UsageError as error:
    alive = any(thread.is_alive() for thread in started)
    print("fewer --workers" in str(error), len(started), alive, torch.get_num_threads())
"""

PARALLEL = """
import os, threading, torch
from selfie_cli.data.threads import thread_pool

def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

def work(_):
    pixels = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    pixels.index_select(0, torch.arange(64))
    values = pixels.float().flatten(1)
    values @ values.T
    torch.nn.functional.interpolate(pixels.permute(0, 3, 1, 2), (32, 32), mode="bicubic", antialias=True)
    return torch.get_num_threads()

torch.set_num_threads(3)
work(0)
pool = thread_pool(4, "test")
before = threads()
assert set(pool.map(work, range(40))) == {1}
assert threads() == before, "torch has started threads"
assert torch.get_num_threads() == 3
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start()
thread.join()
assert later == [3]
pool.shutdown()
"""


def test_torch_starts_no_threads_in_the_pool_and_does_elsewhere_as_before():
    done = subprocess.run([sys.executable, "-c", PARALLEL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_cannot_be_started_leaves_none_waiting():
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "True 2 False 3\n"
    assert done.stderr == ""
