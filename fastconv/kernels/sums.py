"""Equation (4), db[f] = sum over images and pixels of dO, on flat arrays of either memory layout.

The schedule: sums run side by side, COLUMNS of them, so that they fill vector registers, and are added up after every CHUNK
rows of them: no plain run of additions is long.  All are kept in double precision, which costs nothing here: the kernel waits
for memory, and one number stands for thousands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..jit import unsigned
from ..tasks import task

__all__ = ["blocks_of", "joined_rows", "sums"]

Array = np.ndarray[Any, Any]

COLUMNS = 64
CHUNK = 64

LANES = 128
"""Numbers of a row that is long enough: shorter ones are joined, as each costs the loop over it a fresh start."""

BLOCKS = 64
"""Most blocks of rows that have sums of their own."""


def joined_rows(pixels: Array) -> tuple[Array, int]:
    """View (pixels, channels) as longer rows, each of as many pixels as the second result says."""
    count, channels = pixels.shape
    repeat = math.gcd(count, 2 ** max(0, (LANES // channels).bit_length() - 1))
    return pixels.reshape(count // repeat, repeat * channels), repeat


def blocks_of(rows: Array) -> int:
    """Count the blocks of rows: their number does not depend on that of the threads."""
    return min(BLOCKS, len(rows))


@task
def sums(
    task: int, room: Array, numbers: Array, tables: Array, gradient: Array, out: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """A task is a block of channels, at most COLUMNS.

    ``numbers`` are whether the gradient lies channels-last, images, channels, pixels of an image, and channels of a task.
    """
    channels_last, batch, channels, pixels, per_task = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    columns, totals = np.empty(COLUMNS, np.float64), np.empty(COLUMNS, np.float64)
    first = task * per_task
    count = min(per_task, channels - first)
    totals[:] = 0
    if channels_last:
        for chunk in range(0, batch * pixels, CHUNK):
            columns[:] = 0
            for pixel in range(chunk, min(chunk + CHUNK, batch * pixels)):
                at = pixel * channels + first
                for c in range(count):
                    columns[unsigned(c)] += gradient[unsigned(at + c)]
            for c in range(count):
                totals[c] += columns[c]
    else:
        for c in range(count):
            for n in range(batch):
                at = (n * channels + first + c) * pixels
                for chunk in range(0, pixels, CHUNK * COLUMNS):
                    columns[:] = 0
                    last = min(chunk + CHUNK * COLUMNS, pixels)
                    for p in range(chunk, last, COLUMNS):
                        for t in range(unsigned(min(COLUMNS, last - p))):
                            columns[t] += gradient[unsigned(at + p) + t]
                    total = 0.0
                    for t in range(min(COLUMNS, last - chunk)):
                        total += columns[t]
                    totals[c] += total
    for c in range(count):
        out[first + c] = totals[c]
