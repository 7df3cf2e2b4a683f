"""Packing: between the arrays of a user and the layouts that the register tiles read.

Images are packed channels-last with their padding, (N, D, H, W, C); weights into panels, whose rows are the vectors of one
block of output lanes.  All arrays are flat; offsets and sizes come as integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed
from ..simd import lanes, transpose_tile

__all__ = ["pack_images", "pack_panels", "unpack_images", "unpack_panels"]

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
def pack_images(x: Array, channels_last: bool, shape: Ints, out: Array, padded: Ints, left: Ints) -> None:
    """Copy images (N, C, D, H, W), or (N, D, H, W, C) in memory, into the middle of zeros (N, PD, PH, PW, C).

    ``shape`` is (N, C, D, H, W), ``padded`` (PD, PH, PW) and ``left`` the padding in front.  A task is one padded row.
    """
    N, C, D, H, W = shape
    PD, PH, PW = padded
    for task in prange(N * PD * PH):
        rest, py = divmod(signed(task), PH)
        n, pz = divmod(rest, PD)
        z, y = pz - left[0], py - left[1]
        row = signed(task) * PW * C
        if z < 0 or z >= D or y < 0 or y >= H:
            out[row : row + PW * C] = 0
        else:
            first, end = row + left[2] * C, row + (left[2] + W) * C
            out[row:first] = 0
            out[end : row + PW * C] = 0
            if channels_last:
                at = ((n * D + z) * H + y) * W * C
                out[first:end] = x[at : at + W * C]
            else:
                transpose(x, ((n * C * D + z) * H + y) * W, D * H * W, C, W, out, first, C)


@parallel_kernel
def unpack_images(packed: Array, images: int, pixels: int, channels: int, out: Array, chunk: int) -> None:
    """Copy (N, pixels, C) into (N, C, pixels).  A task is a chunk of an image's pixels."""
    chunks = (pixels + chunk - 1) // chunk
    for task in prange(images * chunks):
        n, part = divmod(signed(task), chunks)
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
    weight: Array, out: Array, groups: int, group_step: int, width: int, lane_count: int, lane_step: int,
    depth: int, depth_step: int, taps: Array,
) -> None:  # fmt: skip
    """Write panels [group, block of lanes, tap, depth, lane], zero where a block has lanes that do not exist.

    panel[g, block, t, b, l] = weight[g*group_step + (block*width + l)*lane_step + b*depth_step + taps[t]]

    A task is one lane of one block: it reads along the weight.
    """
    blocks = (lane_count + width - 1) // width
    T = taps.size
    for task in prange(groups * blocks * width):
        rest, lane = divmod(signed(task), width)
        g, block = divmod(rest, blocks)
        to = rest * T * depth * width + lane
        if block * width + lane < lane_count:
            at = g * group_step + (block * width + lane) * lane_step
            for b in range(depth):
                for t in range(T):
                    out[to + (t * depth + b) * width] = weight[at + b * depth_step + taps[t]]
        else:
            for k in range(T * depth):
                out[to + k * width] = 0


@parallel_kernel
def unpack_panels(
    panels: Array, out: Array, sums: int, groups: int, width: int, filters: int, channels: int, T: int
) -> None:
    """Write dW [sum, group, filter, channel, tap] from panels [sum, group, block of filters, tap, channel, lane].

    A task is one filter.
    """
    blocks = (filters + width - 1) // width
    for task in prange(sums * groups * filters):
        rest, f = divmod(signed(task), filters)
        at = (rest * blocks + f // width) * T * channels * width + f % width
        to = signed(task) * channels * T
        for ch in range(channels):
            for t in range(T):
                out[to + ch * T + t] = panels[at + (t * channels + ch) * width]
