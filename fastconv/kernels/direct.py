"""Direct convolution on the register tile, lanes along channels.

Two drivers serve all three passes.  `gather` computes pixels: a tile is ROWS pixels times a block of output channels, the sum
runs over taps and input channels; with the weight packed one way this is equation (1), with the other, phase by phase, it is
equation (2).  `correlate` computes weights: a tile is ROWS (tap, channel) pairs times a block of filters, the sum runs over
pixels: equation (3).  What is what is said by the offset tables that `fastconv.engine` makes.

In a depthwise convolution each lane has a channel of its own: ``block_step``, elsewhere 0, then leads from one block's
channels to the next, and the pointwise tile multiplies.

Each driver stands twice: as a range of tasks, and as a parallel loop over all of them.  Problems too small to be worth waking
other threads for run the first, with the same result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed
from ..simd import ROWS, outer_tile, pointwise_tile

__all__ = ["correlate", "correlate_tasks", "gather", "gather_tasks"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]


@parallel_kernel
def gather(
    tasks: int, panels: Array, vector_table: Array, scalar_table: Array, scalar_step: int, count: int, image: Array,
    image_steps: Ints, group_step: int, block_step: int, out: Array, out_at: int, out_steps: Ints, sizes: Ints, groups: int,
    lane_count: int, width: int, start: Array, chunk: int, rows_at_once: int, terms_at_once: int,
) -> None:  # fmt: skip
    """All tasks of `gather_tasks`, shared among the threads."""
    for task in prange(tasks):
        gather_tasks(
            signed(task), signed(task) + 1, panels, vector_table, scalar_table, scalar_step, count, image, image_steps,
            group_step, block_step, out, out_at, out_steps, sizes, groups, lane_count, width, start, chunk,
            rows_at_once, terms_at_once,
        )  # fmt: skip


@kernel
def gather_tasks(
    begin: int, end: int, panels: Array, vector_table: Array, scalar_table: Array, scalar_step: int, count: int,
    image: Array, image_steps: Ints, group_step: int, block_step: int, out: Array, out_at: int, out_steps: Ints, sizes: Ints,
    groups: int, lane_count: int, width: int, start: Array, chunk: int, rows_at_once: int, terms_at_once: int,
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + sum over a, b of panels[g, block, a, b, lane] * image[pixel, table[a] + b*step].

    ``sizes`` (N, D, H, W) are the pixels to compute; ``image_steps`` and ``out_steps`` say how far apart neighbours along each
    of these axes are in the packed image and in the channels-last output.

    The schedule: a task is a block of lanes and a chunk of pixels, so that the block's panel stays in the second-level cache.
    The last tile of a task is filled up with copies of its last pixel.
    """
    N, D, H, W = sizes
    pixels = N * D * H * W
    blocks, chunks = (lane_count + width - 1) // width, (pixels + chunk - 1) // chunk
    many = vector_table.size
    panel = panels.size // (groups * blocks)
    for task in range(begin, end):
        group_block, part = divmod(task, chunks)
        g, block = divmod(group_block, blocks)
        valid = min(width, lane_count - block * width)
        first = part * chunk
        last = min(first + chunk, pixels)
        rest, x = divmod(first, W)
        rest, y = divmod(rest, H)
        n, z = divmod(rest, D)
        source = g * group_step + block * block_step
        source += n * image_steps[0] + z * image_steps[1] + y * image_steps[2] + x * image_steps[3]
        target = out_at + g * lane_count + block * width
        target += n * out_steps[0] + z * out_steps[1] + y * out_steps[2] + x * out_steps[3]
        places = np.empty(2 * ROWS, np.int64)
        for pixel in range(first, last, ROWS):
            for m in range(ROWS):
                places[m], places[ROWS + m] = source, target
                if pixel + m + 1 < last:  # step to the next pixel, as an odometer does
                    source, target, x = source + image_steps[3], target + out_steps[3], x + 1
                    if x == W:
                        source, target = (
                            source + image_steps[2] - W * image_steps[3],
                            target + out_steps[2] - W * out_steps[3],
                        )
                        x, y = 0, y + 1
                        if y == H:
                            source += image_steps[1] - H * image_steps[2]
                            target += out_steps[1] - H * out_steps[2]
                            y, z = 0, z + 1
                            if z == D:
                                source += image_steps[0] - D * image_steps[1]
                                target += out_steps[0] - D * out_steps[1]
                                z = 0
            # A long sum is taken in chunks, of rows of the table and of terms of a row, that are added one by one.
            for a in range(0, many, rows_at_once):
                rows = min(rows_at_once, many - a)
                for b in range(0, count, terms_at_once):
                    terms = min(terms_at_once, count - b)
                    at = group_block * panel + b * width
                    if block_step == 0:
                        outer_tile(
                            panels, at, vector_table, a, width, image, scalar_table, scalar_step, rows, terms,
                            places, out, start, group_block * width, a + b, valid,
                        )  # fmt: skip
                    else:
                        pointwise_tile(
                            panels, at, vector_table, a, width, image, scalar_table, scalar_step, rows, terms,
                            places, out, start, group_block * width, a + b, valid,
                        )  # fmt: skip
                    for m in range(ROWS):
                        places[m] += terms * scalar_step
                for m in range(ROWS):
                    places[m] -= count * scalar_step


@parallel_kernel
def correlate(
    tasks: int, gradient: Array, vector_table: Array, vector_step: int, image: Array, scalar_table: Array, scalar_step: int,
    count: int, sums: int, groups: int, filters: int, width: int, taps: Array, channels: int, out: Array, zeros: Array,
    chunk: int, rows_per_task: int, block_step: int,
) -> None:  # fmt: skip
    """All tasks of `correlate_tasks`, shared among the threads."""
    for task in prange(tasks):
        correlate_tasks(
            signed(task), signed(task) + 1, gradient, vector_table, vector_step, image, scalar_table, scalar_step, count,
            sums, groups, filters, width, taps, channels, out, zeros, chunk, rows_per_task, block_step,
        )  # fmt: skip


@kernel
def correlate_tasks(
    begin: int, end: int, gradient: Array, vector_table: Array, vector_step: int, image: Array, scalar_table: Array,
    scalar_step: int, count: int, sums: int, groups: int, filters: int, width: int, taps: Array, channels: int, out: Array,
    zeros: Array, chunk: int, rows_per_task: int, block_step: int,
) -> None:  # fmt: skip
    """out[s, g, block, tap, ch, lane] = sum over rows a of sum s, b of gradient[a, b, g, lane] * image[a, b, taps[tap] + g, ch].

    The tables hold the rows of all sums one after another.

    The schedule: a task is one sum, a block of filters and a range of (tap, channel) pairs; it walks over the images in chunks
    of rows that stay in the cache while all of its pairs are served, and adds each chunk's sums to the result.
    """
    blocks = (filters + width - 1) // width
    pairs = taps.size * channels
    parts = (pairs + rows_per_task - 1) // rows_per_task
    lines = vector_table.size // sums
    for task in range(begin, end):
        unit, part = divmod(task, parts)
        rest, block = divmod(unit, blocks)
        s, g = divmod(rest, groups)
        valid = min(width, filters - block * width)
        first, last = part * rows_per_task, min((part + 1) * rows_per_task, pairs)
        places = np.empty(2 * ROWS, np.int64)
        for line in range(0, lines, chunk):
            many = min(chunk, lines - line)
            for pair in range(first, last, ROWS):
                for m in range(ROWS):
                    here = min(pair + m, last - 1)
                    tap, ch = divmod(here, channels)
                    places[m] = taps[tap] + g * channels + ch + block * block_step
                    places[ROWS + m] = (unit * pairs + here) * width
                at = g * filters + block * width
                if block_step == 0:
                    outer_tile(
                        gradient, at, vector_table, s * lines + line, vector_step, image, scalar_table, scalar_step,
                        many, count, places, out, zeros, 0, line, valid,
                    )  # fmt: skip
                else:
                    pointwise_tile(
                        gradient, at, vector_table, s * lines + line, vector_step, image, scalar_table, scalar_step,
                        many, count, places, out, zeros, 0, line, valid,
                    )  # fmt: skip
