"""Keep freed memory for the next batch: what a step of training frees, the next one asks for again."""

import ctypes
import os
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_FROM_BYTES, _TRIM_FROM_BYTES = 2**30, 2**31 - 1
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks below 1 GiB instead of giving them back to the kernel.

    By default glibc maps each block of more than 32 MiB afresh and unmaps it when it is freed, so that the kernel has
    to clear every page of every activation in every step: a fifth of a full-batch step on ColoredMNIST (25,000
    examples, activations of 39 MB). The price is that the process keeps its peak of memory until it ends.

    Returns:
        Whether it was done: not where the C library is another one, nor where the environment sets glibc's allocator
        up already (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES``).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(*setting) == 1
        for setting in ((_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES), (_M_TRIM_THRESHOLD, _TRIM_FROM_BYTES))
    )
