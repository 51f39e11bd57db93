"""How much memory this host has to spare."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

MEMINFO = Path("/proc/meminfo")
# Of version 2 of Linux's control groups: a container's limit and use.
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def available_memory() -> int:
    """Bytes that a process may still take: what the system has to spare, or a container if that is less.

    Where the system does not say, half of its memory.
    """
    text = MEMINFO.read_text() if MEMINFO.is_file() else ""
    stated = re.search(r"MemAvailable:\s+(\d+) kB", text)
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    spare = 1024 * int(stated[1]) if stated else half
    if LIMIT.is_file() and USED.is_file() and (limit := LIMIT.read_text().strip()) != "max":
        spare = min(spare, max(int(limit) - int(USED.read_text()), 0))
    return spare


def release(array: Any) -> None:
    """Let go of the pages of a memory map that have been read; a reader to come finds them in the file again.

    Otherwise a file that is read from end to end counts as memory of the process, and a container may be ended for it.
    """
    mapped = getattr(array, "_mmap", None) if isinstance(array, np.memmap) else None
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED") and array.mode == "r":
        mapped.madvise(mmap.MADV_DONTNEED)
