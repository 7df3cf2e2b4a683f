"""Between the memory of NCHW and of channels-last images: each image's matrix, channels times pixels, is turned over."""

from __future__ import annotations

from ..arrays import Array
from ..jit import prange, signed, streaming_kernel
from .pack import transpose

__all__ = ["turn"]

COLUMNS = 64
"""Columns of a task: whole lines of the cache, and few enough rows of the result to stay in it."""


@streaming_kernel
def turn(source: Array, target: Array) -> None:
    """target[n,k,m] = source[n,m,k]; both are C-contiguous."""
    images, rows, columns = source.shape
    flat, turned = source.reshape(source.size), target.reshape(target.size)
    blocks = (columns + COLUMNS - 1) // COLUMNS
    for task in prange(images * blocks):
        n, block = divmod(signed(task), blocks)
        first = block * COLUMNS
        transpose(
            flat, n * rows * columns + first, columns, rows, min(COLUMNS, columns - first), turned,
            (n * columns + first) * rows, rows, 0,
        )  # fmt: skip
