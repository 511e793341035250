"""Thread pools that decode while other threads compute, and work on many images in chunks."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from selfie_cli.errors import UsageError
from selfie_cli.talk import Talk

CHUNK = 16
"""Images per task: enough to hide a task's cost, few enough to stop soon."""


def thread_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """Start `num_threads` threads whose torch operations start no threads of their own.

    Otherwise each would start one OpenMP thread per core, and they would wait for each other. `torch.set_num_threads`
    sets the number for the calling thread, and also the number that other threads take over at their first operation.
    So all threads are started here: each takes over first and then sets its own, and the caller's is set again.

    Raise UsageError if the system does not allow so many threads.
    """
    num_caller = torch.get_num_threads()
    all_set = threading.Barrier(num_threads + 1)

    def set_up() -> None:
        torch.get_num_threads()  # takes over the caller's number now, not later
        torch.set_num_threads(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            all_set.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=set_up)
    try:
        for _ in range(num_threads):  # each task starts a thread, as none is idle before all have been started
            pool.submit(int)
        all_set.wait()
    except BaseException as error:  # also Ctrl-C: threads at the barrier would wait for ever
        all_set.abort()
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, RuntimeError):
            limit = "choose fewer --workers, or allow more (ulimit -u, a container's pids limit)"
            raise UsageError(f"{num_threads} threads cannot be started here: {limit}") from None
        raise
    finally:
        torch.set_num_threads(num_caller)
    return pool


def in_chunks(
    count: int,
    work: Callable[[range, threading.Event], dict[int, str]],
    *,
    what: str,
    workers: int,
    talk: Talk,
    chunk: int = CHUNK,
    check: Callable[[dict[int, str]], None] = lambda bad: None,
) -> dict[int, str]:
    """Call `work` on each chunk of range(count) in `workers` threads. It returns the unreadable images, and why.

    Returns those of all chunks; `check` is called with those so far after each chunk, in order. `what` is the title of
    the progress bar. After an error or Ctrl-C, pending chunks are cancelled, and the event that is passed to `work`
    tells running ones to end.
    """
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    pool, stop = thread_pool(workers, what), threading.Event()
    bad: dict[int, str] = {}
    try:
        with talk.track(what, count) as advance:
            for each, found in zip(chunks, pool.map(lambda chunk: work(chunk, stop), chunks), strict=True):
                bad |= found
                check(bad)
                advance(each.stop, f"{len(bad)} unreadable" if bad else "")
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return bad
