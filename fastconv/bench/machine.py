"""The two limits of this machine: multiply-adds per second, and bytes per second to and from memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from ..kernels.peak import copy, peak
from ..simd import ACCUMULATORS, lanes
from ..threads import num_threads

__all__ = ["Machine"]

STEPS = 100 if numba.config.DISABLE_JIT else 1_000_000
"""Of one measurement of the peak: about 2 ms, many times what starting the threads takes, and short enough that some
measurements are not interrupted."""


class Machine:
    """Measures on one thread and on all.

    Parameters
    ----------
    dtype : str
        Of the multiply-adds.
    threads : int
        What "all" means.
    """

    def __init__(self, dtype: str, threads: int) -> None:
        kind = np.dtype(dtype)
        width = lanes(kind.itemsize)
        self.threads = threads
        self.numbers = np.linspace(0.25, 0.75, (1 + ACCUMULATORS) * width).astype(kind)
        self.numbers[:width] = 0.5  # sums then tend to 1
        self.sums = np.empty(threads * ACCUMULATORS * width, kind)
        peak(self.numbers, 1, self.sums, threads)  # compiles
        self.source = np.ones(_copy_bytes() // 8)
        self.target = np.zeros_like(self.source)
        copy(self.source, self.target, threads)

    def measure(self, seconds: float) -> dict[str, dict[str, float]]:
        """Return ``{"peak": {"1": ..., "all": ...}, "copy": {"1": ..., "all": ...}}`` in GFLOP/s and GB/s.

        A copy counts twice: its bytes are read and written.
        """
        limits: dict[str, dict[str, float]] = {"peak": {}, "copy": {}}
        for name, threads in (("1", 1), ("all", self.threads)):
            with num_threads(threads):
                flops = 2 * STEPS * self.sums.size // self.threads * threads
                best = _best(lambda n=threads: peak(self.numbers, STEPS, self.sums, n), seconds)  # type: ignore[misc]
                limits["peak"][name] = flops / best / 1e9
                best = _best(lambda n=threads: copy(self.source, self.target, n), seconds)  # type: ignore[misc]
                limits["copy"][name] = 2 * self.source.nbytes / best / 1e9
        return limits


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _best(call: Callable[[], object], seconds: float) -> float:
    """Time a call until the seconds are over, at least once; return the shortest time."""
    end = time.perf_counter() + seconds
    best = _seconds(call)
    while time.perf_counter() < end:
        best = min(best, _seconds(call))
    return best


def _copy_bytes() -> int:
    """Size of an array that is four times as large as the largest cache, or 256 MB where that is unknown."""
    largest = 64 << 20
    with contextlib.suppress(OSError, ValueError):
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        largest = max((int(path.read_text().strip().removesuffix("K")) << 10 for path in sizes), default=largest)
    wanted = 4 * max(largest, 8 << 20)
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return min(wanted, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32)
    return wanted
