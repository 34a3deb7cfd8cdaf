"""Allocator: keeps the memory that a step or chunk frees, so that the next one need not fault its pages in again."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Parameters of glibc's mallopt, and where its own adjustment of them ends.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER = -1
MEGABYTE = 1 << 20

_lock = threading.Lock()
_within = 0  # how often `keep_freed_memory` is entered: runs measure, and both want it


@contextmanager
def keep_freed_memory(largest: int = LARGEST_MMAP_THRESHOLD) -> Iterator[None]:
    """Within, freed memory stays with the process: without, every step would fault all of its pages in again.

    That of the main thread, and for the C library that Linux mostly has (glibc); elsewhere nothing changes.
    Afterwards memory goes back to the system as ever, when more is freed. No number depends on it.

    Args:
        largest: bytes of a block that stays. Where tensors are large and copies of all are to be few, `MEGABYTE`: a
            freed block that anything small has moved into is no place for a block of its size any more.

    Example:
        >>> with keep_freed_memory():
        ...     total = sum(range(4))
    """
    library = _glibc()
    if library is None:
        yield
        return
    # Below the threshold blocks come from the heap, which is never trimmed; above it each goes back when it is freed.
    _count(library, 1, largest)
    try:
        yield
    finally:
        _count(library, -1, largest)


def _count(library: Any, change: int, largest: int) -> None:
    """Set what the first one in wants, and put it back where the last one is out."""
    global _within  # of the process, as what it counts
    with _lock:
        _within += change
        if (change, _within) == (1, 1):
            if largest < LARGEST_MMAP_THRESHOLD:
                library.malloc_trim(0)  # what is free by now, where it lies between what is not, too
            library.mallopt(MMAP_THRESHOLD, largest)
            library.mallopt(TRIM_THRESHOLD, NEVER)
        elif not _within:
            library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
            library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)


def _glibc() -> Any:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") else None
