"""Scratch memory that belongs to the calling thread and is used again from call to call.

A buffer has a name; asking for it again returns the same memory, so whoever asks must be done with it before the next call
that uses the name.  While it is a buffer it is never handed to a user.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .arrays import LINE, Array, empty, from_line
from .geometry import ceil_div

__all__ = ["GAP_BYTES", "LARGEST_KEPT", "aligned", "buffer", "release", "rooms"]

LARGEST_KEPT = 2**28
"""Bytes of a buffer that is kept for the next call; a larger one lives only as long as its call."""

GAP_BYTES = 1 << 20
"""Bytes between the rooms of two workers, which nobody uses: a core fetches ahead what lies behind its own, by the distance of
the planes that it reads, and would take it from the other.  That is dear where the two have no cache in common."""

_local = threading.local()


def buffer(name: str, size: int, dtype: np.dtype[Any], unused: int = 0) -> Array:
    """Return a flat array of ``size`` numbers, whose values are arbitrary, of which so many will not be used.

    Raises
    ------
    MemoryError
        If it is larger than what is free.
    """
    try:
        kept: dict[tuple[str, str], Array] = _local.buffers
    except AttributeError:
        kept = _local.buffers = {}
    array = kept.get((name, dtype.char))
    if array is not None and array.size >= size:
        return array[:size]
    if (size - unused) * dtype.itemsize > LARGEST_KEPT:
        return aligned(size, dtype)
    kept.pop((name, dtype.char), None)
    kept[name, dtype.char] = array = aligned(max(size, 1), dtype)
    return array[:size]


def rooms(workers: int, size: int, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """Return scratch memory with a room of ``size`` numbers for each worker, and the distance of rooms.

    The second worker's begins where it was for rooms of other sizes: a core finds in its caches what it has used before, and
    there is nothing of it in others'.
    """
    if workers == 1:
        return buffer("room", size, dtype), size
    try:
        kept: dict[str, int] = _local.distances
    except AttributeError:
        kept = _local.distances = {}
    own = (ceil_div(size * dtype.itemsize, LINE) * LINE + GAP_BYTES) // dtype.itemsize
    distance = max(own, kept.get(dtype.char, 0))
    if workers * distance * dtype.itemsize > LARGEST_KEPT:  # that was the distance of fewer, perhaps
        distance = own
    kept[dtype.char] = distance
    return buffer("room", (workers - 1) * distance + size, dtype, unused=(workers - 1) * (distance - size)), distance


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Allocate numbers from the beginning of a cache line on: vectors then lie in one line each."""
    memory = empty("scratch memory", (size + LINE // dtype.itemsize,), dtype)
    return from_line(memory.view(np.uint8), size * dtype.itemsize).view(dtype)


def release() -> None:
    """Give up the calling thread's scratch memory; large buffers wait in the pool of `fastconv.arrays`."""
    _local.__dict__.clear()
