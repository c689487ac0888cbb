"""Memory that the C library keeps for the next update."""

import ctypes
import sys

# The options of `mallopt`, from glibc's malloc.h, and their values.
OPTIONS = {-4: 0, -1: 2**30 - 1, -8: 1}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, so that a loop of updates on a CPU is as fast as a scan.

    After each call of a compiled update, glibc returns the memory of large networks to the system, and requests it
    again page by page. Call this function before the first call of JAX. Do not call it where other processes need the
    memory, because this process then keeps up to 1 GiB more than it needs.

    **Returns:** whether it had an effect. It has none without glibc, and none on systems other than Linux.

    !!! Example

        ```python
        import sys
        from shortcutrl import keep_memory

        kept = keep_memory()
        assert not kept or sys.platform == "linux"
        ```
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, value) for option, value in OPTIONS.items())
