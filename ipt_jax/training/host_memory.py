"""How the C library hands memory back, where the host itself computes."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def configure_malloc(devices: Path = Path("/dev")) -> bool:
    """Let this process keep large blocks that it frees, for the next step asks for the same ones.

    glibc maps each large block anew, and the kernel then zeroes it page by page: in a train step
    on a CPU that was 150,000 page faults and a fifth of the time. The process's memory stays at
    its peak. Nothing is changed, and the answer is False, where an accelerator computes (its device
    files lie in `devices`) or the C library has no such settings. Call before JAX starts its
    threads.
    """
    accelerators = ("nvidia*", "accel*", "kfd")
    if not sys.platform.startswith("linux") or any(map(any, map(devices.glob, accelerators))):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(ctypes.c_int(key), ctypes.c_int(value)) == 1 for key, value in settings)
