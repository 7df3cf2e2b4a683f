"""ReLU and masks: what is done to each element by itself, in whatever order the elements lie in memory.

The schedule: chunks of CHUNK elements are spread over the threads; the loop over a chunk has no branch, so that LLVM turns it
into vector instructions.

Contract: arrays are flat, contiguous and of one length.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import parallel_kernel, prange, signed, unsigned

__all__ = ["masked", "relu"]

CHUNK = 2**14
"""Elements of a task: 64 KiB of float32, some microseconds of work."""


@parallel_kernel
def relu(x: Array, out: Array, mask: Array) -> None:
    """Out = max(x, 0), where a NaN stays NaN; the mask is 0 where that is 0, else 1."""
    zero = x.dtype.type(0)
    for task in prange((x.size + CHUNK - 1) // CHUNK):
        first = signed(task) * CHUNK
        for t in range(unsigned(min(CHUNK, x.size - first))):
            value = x[unsigned(first) + t]
            passes = (value > zero) | (value != value)
            out[unsigned(first) + t] = value if passes else zero
            mask[unsigned(first) + t] = np.uint8(1) if passes else np.uint8(0)


@parallel_kernel
def masked(values: Array, mask: Array, out: Array) -> None:
    """Out = values where the mask is not 0, else 0, also in place of a NaN or an infinity."""
    zero = values.dtype.type(0)
    for task in prange((values.size + CHUNK - 1) // CHUNK):
        first = signed(task) * CHUNK
        for t in range(unsigned(min(CHUNK, values.size - first))):
            out[unsigned(first) + t] = values[unsigned(first) + t] if mask[unsigned(first) + t] else zero
