"""Equation (4), db[f] = sum over images and pixels of dO, on flat arrays of either memory layout.

The schedule: sums run side by side, so that they fill vector registers: channels, or COLUMNS of a plane's pixels, which are added
up after every CHUNK rows of them: no plain run of additions is long.  All are kept in double precision, which costs nothing
here: the kernel waits for memory, and one number stands for thousands.

Where equation (3) is computed, too, its tasks sum what they read of dO, by `sum_strip`; `add_strips` adds these sums up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..jit import inlined, kernel, linked_kernel, prange, signed, streaming_kernel, unsigned
from ..scratch import buffer
from ..simd import compact, lanes, sum_tile
from ..tasks import task
from .fields import Fields

__all__ = [
    "BLOCKS", "PLANES", "add_strips", "add_up", "joined_rows", "rooms_for", "rows_of", "sum_of_pixels", "sum_strip", "sums",
]  # fmt: skip

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

COLUMNS = 64
CHUNK = 64

PLANES = Fields("Planes", "batch channels pixels per_task")
"""Images, channels, pixels of an image, and channels of a task."""

read_planes = PLANES.reader()

LANES = 128
"""Numbers of a row that is long enough: shorter ones are joined, as each costs the loop over it a fresh start."""

BLOCKS = 64
"""Most blocks of rows that have sums of their own: their number does not depend on that of the threads."""


def joined_rows(pixels: Array) -> tuple[Array, int]:
    """View (pixels, channels) as longer rows, each of as many pixels as the second result says."""
    count, channels = pixels.shape
    repeat = math.gcd(count, 2 ** max(0, (LANES // channels).bit_length() - 1))
    return pixels.reshape(count // repeat, repeat * channels), repeat


@inlined
def rows_of(block: int, blocks: int, rows: int) -> tuple[int, int]:
    """First row of a block, and the one behind its last."""
    return block * rows // blocks, (block + 1) * rows // blocks


def rooms_for(tasks: int, size: int, dtype: np.dtype[Any]) -> Array:
    """Return scratch memory, a row of numbers for each block of tasks."""
    blocks = max(1, min(BLOCKS, tasks))
    return buffer("rooms", blocks * size, dtype).reshape(blocks, size)


def sum_of_pixels(pixels: Array) -> Array:
    """Sum (pixels, channels) over the pixels, in double precision: equation (4) of a gradient that lies channels-last.

    The sums lie in scratch memory.
    """
    rows, _ = joined_rows(pixels)
    blocks = rooms_for(len(rows), rows.shape[1], np.dtype(np.float64))
    sums_of_rows(rows, blocks)
    add_up(blocks[:, np.newaxis], pixels.shape[1])
    return blocks[0, : pixels.shape[1]]


@kernel
def add_up(sums: Array, channels: int) -> None:
    """Add each kind of sums[block,kind,lane] of all blocks, and of all pixels of a row, to those of the first."""
    blocks, kinds, lanes = sums.shape
    for kind in range(kinds):
        total = sums[0, kind]
        for block in range(1, blocks):
            own = sums[block, kind]
            for c in range(unsigned(lanes)):
                total[c] += own[c]
        for c in range(channels, lanes):
            total[c % channels] += total[c]


@streaming_kernel
def sums_of_rows(rows: Array, sums: Array) -> None:
    """sums[block,c] = sum over the block's rows i of rows[i,c]."""
    count, channels = rows.shape
    flat = rows.reshape(rows.size)
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), count)
        own = sums[signed(block)]
        own[:] = 0
        for i in range(first, last):
            for c in range(unsigned(channels)):
                own[c] += flat[unsigned(i * channels) + c]


@task
def sums(
    task: int, room: Array, numbers: Array, tables: Array, gradient: Array, out: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """A task is a block of channels of planes, one image after the other."""
    told = read_planes(numbers)
    batch, channels, pixels, per_task = told.batch, told.channels, told.pixels, told.per_task
    columns = np.empty(COLUMNS, np.float64)
    for f in range(task * per_task, min((task + 1) * per_task, channels)):
        total = 0.0
        for n in range(batch):
            at = (n * channels + f) * pixels
            for chunk in range(0, pixels, CHUNK * COLUMNS):
                columns[:] = 0
                last = min(chunk + CHUNK * COLUMNS, pixels)
                for p in range(chunk, last, COLUMNS):
                    for t in range(unsigned(min(COLUMNS, last - p))):
                        columns[t] += gradient[unsigned(at + p) + t]
                part = 0.0
                for t in range(min(COLUMNS, last - chunk)):
                    part += columns[t]
                total += part
        out[f] = total


# ---------------------------------------------------------------------------------------------------------------------
# Beside equation (3)
# ---------------------------------------------------------------------------------------------------------------------


@linked_kernel
def sum_strip(
    gradient: Array, at: int, sizes: Ints, steps: Ints, valid: int, sums: Array, sums_at: int, slot: int, pitch: int
) -> None:  # fmt: skip
    """Sum a block of lanes over a strip: (images, planes, rows, columns) of pixels with their steps.

    A slot is ``pitch`` numbers, and a vector's in front: if the last vector is not whole, it begins as many lanes earlier, which
    have to exist.
    """
    compact()
    n = lanes(gradient.itemsize)
    images, planes, rows, columns = sizes
    # Rows, planes and images that follow each other are taken as one row.
    if rows == 1 or steps[2] == columns * steps[3]:
        rows, columns = 1, rows * columns
    if rows == 1 and (planes == 1 or steps[1] == columns * steps[3]):
        planes, columns = 1, planes * columns
    if rows == 1 and planes == 1 and (images == 1 or steps[0] == columns * steps[3]):
        images, columns = 1, images * columns
    to = sums_at + slot * (n + pitch) + n
    for lane in range(0, valid, n):
        first = min(lane, valid - n)
        sum_tile(
            gradient, at + first, images, planes, rows, columns, steps[0], steps[1], steps[2], steps[3], sums, to + first
        )  # fmt: skip


@kernel
def add_strips(sums: Array, sums_at: int, strips: int, total: Array) -> None:
    """Add all slots of each strip, one strip after the other, to ``total``, in double precision."""
    count = total.size
    for strip in range(strips):
        for k in range(unsigned(count)):
            total[k] += sums[unsigned(sums_at + strip * count) + k]
