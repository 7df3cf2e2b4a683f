"""Packing: between the arrays of a user and the layouts that the register tiles read.

Images are packed channels-last with their padding, (N, D, H, W, C); weights into panels, whose rows are the vectors of one
block of output lanes.  All arrays are flat; offsets and sizes come as integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed, unsigned
from ..simd import lanes, transpose_tile

__all__ = [
    "pack_images",
    "pack_images_tasks",
    "pack_panels",
    "pack_panels_tasks",
    "unpack_images",
    "unpack_images_tasks",
    "unpack_panels",
    "unpack_panels_tasks",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]


@kernel
def transpose(
    source: Array,
    source_at: int,
    source_step: int,
    rows: int,
    columns: int,
    target: Array,
    target_at: int,
    target_step: int,
) -> None:
    """target[k, m] = source[m, k] for m < rows, k < columns, in tiles as large as the vectors allow."""
    n = lanes(source.itemsize)
    whole_rows, whole_columns = rows - rows % n, columns - columns % n
    for m in range(0, whole_rows, n):
        for k in range(0, whole_columns, n):
            transpose_tile(
                source,
                source_at + m * source_step + k,
                source_step,
                target,
                target_at + k * target_step + m,
                target_step,
            )
    for k in range(columns):
        first = 0 if k >= whole_columns else whole_rows
        for m in range(first, rows):
            target[target_at + k * target_step + m] = source[source_at + m * source_step + k]


@parallel_kernel
def pack_images(
    tasks: int, x: Array, channels_last: bool, shape: Ints, out: Array, padded: Ints, left: Ints
) -> None:  # fmt: skip
    """All tasks of `pack_images_tasks`, shared among the threads."""
    for task in prange(tasks):
        pack_images_tasks(signed(task), signed(task) + 1, x, channels_last, shape, out, padded, left)


@kernel
def pack_images_tasks(
    begin: int, end: int, x: Array, channels_last: bool, shape: Ints, out: Array, padded: Ints, left: Ints
) -> None:
    """Copy images (N, C, D, H, W), or (N, D, H, W, C) in memory, into the middle of zeros (N, PD, PH, PW, C).

    ``shape`` is (N, C, D, H, W), ``padded`` (PD, PH, PW) and ``left`` the padding in front.  A task is one padded row.
    """
    N, C, D, H, W = shape
    PD, PH, PW = padded
    for task in range(begin, end):
        rest, py = divmod(task, PH)
        n, pz = divmod(rest, PD)
        z, y = pz - left[0], py - left[1]
        row = task * PW * C
        if z < 0 or z >= D or y < 0 or y >= H:
            out[row : row + PW * C] = 0
        else:
            first, end = row + left[2] * C, row + (left[2] + W) * C
            out[row:first] = 0
            out[end : row + PW * C] = 0
            if channels_last:
                at = ((n * D + z) * H + y) * W * C
                for k in range(end - first):
                    out[unsigned(first + k)] = x[unsigned(at + k)]
            else:
                transpose(x, ((n * C * D + z) * H + y) * W, D * H * W, C, W, out, first, C)


@parallel_kernel
def unpack_images(tasks: int, packed: Array, pixels: int, channels: int, out: Array, chunk: int) -> None:
    """All tasks of `unpack_images_tasks`, shared among the threads."""
    for task in prange(tasks):
        unpack_images_tasks(signed(task), signed(task) + 1, packed, pixels, channels, out, chunk)


@kernel
def unpack_images_tasks(
    begin: int, end: int, packed: Array, pixels: int, channels: int, out: Array, chunk: int
) -> None:  # fmt: skip
    """Copy (N, pixels, C) into (N, C, pixels).  A task is a chunk of an image's pixels."""
    chunks = (pixels + chunk - 1) // chunk
    for task in range(begin, end):
        n, part = divmod(task, chunks)
        first = part * chunk
        count = min(chunk, pixels - first)
        transpose(
            packed,
            (n * pixels + first) * channels,
            channels,
            count,
            channels,
            out,
            n * channels * pixels + first,
            pixels,
        )


@parallel_kernel
def pack_panels(
    tasks: int, weight: Array, out: Array, group_step: int, width: int, lane_count: int, lane_step: int,
    depth: int, depth_step: int, taps: Array,
) -> None:  # fmt: skip
    """All tasks of `pack_panels_tasks`, shared among the threads."""
    for task in prange(tasks):
        pack_panels_tasks(
            signed(task), signed(task) + 1, weight, out, group_step, width, lane_count, lane_step, depth, depth_step, taps
        )  # fmt: skip


@kernel
def pack_panels_tasks(
    begin: int, end: int, weight: Array, out: Array, group_step: int, width: int, lane_count: int, lane_step: int,
    depth: int, depth_step: int, taps: Array,
) -> None:  # fmt: skip
    """Write panels [group, block of lanes, tap, depth, lane], zero where a block has lanes that do not exist.

    panel[g, block, t, b, l] = weight[g*group_step + (block*width + l)*lane_step + b*depth_step + taps[t]]

    A task is one vector of lanes of one block.  Where the taps of all depths lie one after another in the weight, tiles of it
    are transposed.
    """
    blocks = (lane_count + width - 1) // width
    n = lanes(weight.itemsize)
    parts = width // n
    T = taps.size
    whole = depth_step == T and taps[T - 1] == T - 1 and taps[0] == 0
    square = np.empty(n * n, weight.dtype)
    for task in range(begin, end):
        rest, part = divmod(task, parts)
        g, block = divmod(rest, blocks)
        first = block * width + part * n
        used = max(0, min(n, lane_count - first))
        at = g * group_step + first * lane_step
        to = rest * T * depth * width + part * n
        done = 0
        if whole and used == n:
            done = T * depth - T * depth % n
            for k in range(0, done, n):
                transpose_tile(weight, at + k, lane_step, square, 0, n)
                b, t = divmod(k, T)
                for row in range(n):
                    here = to + (t * depth + b) * width
                    for lane in range(n):
                        out[unsigned(here + lane)] = square[unsigned(row * n + lane)]
                    t += 1
                    if t == T:
                        b, t = b + 1, 0
        for k in range(done, T * depth):
            b, t = divmod(k, T)
            here, there = to + (t * depth + b) * width, at + b * depth_step + taps[t]
            for lane in range(n):
                out[here + lane] = weight[there + lane * lane_step] if lane < used else 0


@parallel_kernel
def unpack_panels(tasks: int, panels: Array, out: Array, width: int, filters: int, channels: int, T: int) -> None:
    """All tasks of `unpack_panels_tasks`, shared among the threads."""
    for task in prange(tasks):
        unpack_panels_tasks(signed(task), signed(task) + 1, panels, out, width, filters, channels, T)


@kernel
def unpack_panels_tasks(
    begin: int, end: int, panels: Array, out: Array, width: int, filters: int, channels: int, T: int
) -> None:
    """Write dW [sum, group, filter, channel, tap] from panels [sum, group, block of filters, tap, channel, lane].

    A task is one filter.
    """
    blocks = (filters + width - 1) // width
    for task in range(begin, end):
        rest, f = divmod(task, filters)
        at = (rest * blocks + f // width) * T * channels * width + f % width
        to = task * channels * T
        for ch in range(channels):
            for t in range(T):
                out[to + ch * T + t] = panels[at + (t * channels + ch) * width]
