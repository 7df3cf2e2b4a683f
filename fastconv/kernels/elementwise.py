"""ReLU, masks and sums: what is done to each element by itself, in whatever order the elements lie in memory.

The schedule: each thread takes a run of elements; its loop has no branch, so that LLVM turns it into vector instructions.

Contract: arrays are flat, contiguous and of one length; ``out`` may be one of the others.
"""

from __future__ import annotations

from ..arrays import Array
from ..jit import prange, streaming_kernel

__all__ = ["add", "masked", "rectify"]


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
