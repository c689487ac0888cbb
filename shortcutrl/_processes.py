"""What worker processes need, those that make data and those that hold environments."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager

# Forking a process in which JAX runs threads can deadlock.
SPAWN = multiprocessing.get_context("spawn")


def cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def interrupts_ignored():
    """For starting workers, which inherit it: the parent answers an interrupt; tracebacks of workers help nobody."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
