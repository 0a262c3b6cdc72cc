"""How the process holds on to memory."""

import ctypes
import sys
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let glibc's allocator keep large blocks that were freed: stages run 10 to 20 % faster.

    By default it hands them back to the system, which then clears page after page again in each
    training step and for each decoded image. Does nothing elsewhere. Constants: mallopt(3).
    """
    _set({_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Let glibc's allocator hand what a photograph took back to the system at once.

    By default it raises the size from which it does so to 32 MB, once a block of that size was
    freed, and keeps an own heap for each thread. To be called before there are threads.
    """
    _set({_MMAP_THRESHOLD: 2**22, _ARENA_MAX: 2})


def _set(options: Mapping[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in options.items():
            libc.mallopt(option, value)
