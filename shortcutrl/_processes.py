"""Worker processes: those that generate data and those that hold environments."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager

# Forking a process in which JAX runs threads can deadlock.
SPAWN = multiprocessing.get_context("spawn")


def cores() -> int:
    """The number of cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_main_guard() -> None:
    """Refuse to start workers in a worker that still imports the caller's script. It would wait for its own parent."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            'The script that starts worker processes needs `if __name__ == "__main__":` around its calls, because each '
            "worker imports the script."
        )


@contextmanager
def interrupts_ignored():
    """Start workers in this context: they inherit it, so only the parent answers an interrupt."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set a handler
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
