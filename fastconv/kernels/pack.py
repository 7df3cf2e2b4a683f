"""Packing: between the arrays of a user and what the register tiles read and write.

A *box* is the part of the input that a strip of output pixels needs, with its padding.  It lies channels-last, or plane by
plane where there are few channels.  Weights become
*panels*, [group, block of lanes, term, lane]; gradients that a tile takes as vectors become [pixel, lane].  All arrays are
flat; sizes and distances come as tuples, along (batch, channels, depth, height, width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed, unsigned
from ..simd import VECTORS, lanes, transpose_tile

__all__ = [
    "pack_box",
    "pack_boxes",
    "pack_boxes_tasks",
    "pack_lanes",
    "pack_panels",
    "pack_panels_tasks",
    "unpack_lanes",
    "unpack_panels",
    "unpack_panels_tasks",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]


@kernel
def copy(source: Array, source_at: int, target: Array, target_at: int, count: int) -> None:
    """target[k] = source[k] for k < count."""
    for k in range(count):
        target[unsigned(target_at + k)] = source[unsigned(source_at + k)]


@kernel
def clear(target: Array, first: int, last: int) -> None:
    """target[k] = 0 for first <= k < last."""
    for k in range(first, last):
        target[unsigned(k)] = 0


@kernel
def transpose(
    source: Array, source_at: int, source_step: int, rows: int, columns: int, target: Array, target_at: int, target_step: int
) -> None:  # fmt: skip
    """target[k, m] = source[m, k] for m < rows, k < columns, in tiles as large as the vectors allow."""
    n = lanes(source.itemsize)
    whole_rows, whole_columns = rows - rows % n, columns - columns % n
    if whole_rows > 0 and whole_columns > 0:
        order = np.arange(n)
        for m in range(0, whole_rows, n):
            for k in range(0, whole_columns, n):
                transpose_tile(
                    source, source_at + m * source_step + k, order, 0, source_step,
                    target, target_at + k * target_step + m, order, 0, target_step,
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
    N, C, D, H, W = shape
    _, _, BD, BH, BW = box
    lower = min(max(0, -x0), BW)  # the columns that lie inside the image
    upper = max(lower, min(BW, W - x0))
    pixel = box_steps[4]
    for n in range(min(box[0], N - n0)):
        for bz in range(BD):
            for by in range(BH):
                z, y = z0 + bz, y0 + by
                inside = z >= 0 and z < D and y >= 0 and y < H
                first, last = (lower, upper) if inside else (BW, BW)
                at = (n0 + n) * steps[0] + z * steps[2] + y * steps[3] + (x0 + lower) * steps[4]
                to = out_at + n * box_steps[0] + bz * box_steps[2] + by * box_steps[3]
                if box_steps[1] == 1:  # a pixel's channels are neighbours
                    clear(out, to, to + first * pixel)
                    clear(out, to + last * pixel, to + BW * pixel)
                    if inside and steps[1] == 1 and pixel == C:
                        copy(x, at, out, to + first * C, (last - first) * C)
                    elif inside and steps[1] == 1:
                        for column in range(first, last):
                            copy(x, at + (column - first) * C, out, to + column * pixel, C)
                    elif inside:
                        transpose(x, at, steps[1], C, last - first, out, to + first * pixel, pixel)
                else:
                    for c in range(C):
                        row = to + c * box_steps[1]
                        clear(out, row, row + first)
                        clear(out, row + last, row + BW)
                        if inside:
                            copy(x, at + c * steps[1], out, row + first, last - first)


@parallel_kernel
def pack_boxes(
    tasks: int, x: Array, shape: Ints, steps: Ints, left: Ints, out: Array, box: Ints, box_steps: Ints
) -> None:  # fmt: skip
    """All tasks of `pack_boxes_tasks`, shared among the threads."""
    for task in prange(tasks):
        pack_boxes_tasks(signed(task), signed(task) + 1, x, shape, steps, left, out, box, box_steps)


@kernel
def pack_boxes_tasks(
    begin: int, end: int, x: Array, shape: Ints, steps: Ints, left: Ints, out: Array, box: Ints, box_steps: Ints
) -> None:  # fmt: skip
    """Pack whole images with the padding ``left`` in front.  A task is a row of an image."""
    one_row = (1, box[1], 1, 1, box[4])
    for task in range(begin, end):
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
    if lane_step == 1:
        for p in range(pixels):
            copy(x, at + p * pixel_step, out, out_at + p * pitch, valid)
    else:
        transpose(x, at, lane_step, valid, pixels, out, out_at, pitch)
    if valid < pitch:
        for p in range(pixels):
            clear(out, out_at + p * pitch + valid, out_at + (p + 1) * pitch)


@kernel
def unpack_lanes(
    pixels_of: Array, pixels_at: int, pitch: int, pixels: int, valid: int, out: Array, at: int, lane_step: int
) -> None:  # fmt: skip
    """out[at + l*lane_step + p] = pixels_of[p, l] for l < valid."""
    transpose(pixels_of, pixels_at, pitch, pixels, valid, out, at, lane_step)


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


@parallel_kernel
def pack_panels(
    tasks: int, weight: Array, steps: Ints, depth: int, chunk: int, T: int, lane_count: int, panels: Array, panel_of: Array,
    terms_of: Array, row_of: Array,
) -> None:  # fmt: skip
    """All tasks of `pack_panels_tasks`, shared among the threads."""
    for task in prange(tasks):
        pack_panels_tasks(
            signed(task), signed(task) + 1, weight, steps, depth, chunk, T, lane_count, panels, panel_of, terms_of, row_of,
        )  # fmt: skip


@kernel
def pack_panels_tasks(
    begin: int, end: int, weight: Array, steps: Ints, depth: int, chunk: int, T: int, lane_count: int, panels: Array,
    panel_of: Array, terms_of: Array, row_of: Array,
) -> None:  # fmt: skip
    """Write panels [group, block of lanes, term, lane], zero where a vector has lanes that do not exist.

    A term is a pair of a depth k and a tap t.  ``steps`` are the distances of (groups, lanes, depths) in the weight; a tap's
    panels begin at ``panel_of[t]``, have ``terms_of[t]`` rows each, of which ``row_of[k*T + t]`` is the term's; one with row -1
    has none.  A task is a chunk of depths.
    """
    n = lanes(weight.itemsize)
    parts, chunks = (lane_count + n - 1) // n, (depth + chunk - 1) // chunk
    order = np.arange(n)
    for task in range(begin, end):
        g, number = divmod(task, chunks)
        first, last = number * chunk, min((number + 1) * chunk, depth)
        for part in range(parts):
            pack_lanes_of_panels(
                weight, steps, g, part, first, last, T, lane_count, panels, panel_of, terms_of, row_of, order
            )  # fmt: skip


@kernel
def pack_lanes_of_panels(
    weight: Array, steps: Ints, g: int, part: int, first: int, last: int, T: int, lane_count: int, panels: Array,
    panel_of: Array, terms_of: Array, row_of: Array, order: Array,
) -> None:  # fmt: skip
    """One vector of lanes, of the depths from ``first`` to ``last`` - 1: in squares that are transposed, if it can be."""
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
        while done + n <= last * T:
            transpose_tile(weight, at + done, order, 0, steps[1], panels, panel, row_of, done, pitch)
            done += n
    elif (
        together and steps[1] == T and n <= T
    ):  # the taps of neighbouring lanes do: the last square may overlap another
        for k in range(first, last):
            for t in range(0, T, n):
                tap = min(t, T - n)
                transpose_tile(weight, at + k * steps[2] + tap, order, 0, T, panels, panel, row_of, k * T + tap, pitch)
        done = last * T
    for term in range(done, last * T):
        k, t = divmod(term, T)
        if row_of[term] >= 0:
            here, to = at + k * steps[2] + t, panel_of[t] + before * terms_of[t] + row_of[term] * pitch + inside
            if used == n and steps[1] == 1:
                copy(weight, here, panels, to, n)
            else:
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
    tasks: int, panels: Array, sums: int, lane_count: int, terms: int, row_of: Array, each: int, out: Array
) -> None:  # fmt: skip
    """All tasks of `unpack_panels_tasks`, shared among the threads."""
    for task in prange(tasks):
        unpack_panels_tasks(signed(task), signed(task) + 1, panels, sums, lane_count, terms, row_of, each, out)


@kernel
def unpack_panels_tasks(
    begin: int, end: int, panels: Array, sums: int, lane_count: int, terms: int, row_of: Array, each: int, out: Array
) -> None:  # fmt: skip
    """out[group, lane, term] = sum over s of panels[s, group, block, row_of[term], lane], in the order of s.

    ``each`` is the distance of consecutive s, which are added up in the first.  A task is one vector of lanes.
    """
    n = lanes(out.itemsize)
    parts = (lane_count + n - 1) // n
    order = np.arange(n)
    for task in range(begin, end):
        g, part = divmod(task, parts)
        used = min(n, lane_count - part * n)
        before, pitch, inside = panel_lane(part, lane_count, n)
        at = (g * parts * n + before) * terms + inside
        to = (g * lane_count + part * n) * terms
        for s in range(1, sums):
            for row in range(terms):
                for lane in range(n):
                    panels[unsigned(at + row * pitch + lane)] += panels[unsigned(at + s * each + row * pitch + lane)]
        done = 0
        while used == n and done + n <= terms:
            transpose_tile(panels, at, row_of, done, pitch, out, to + done, order, 0, terms)
            done += n
        for term in range(done, terms):
            for lane in range(used):
                out[unsigned(to + lane * terms + term)] = panels[unsigned(at + row_of[term] * pitch + lane)]
