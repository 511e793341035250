import subprocess
import sys

PROGRAM = """
import os, threading, torch
from selfie_cli.data.threads import thread_pool
from selfie_cli.errors import UsageError

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
pool.shutdown()
thread = threading.Thread(target=lambda: print(torch.get_num_threads(), flush=True))
thread.start()
thread.join()

start, started = threading.Thread.start, []

def limited(thread):
    if len(started) == 2:
        raise RuntimeError("can't start new thread")
    started.append(thread)
    start(thread)

threading.Thread.start = limited
try:
    thread_pool(4, "test")
except UsageError as error:
    alive = any(thread.is_alive() for thread in started)
    print("fewer --workers" in str(error), len(started), alive, torch.get_num_threads())
"""


def test_torch_starts_no_threads_in_the_pool_and_one_that_cannot_be_started_leaves_none_waiting():
    """And outside of the pool torch has as many threads as before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\nTrue 2 False 3\n", "")
