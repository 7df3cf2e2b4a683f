"""Packing: between the arrays of a user and what the register tiles read and write.

A *box* is the part of the input that a strip of output pixels needs, with its padding.  It lies channels-last, or plane by
plane where there are few channels.  Weights become *panels*, [group, block of lanes, term, lane]; gradients that a tile takes
as vectors become [pixel, lane].  All arrays are flat; sizes and distances come as tuples, along (batch, channels, depth,
height, width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed, unsigned
from ..simd import VECTORS, clear, compact, copy, copy_tile, gather_tile, lanes, scatter_tile, transpose_tile

__all__ = [
    "pack_box",
    "pack_boxes",
    "pack_lanes",
    "pack_panels",
    "transpose",
    "unpack_panels",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]


@kernel
def transpose(
    source: Array, source_at: int, source_step: int, rows: int, columns: int, target: Array, target_at: int, target_step: int
) -> None:  # fmt: skip
    """target[k, m] = source[m, k] for m < rows, k < columns, in tiles as large as the vectors allow."""
    compact()
    n = lanes(source.itemsize)
    whole_rows, whole_columns = rows - rows % n, columns - columns % n
    no_table = np.empty(0, np.int64)
    for m in range(0, whole_rows, n):
        transpose_tile(
            source, source_at + m * source_step, source_step, target, target_at + m, target_step, no_table, 0,
            whole_columns // n,
        )  # fmt: skip
    for k in range(columns):
        first = 0 if k >= whole_columns else whole_rows
        for m in range(first, rows):
            target[unsigned(target_at + k * target_step + m)] = source[unsigned(source_at + m * source_step + k)]


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@kernel
def pack_box(
    x: Array, shape: Ints, steps: Ints, n0: int, z0: int, y0: int, x0: int, out: Array, out_at: int, box: Ints, box_steps: Ints
) -> None:  # fmt: skip
    """Copy a box of images, ``box`` = (images, channels, depth, height, width) from pixel (n0, z0, y0, x0) on.

    What lies outside the images is padding: 0, or left as it is behind the last image.
    """
    compact()
    N, C, D, H, W = shape
    _, _, BD, BH, BW = box
    pixel = box_steps[4]
    left = min(max(0, -x0), BW)  # the rows and columns that lie inside the image
    right = max(left, min(BW, W - x0))
    top = min(max(0, -y0), BH)
    bottom = max(top, min(BH, H - y0))
    columns, rows = right - left, bottom - top
    turned = box_steps[1] == 1 and steps[1] != 1
    joined = turned and columns == W  # planes whose rows are whole are turned over as one run of pixels
    table = np.empty(rows * columns if joined else 0, np.int64)
    for k in range(table.size):
        table[k] = k // W * BW + k % W
    for n in range(min(box[0], N - n0)):
        for bz in range(BD):
            inside = z0 + bz >= 0 and z0 + bz < D
            plane = (n0 + n) * steps[0] + (z0 + bz) * steps[2] + (y0 + top) * steps[3] + (x0 + left) * steps[4]
            to = out_at + n * box_steps[0] + bz * box_steps[2]
            for by in range(BH):
                row = to + by * box_steps[3]
                first, last = (left, right) if inside and by >= top and by < bottom else (BW, BW)
                at = plane + (by - top) * steps[3]
                if box_steps[1] == 1:  # a pixel's channels are neighbours
                    clear(out, row, row + first * pixel)
                    clear(out, row + last * pixel, row + BW * pixel)
                    if first < last and turned and not joined:
                        transpose(x, at, steps[1], C, columns, out, row + first * pixel, pixel)
                    elif first < last and not turned and pixel == C:
                        copy(x, at, out, row + first * C, columns * C)
                    elif first < last and not turned:
                        for column in range(columns):
                            copy(x, at + column * C, out, row + (first + column) * pixel, C)
                else:
                    for c in range(C):
                        begin = row + c * box_steps[1]
                        clear(out, begin, begin + first)
                        clear(out, begin + last, begin + BW)
                        if first < last:
                            copy(x, at + c * steps[1], out, begin + first, columns)
            if joined and inside:
                scatter(x, plane, steps[1], C, table, out, to + top * box_steps[3] + left * pixel, pixel)


@kernel
def scatter(
    source: Array, source_at: int, source_step: int, rows: int, table: Array, target: Array, target_at: int, target_step: int
) -> None:  # fmt: skip
    """target[table[k], m] = source[m, k] for m < rows and all k, in tiles as `transpose`."""
    compact()
    n = lanes(source.itemsize)
    whole_rows, squares = rows - rows % n, table.size // n
    for m in range(0, whole_rows, n):
        scatter_tile(
            source, source_at + m * source_step, source_step, target, target_at + m, target_step, table, 0, squares
        )  # fmt: skip
    for k in range(table.size):
        for m in range(0 if k >= squares * n else whole_rows, rows):
            target[unsigned(target_at + table[k] * target_step + m)] = source[unsigned(source_at + m * source_step + k)]


@parallel_kernel
def pack_boxes(
    tasks: int, x: Array, shape: Ints, steps: Ints, left: Ints, out: Array, box: Ints, box_steps: Ints
) -> None:  # fmt: skip
    """Pack whole images with the padding ``left`` in front.  A task is a row of an image."""
    one_row = (1, box[1], 1, 1, box[4])
    for index in prange(tasks):
        task = signed(index)
        rest, y = divmod(task, box[3])
        n, z = divmod(rest, box[2])
        to = n * box_steps[0] + z * box_steps[2] + y * box_steps[3]
        pack_box(x, shape, steps, n, z - left[0], y - left[1], -left[2], out, to, one_row, box_steps)


# ---------------------------------------------------------------------------------------------------------------------
# Pixels whose channels are lanes
# ---------------------------------------------------------------------------------------------------------------------


@kernel
def pack_lanes(
    x: Array, at: int, lane_step: int, pixel_step: int, pixels: int, valid: int, pitch: int, out: Array, out_at: int
) -> None:  # fmt: skip
    """out[p, l] = x[at + p*pixel_step + l*lane_step] for l < valid, 0 for l up to ``pitch``; one of the steps is 1."""
    compact()
    if lane_step == 1:
        whole = valid // lanes(x.itemsize)
        copy_tile(x, at, pixel_step, out, out_at, pitch, pixels, whole)
        if whole * lanes(x.itemsize) < valid:
            for p in range(pixels):
                for lane in range(whole * lanes(x.itemsize), valid):
                    out[unsigned(out_at + p * pitch + lane)] = x[unsigned(at + p * pixel_step + lane)]
    else:
        transpose(x, at, lane_step, valid, pixels, out, out_at, pitch)
    if valid < pitch:
        for p in range(pixels):
            clear(out, out_at + p * pitch + valid, out_at + (p + 1) * pitch)


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


@parallel_kernel
def pack_panels(
    tasks: int, weight: Array, panels: Array, steps: Ints, depth: int, chunk: int, T: int, lane_count: int,
    panel_of: Array, terms_of: Array, row_of: Array,
) -> None:  # fmt: skip
    """Write panels [group, block of lanes, term, lane], zero where a vector has lanes that do not exist.

    A term is a pair of a depth k and a tap t.  ``steps`` are the distances of (groups, lanes, depths) in the weight; a tap's
    panels begin at ``panel_of[t]``, have ``terms_of[t]`` rows each, of which ``row_of[k*T + t]`` is the term's; one with row -1
    has none.  A task is a chunk of depths.
    """
    n = lanes(weight.itemsize)
    parts, chunks = (lane_count + n - 1) // n, (depth + chunk - 1) // chunk
    for index in prange(tasks):
        task = signed(index)
        g, number = divmod(task, chunks)
        first, last = number * chunk, min((number + 1) * chunk, depth)
        for part in range(parts):
            pack_lanes_of_panels(
                weight, steps, g, part, first, last, T, lane_count, panels, panel_of, terms_of, row_of
            )  # fmt: skip


@kernel
def pack_lanes_of_panels(
    weight: Array, steps: Ints, g: int, part: int, first: int, last: int, T: int, lane_count: int, panels: Array,
    panel_of: Array, terms_of: Array, row_of: Array,
) -> None:  # fmt: skip
    """One vector of lanes, of the depths from ``first`` to ``last`` - 1: in squares that are transposed, if it can be."""
    compact()
    n = lanes(weight.itemsize)
    before, pitch, inside = panel_lane(part, lane_count, n)
    before += g * ((lane_count + n - 1) // n * n)
    used = min(n, lane_count - part * n)
    at = g * steps[0] + part * n * steps[1]
    together = used == n  # whether all terms of a depth are in one panel, so that those of a square are
    for t in range(T):
        together &= panel_of[t] == panel_of[0] and row_of[first * T + t] >= 0
    panel = panel_of[0] + before * terms_of[0] + inside
    done = first * T
    if together and steps[2] == T:  # the terms of a lane follow each other
        squares = (last - first) * T // n
        scatter_tile(weight, at + done, steps[1], panels, panel, pitch, row_of, done, squares)
        done += squares * n
    elif (
        together and steps[1] == T and n <= T
    ):  # the taps of neighbouring lanes do: the last square may overlap another
        for k in range(first, last):
            for t in range(0, T, n):
                tap = min(t, T - n)
                scatter_tile(weight, at + k * steps[2] + tap, T, panels, panel, pitch, row_of, k * T + tap, 1)
        done = last * T
    elif together and steps[1] == T == 1:  # so do the lanes themselves, and so do the rows of the depths
        copy_tile(
            weight, at + first * steps[2], steps[2], panels, panel + row_of[first] * pitch, pitch, last - first, 1
        )
        done = last * T
    for term in range(done, last * T):
        k, t = divmod(term, T)
        if row_of[term] >= 0:
            here, to = at + k * steps[2] + t, panel_of[t] + before * terms_of[t] + row_of[term] * pitch + inside
            for lane in range(n):
                panels[unsigned(to + lane)] = weight[unsigned(here + lane * steps[1])] if lane < used else 0


@kernel
def panel_lane(part: int, lane_count: int, n: int) -> tuple[int, int, int]:
    """Lanes of all blocks before that of a vector of lanes, lanes of its own block, and lanes before it in that."""
    width = VECTORS * n
    block, inside = divmod(part * n, width)
    return block * width, min(width, (lane_count - block * width + n - 1) // n * n), inside


@parallel_kernel
def unpack_panels(
    tasks: int, panels: Array, out: Array, sums: int, lane_count: int, row_of: Array, each: int
) -> None:  # fmt: skip
    """out[group, lane, term] = sum over s of panels[s, group, block, row_of[term], lane], in the order of s.

    ``each`` is the distance of consecutive s, which are added up in the first.  A task is one vector of lanes.
    """
    n = lanes(out.itemsize)
    parts, terms = (lane_count + n - 1) // n, row_of.size
    for index in prange(tasks):
        task = signed(index)
        g, part = divmod(task, parts)
        used = min(n, lane_count - part * n)
        before, pitch, inside = panel_lane(part, lane_count, n)
        at = (g * parts * n + before) * terms + inside
        to = (g * lane_count + part * n) * terms
        for s in range(1, sums):
            for row in range(terms):
                for lane in range(n):
                    panels[unsigned(at + row * pitch + lane)] += panels[unsigned(at + s * each + row * pitch + lane)]
        squares = terms // n if used == n else 0
        gather_tile(panels, at, pitch, out, to, terms, row_of, 0, squares)
        for term in range(squares * n, terms):
            for lane in range(used):
                out[unsigned(to + lane * terms + term)] = panels[unsigned(at + row_of[term] * pitch + lane)]
