"""What this machine can do at best: multiply-adds in registers, and copies between arrays that no cache holds.

Both have one task per thread, so each measures as many cores as there are threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import parallel_kernel, prange, signed
from ..simd import ACCUMULATORS, lanes, peak_tile

__all__ = ["copy", "peak"]

Array = np.ndarray[Any, Any]


@parallel_kernel
def peak(numbers: Array, count: int, out: Array, tasks: int) -> None:
    """Run the peak tile ``tasks`` times, each with ``count`` steps of ACCUMULATORS*lanes multiply-adds.

    ``numbers`` is what `peak_tile` takes; ``out`` has room for the sums of all tasks.
    """
    for task in prange(tasks):
        peak_tile(numbers, count, out, signed(task) * ACCUMULATORS * lanes(out.itemsize))


@parallel_kernel
def copy(source: Array, target: Array, tasks: int) -> None:
    """Copy a flat array, in ``tasks`` pieces of the same size.

    By slices, which become a call of memcpy: a loop over elements reached 4 to 7 GB/s where this reached 10.
    """
    size = (source.size + tasks - 1) // tasks
    for task in prange(tasks):
        first = signed(task) * size
        target[first : first + size] = source[first : first + size]
