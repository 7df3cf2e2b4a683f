"""ReLU, masks, dropout and sums: what is done to each element by itself, in whatever order the elements lie in memory.

The schedule: each thread takes a run of elements; its loop has no branch, so that LLVM turns it into vector instructions.

Contract: arrays are flat, contiguous and of one length; ``out`` may be one of the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array
from ..jit import inlined, prange, signed, streaming_kernel, unsigned

__all__ = ["add", "drop", "masked", "rectify", "scaled"]


@streaming_kernel
def rectify(x: Array, out: Array) -> None:
    """Out = max(x, 0), where a NaN stays NaN: it is 0 exactly where the gradient does not pass."""
    zero = x.dtype.type(0)
    for t in prange(x.size):
        out[t] = zero if x[t] <= zero else x[t]


@streaming_kernel
def add(a: Array, b: Array, lowest: float, out: Array) -> None:
    """Out = max(a + b, lowest): the sum alone with -inf, its ReLU with 0.  A NaN stays NaN."""
    for t in prange(a.size):
        total = a[t] + b[t]
        out[t] = lowest if total < lowest else total


@streaming_kernel
def masked(values: Array, mask: Array, out: Array) -> None:
    """Out = values where the mask is not 0, else 0, also in place of a NaN or an infinity."""
    zero = values.dtype.type(0)
    for t in prange(values.size):
        out[t] = values[t] if mask[t] != 0 else zero


@streaming_kernel
def scaled(values: Array, mask: Array, scale: float, out: Array) -> None:
    """Out = values * scale where the mask is not 0, else 0, as of `masked`."""
    zero = values.dtype.type(0)
    for t in prange(values.size):
        out[t] = values[t] * scale if mask[t] != 0 else zero


@inlined
def mixed(number: Any) -> Any:
    """Turn a number of 32 bits into another that looks random, by shifts and multiplications ("lowbias32" of C. Wellons)."""
    low = np.uint64(0xFFFFFFFF)
    number ^= number >> np.uint64(16)
    number = number * np.uint64(0x7FEB352D) & low
    number ^= number >> np.uint64(15)
    number = number * np.uint64(0x846CA68B) & low
    return number ^ (number >> np.uint64(16))


@streaming_kernel
def drop(
    x: Array, width: int, pixels: int, keys: Array, least: Any, scale: float, mask: Array, out: Array
) -> None:  # fmt: skip
    """Out = x * scale with a mask that is drawn: 1 where a random number of 32 bits is at least ``least``, else 0.

    Numbers are drawn for the elements in the order of NCHW: ``x`` are rows of a ``width``, of which ``pixels`` follow each other
    with a step of as many elements; 1 where the order is that in memory.  Each is a function of its element and two ``keys``
    alone, so that it depends neither on the number of threads nor on the memory layout.
    """
    zero, low = x.dtype.type(0), np.uint64(0xFFFFFFFF)
    first_key, second_key = keys[0], keys[1]
    for row in prange((x.size + width - 1) // width):
        at = signed(row) * width
        n, p = divmod(signed(row), pixels)
        first = n * width * pixels + p
        for c in range(min(width, x.size - at)):
            element = np.uint64(first + c * pixels)
            number = mixed((element & low) ^ first_key)
            number = mixed((number + (element >> np.uint64(32)) + second_key) & low)
            kept = number >= least
            mask[unsigned(at + c)] = kept
            out[unsigned(at + c)] = x[unsigned(at + c)] * scale if kept else zero
