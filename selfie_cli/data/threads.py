"""Threads that decode beside those that compute, and leave the cores to them."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from selfie_cli.errors import UsageError


def thread_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """`num_threads` running threads whose torch operations stay inside them.

    Otherwise each would start a team of its own, one thread a core, as the main thread has: teams that share cores
    wait for each other, and run many times slower than one thread. `torch.set_num_threads` sets the team of the thread
    that calls it, and also the size that other threads take over at their first operation. So all threads are started
    here, each takes over first and then sets its own, and the caller's is set again when they have.

    Raises UsageError where the system does not let so many be started.
    """
    team = torch.get_num_threads()
    all_set = threading.Barrier(num_threads + 1)

    def set_up() -> None:
        torch.get_num_threads()  # takes over what is set, which would otherwise happen later
        torch.set_num_threads(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            all_set.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=set_up)
    try:
        for _ in range(num_threads):  # none is idle before all have been started: a thread for each
            pool.submit(int)
        all_set.wait()
    except BaseException as error:  # the system has no more threads, or Ctrl-C: those that wait would wait for ever
        all_set.abort()
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, RuntimeError):
            limit = "choose fewer --workers, or allow more (ulimit -u, a container's pids limit)"
            raise UsageError(f"{num_threads} threads cannot be started here: {limit}") from None
        raise
    finally:
        torch.set_num_threads(team)
    return pool
