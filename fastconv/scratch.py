"""Scratch memory that belongs to the calling thread and is used again from call to call.

A buffer has a name; asking for it again returns the same memory, so whoever asks must be done with it before the next call
that uses the name.  While it is a buffer it is never handed to a user.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .arrays import LINE, Array, empty, from_line

__all__ = ["LARGEST_KEPT", "aligned", "buffer", "release"]

LARGEST_KEPT = 2**28
"""Bytes of a buffer that is kept for the next call; a larger one lives only as long as its call."""

_local = threading.local()


def buffer(name: str, size: int, dtype: np.dtype[Any]) -> Array:
    """Return a flat array of ``size`` numbers, whose values are arbitrary.

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
    if size * dtype.itemsize > LARGEST_KEPT:
        return aligned(size, dtype)
    kept.pop((name, dtype.char), None)
    kept[name, dtype.char] = array = aligned(max(size, 1), dtype)
    return array[:size]


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Allocate numbers from the beginning of a cache line on: vectors then lie in one line each."""
    memory = empty("scratch memory", (size + LINE // dtype.itemsize,), dtype)
    return from_line(memory.view(np.uint8), size * dtype.itemsize).view(dtype)


def release() -> None:
    """Give up the calling thread's scratch memory; large buffers wait in the pool of `fastconv.arrays`."""
    _local.__dict__.pop("buffers", None)
