"""Packing: between the arrays of a user and what the register tiles read and write.

A *box* is the part of the input that a strip of output pixels needs, with its padding.  It lies channels-last, or plane by
plane where there are few channels.  Weights become *panels*, [group, block of lanes, term, lane], where a term is a pair of a
channel and a tap; gradients that a tile takes as vectors become [pixel, lane].  All arrays are flat; sizes and distances come
as tuples, along (batch, channels, depth, height, width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import linked_kernel, unsigned
from ..simd import (
    VECTORS,
    clear,
    compact,
    copy,
    copy_tile,
    gather_tile,
    lanes,
    line_parts,
    narrow_tile,
    pad_tile,
    scatter_edge_tile,
    scatter_tile,
    take_tile,
    transpose_edge_tile,
    transpose_lines_tile,
    transpose_tile,
)
from ..tasks import task
from .fields import Fields

__all__ = [
    "IMAGE",
    "PANEL",
    "SUMS",
    "pack_box",
    "pack_image",
    "pack_panel",
    "pack_strip",
    "transpose",
    "unpack_panel",
    "unpack_rows",
    "unpack_strip",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

IMAGE = Fields("Image", "shape:5 steps:5 left:3 box:5 box_steps:5 rows")
"""The shape of an image that is packed as a whole, its steps, the padding in front, the box and its steps, and rows of a task."""

PANEL = Fields("Panel", "pitch rows chunk depth taps lane_count weight_steps:4 weight_size")
"""Lanes and rows of a block's panel and depths of a chunk, then the depths in all, the taps, the lanes of a group, the distances
of groups, lanes, depths and taps in the weight, and its size."""

SUMS = Fields("Sums", "sums each lane_count terms pitch rows chunk")
"""How many panels are added up and their distance, the lanes, the terms, the pitch and the rows of a panel and the terms of a
task."""

read_image, read_panel, read_sums = IMAGE.reader(), PANEL.reader(), SUMS.reader()

EDGE_SHARE = 4
"""Numbers of a square, as a multiple of lanes, from which on it is turned over in vectors where it is not whole."""

CHANNELS_AHEAD = 6
"""Channels between fetching rows of their planes from memory and taking numbers of them: these rows are too short, and lie too
far apart, for a machine to foresee them."""


@linked_kernel
def transpose(
    source: Array, source_at: int, source_step: int, rows: int, columns: int, target: Array, target_at: int, target_step: int,
    streams: int,
) -> None:  # fmt: skip
    """target[k, m] = source[m, k] for m < rows, k < columns, in tiles as large as the vectors allow.

    If it ``streams``, these go to memory past the caches.
    """
    compact()
    n = lanes(source.itemsize)
    whole_columns, line = columns - columns % n, n * line_parts()
    in_lines = rows - rows % line if streams else 0
    for m in range(0, in_lines, line):
        transpose_lines_tile(
            source, source_at + m * source_step, source_step, target, target_at + m, target_step, whole_columns // n
        )
    for m in range(0, rows, n):
        used, here, to, done = min(n, rows - m), source_at + m * source_step, target_at + m, whole_columns
        if used < n:
            done = 0
        elif m >= in_lines:
            transpose_tile(source, here, source_step, target, to, target_step, whole_columns // n)
        rest = columns - done
        if min(rest, n) * used >= EDGE_SHARE * n:
            transpose_edge_tile(
                source, here + done, source_step, target, to + done * target_step, target_step, (rest + n - 1) // n, rest, used
            )  # fmt: skip
            continue
        for k in range(done, columns):
            for r in range(used):
                target[unsigned(to + k * target_step + r)] = source[unsigned(here + r * source_step + k)]


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@linked_kernel
def pack_box(
    x: Array, x_at: int, shape: Ints, steps: Ints, n0: int, z0: int, y0: int, x0: int, out: Array, out_at: int, box: Ints,
    box_steps: Ints,
) -> None:  # fmt: skip
    """Copy a box of images, ``box`` = (images, channels, depth, height, width) from pixel (n0, z0, y0, x0) on.

    What lies outside the images is padding: 0, or left as it is behind the last image.  Neighbours in planes may lie apart.
    """
    compact()
    N, _, D, H, W = shape
    _, C, BD, BH, BW = box
    pixel = box_steps[4]
    left = min(max(0, -x0), BW)  # the rows and columns that lie inside the image
    right = max(left, min(BW, W - x0))
    top = min(max(0, -y0), BH)
    bottom = max(top, min(BH, H - y0))
    columns, rows = right - left, bottom - top
    turned = box_steps[1] == 1 and steps[1] != 1
    apart = steps[1] != 1 and steps[4] != 1
    # What lies together, rows that follow each other, or is laid so, is turned over as one run of pixels.
    joined = turned and (apart or columns == W == steps[3])
    table = np.empty(rows * columns if joined else 0, np.int64)
    for row in range(rows if joined else 0):
        for k in range(columns):  # a division for each would take longer than to turn the numbers over
            table[row * columns + k] = row * BW + k
    for n in range(min(box[0], N - n0)):
        for bz in range(BD):
            inside = z0 + bz >= 0 and z0 + bz < D
            plane = x_at + (n0 + n) * steps[0] + (z0 + bz) * steps[2] + (y0 + top) * steps[3] + (x0 + left) * steps[4]
            to = out_at + n * box_steps[0] + bz * box_steps[2]
            if inside and box_steps[1] != 1 and (apart or steps[4] == 1):  # rows of planes remain such: a plane at once
                for c in range(C):
                    begin = to + c * box_steps[1]
                    clear(out, begin, begin + (BH - 1) * box_steps[3] + BW)
                    begin += top * box_steps[3] + left
                    if apart:
                        take(x, plane + c * steps[1], steps[3], steps[4], out, begin, box_steps[3], rows, columns, 0)
                    else:
                        copy_columns(x, plane + c * steps[1], steps[3], out, begin, box_steps[3], rows, columns, 0)
                continue
            for by in range(BH):
                row = to + by * box_steps[3]
                first, last = (left, right) if inside and by >= top and by < bottom else (BW, BW)
                at = plane + (by - top) * steps[3]
                if box_steps[1] == 1:  # a pixel's channels are neighbours
                    clear(out, row, row + first * pixel)
                    clear(out, row + last * pixel, row + BW * pixel)
                    if first < last and turned and not joined:
                        transpose(x, at, steps[1], C, columns, out, row + first * pixel, pixel, 0)
                    elif first < last and not turned and pixel == C and steps[4] == C:
                        copy(x, at, out, row + first * C, columns * C)
                    elif first < last and not turned:
                        copy_columns(x, at, steps[4], out, row + first * pixel, pixel, columns, C, 0)
                else:
                    for c in range(C):
                        begin = row + c * box_steps[1]
                        clear(out, begin, begin + first)
                        clear(out, begin + last, begin + BW)
                    if first < last:
                        transpose(x, at, steps[4], columns, C, out, row + first, box_steps[1], 0)
            if joined and inside and apart:
                scatter_apart(
                    x, plane, steps[1], steps[3], steps[4], C, columns, table, out, to + top * box_steps[3] + left * pixel, pixel
                )  # fmt: skip
            elif joined and inside:
                scatter(x, plane, steps[1], C, table, out, to + top * box_steps[3] + left * pixel, pixel)


@linked_kernel
def copy_columns(
    source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, rows: int, count: int,
    streams: int,
) -> None:  # fmt: skip
    """target[row*target_step + k] = source[row*source_step + k] for k < count, in vectors: the last ones overlap.

    If it ``streams``, these go to memory past the caches.
    """
    compact()
    n = lanes(source.itemsize)
    done = 0
    while count - done >= n:
        vectors = min((count - done) // n, VECTORS)
        copy_tile(source, source_at + done, source_step, target, target_at + done, target_step, rows, vectors, streams)
        done += vectors * n
    if n <= count and done < count:
        copy_tile(source, source_at + count - n, source_step, target, target_at + count - n, target_step, rows, 1, 0)
    elif done < count:
        narrow_tile(source, source_at, source_step, target, target_at, target_step, rows, count)


@linked_kernel
def scatter(
    source: Array, source_at: int, source_step: int, rows: int, table: Array, target: Array, target_at: int, target_step: int
) -> None:  # fmt: skip
    """target[table[k], m] = source[m, k] for m < rows and all k, in tiles as `transpose`."""
    compact()
    n = lanes(source.itemsize)
    for m in range(0, rows, n):
        used, here, to = min(n, rows - m), source_at + m * source_step, target_at + m
        squares = table.size // n if used == n else 0
        scatter_tile(source, here, source_step, target, to, target_step, squares, table, 0, n)
        done = squares * n
        rest = table.size - done
        if min(rest, n) * used >= EDGE_SHARE * n:
            scatter_edge_tile(
                source, here + done, source_step, target, to, target_step, (rest + n - 1) // n, table, done, rest, used
            )  # fmt: skip
            continue
        for k in range(done, table.size):
            for r in range(used):
                target[unsigned(to + table[k] * target_step + r)] = source[unsigned(here + r * source_step + k)]


@linked_kernel
def scatter_apart(
    source: Array, source_at: int, source_step: int, row_step: int, step: int, rows: int, columns: int, table: Array,
    target: Array, target_at: int, target_step: int,
) -> None:  # fmt: skip
    """`scatter` of planes whose numbers lie ``step`` apart, in rows of so many columns: they are laid together first."""
    compact()
    n = lanes(source.itemsize)
    size = table.size
    line = (size + n - 1) // n * n  # squares are whole: the last pixel comes again
    together = np.empty(n * line, source.dtype)
    places = np.empty(line, np.int64)
    for k in range(line):
        places[k] = table[min(k, size - 1)]
    for first in range(0, rows, n):
        used = min(n, rows - first)
        for m in range(used):
            take(
                source, source_at + (first + m) * source_step, row_step, step, together, m * line, columns, size // columns,
                columns, CHANNELS_AHEAD * source_step,
            )  # fmt: skip
            for k in range(size, line):
                together[m * line + k] = together[m * line + size - 1]
        scatter(together, 0, line, used, places, target, target_at + first, target_step)


@linked_kernel
def take(
    source: Array, source_at: int, row_step: int, step: int, target: Array, target_at: int, target_step: int, rows: int,
    columns: int, ahead: int,
) -> None:  # fmt: skip
    """target[row*target_step + k] = source[row*row_step + k*step] for k < columns."""
    compact()
    if step == 2 and columns > 0:
        take_tile(source, source_at, row_step, target, target_at, target_step, rows, columns, ahead)
    else:
        for row in range(rows):
            for k in range(columns):
                target[unsigned(target_at + row * target_step + k)] = source[
                    unsigned(source_at + row * row_step + k * step)
                ]


@task
def pack_image(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, out: Array, _: Array, __: Array
) -> None:
    """Pack some rows of an image."""
    t = read_image(numbers)
    left, box, box_steps = t.left, t.box, t.box_steps
    rest, band = divmod(task, (box[3] + t.rows - 1) // t.rows)
    n, z = divmod(rest, box[2])
    y = band * t.rows
    to = n * box_steps[0] + z * box_steps[2] + y * box_steps[3]
    some = (1, box[1], 1, min(t.rows, box[3] - y), box[4])
    pack_box(x, 0, t.shape, t.steps, n, z - left[0], y - left[1], -left[2], out, to, some, box_steps)


# ---------------------------------------------------------------------------------------------------------------------
# Pixels whose channels are lanes
# ---------------------------------------------------------------------------------------------------------------------


@linked_kernel
def pack_strip(
    x: Array, corner: int, shape: Ints, steps: Ints, sizes: Ints, along: Ints, valid: int, pitch: int, out: Array, out_at: int
) -> None:  # fmt: skip
    """Pack a block of lanes of a strip with ``sizes`` (images, planes, rows, columns), whose pixels lie as in one of ``along``.

    out[p, l] = lane l of pixel p for l < valid, 0 for l up to ``pitch``.
    """
    compact()
    images, z, y, columns = sizes
    rows, pixels = (
        (1, y * columns) if columns == shape[4] else (y, columns)
    )  # rows that follow each other are taken together
    for b in range(images):
        for plane in range(z):
            for row in range(rows):
                at = corner + b * steps[0] + plane * steps[2] + row * steps[3]
                to = out_at + ((b * along[1] + plane) * along[2] + row) * along[3] * pitch
                if steps[1] == 1 and valid == pitch:
                    copy_columns(x, at, steps[4], out, to, pitch, pixels, valid, 0)
                elif steps[1] == 1:
                    pad_tile(x, at, steps[4], out, to, pitch, pixels, valid)
                else:
                    transpose(x, at, steps[1], valid, pixels, out, to, pitch, 0)
                    for p in range(pixels if valid < pitch else 0):
                        clear(out, to + p * pitch + valid, to + (p + 1) * pitch)


@linked_kernel
def unpack_strip(
    pixels: Array, pixels_at: int, pitch: int, images: int, first: Ints, out_step: Ints, strip: Ints, valid: int, out: Array,
    channel: int, out_shape: Ints, out_steps: Ints, streams: int,
) -> None:  # fmt: skip
    """Copy a block of lanes of a strip from scratch to the output, or into its planes; ``first`` is its first pixel.

    If it ``streams``, it goes to memory past the caches.
    """
    compact()
    _, _, D, H, W = out_shape
    Z, Y, X = min(out_step[0] * strip[1], D), min(out_step[1] * strip[2], H), min(out_step[2] * strip[3], W)
    z, y, x = min(Z, D - first[0]), min(Y, H - first[1]), min(X, W - first[2])
    rows, run = (1, y * x) if x == W else (y, x)
    for b in range(images):
        for plane in range(z):
            for row in range(rows):
                here = pixels_at + ((b * Z + plane) * Y + row) * X * pitch
                there = channel + b * out_steps[0] + plane * out_steps[2] + row * out_steps[3]
                if out_steps[1] == 1:
                    copy_columns(pixels, here, pitch, out, there, out_steps[4], run, valid, streams)
                else:
                    transpose(pixels, here, pitch, run, valid, out, there, out_steps[1], streams)


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


@task
def pack_panel(
    task: int, room: Array, numbers: Array, tables: Array, weight: Array, panels: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """Write a chunk of the depths of a block of lanes into its panel.

    ``tables`` holds the row of a panel for each (depth, tap).  Blocks are packed by one task each: two cores that write to
    neighbouring lines of the cache wait for each other.
    """
    t = read_panel(numbers)
    pitch, chunk, depth, lane_count = t.pitch, t.chunk, t.depth, t.lane_count
    blocks, chunks = (lane_count + pitch - 1) // pitch, (depth + chunk - 1) // chunk
    g_block, number = divmod(task, chunks)
    first = number * chunk
    pack_depths(
        (depth, t.taps, lane_count), t.weight_steps, t.weight_size, tables, 0, weight, g_block, first,
        min(first + chunk, depth), panels, g_block * t.rows * pitch, pitch, blocks,
    )  # fmt: skip


@linked_kernel
def pack_depths(
    sizes: Ints, steps: Ints, size: int, tables: Array, rows_at: int, weight: Array, g_block: int, first: int, last: int,
    panels: Array, panel: int, pitch: int, blocks: int,
) -> None:  # fmt: skip
    """Pack the depths ``first`` to ``last`` - 1 of a block of lanes, zero where a vector has lanes that do not exist.

    ``sizes`` are the depths in all, the taps and the lanes of a group, ``steps`` the distances of groups, lanes, depths and taps
    in the weight, which has ``size`` numbers.  Rows are listed in the order of the terms in memory: tap by tap, if the weight
    lies channels-last, else depth by depth.  Squares of lanes are transposed, if that can be: where the terms, or the depths, of
    a lane follow each other, or the taps of neighbouring lanes; lanes that follow each other are copied.
    """
    compact()
    n = lanes(weight.itemsize)
    depths, T, lane_count = sizes
    group_step, lane_step, depth_step, tap_step = steps
    g, block = divmod(g_block, blocks)
    k_row, t_row = (T, 1) if tap_step == 1 else (1, depths)
    valid, copied = min(pitch, lane_count - block * pitch), 0
    if lane_step == 1 and valid >= n:
        vectors = valid // n
        copied = vectors * n
        for t in range(T):
            # Rows of a stage's depths lie evenly apart; those of two stages end elsewhere, and are copied one by one.
            at, count = rows_at + t * t_row, last - first
            row = tables[at + first * k_row]
            step = tables[at + (first + 1) * k_row] - row if count > 1 else 0
            each = count if tables[at + (last - 1) * k_row] == row + (count - 1) * step else 1
            for k in range(first, last, each):
                place = g * group_step + block * pitch + k * depth_step + t * tap_step
                row = panel + tables[at + k * k_row] * pitch
                copy_tile(weight, place, depth_step, panels, row, step * pitch, each, vectors, 0)
    for lane in range(copied, valid, n):
        used = min(n, valid - lane)
        here, to = g * group_step + (block * pitch + lane) * lane_step, panel + lane
        done = first * T
        if used == n and depth_step == T and tap_step == 1:
            squares = (last - first) * T // n
            scatter_tile(weight, here + done, lane_step, panels, to, pitch, squares, tables, rows_at + done, n)
            done += squares * n
        elif used == n and depth_step == 1:
            squares = (last - first) // n
            for t in range(T):
                scatter_tile(
                    weight, here + first + t * tap_step, lane_step, panels, to, pitch, squares, tables,
                    rows_at + first + t * t_row, n,
                )  # fmt: skip
            done += squares * n * T
        elif used == n and lane_step == T and tap_step == 1 and T > 1:
            for k in range(first, last):
                for t in range(0, T, n):
                    place = here + k * depth_step + t
                    if place + (n - 1) * T + n <= size:  # a square reads beyond the last tap
                        scatter_tile(weight, place, T, panels, to, pitch, 1, tables, rows_at + k * T + t, min(n, T - t))
                        done += min(n, T - t)
        for term in range(done, last * T):
            k, t = divmod(term, T)
            row = to + tables[rows_at + k * k_row + t * t_row] * pitch
            for m in range(n):
                panels[unsigned(row + m)] = (
                    weight[unsigned(here + k * depth_step + t * tap_step + m * lane_step)] if m < used else 0
                )


@task
def unpack_panel(
    task: int, room: Array, numbers: Array, tables: Array, panels: Array, out: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """out[group, lane, term] = sum over s of panels[s, group, block, row of term, lane], in the order of s.

    A task takes some terms of a block.  The sums are left in the first s.
    """
    n = lanes(out.itemsize)
    t = read_sums(numbers)
    lane_count, terms, pitch, chunk = t.lane_count, t.terms, t.pitch, t.chunk
    g_block, part = divmod(task, (terms + chunk - 1) // chunk)
    g, block = divmod(g_block, (lane_count + pitch - 1) // pitch)
    first, valid = part * chunk, min(pitch, lane_count - block * pitch)
    taken, panel = min(chunk, terms - first), g_block * t.rows * pitch
    for s in range(1, t.sums):
        for term in range(first, first + taken):
            row = panel + tables[term] * pitch
            for at in range(row, row + valid, n):
                for lane in range(n):
                    panels[unsigned(at + lane)] += panels[unsigned(at + s * t.each + lane)]
    to = (g * lane_count + block * pitch) * terms + first
    unpack_rows(panels, panel, pitch, valid, out, to, terms, tables, first, taken)


@linked_kernel
def unpack_rows(
    panel: Array, panel_at: int, pitch: int, valid: int, out: Array, out_at: int, out_step: int, tables: Array, rows_at: int,
    terms: int,
) -> None:  # fmt: skip
    """out[lane, t] = panel[row of term t, lane] for the first ``valid`` lanes of a panel and ``terms`` terms."""
    compact()
    n = lanes(out.itemsize)
    for lane in range(0, valid, n):
        used, here, there = min(n, valid - lane), panel_at + lane, out_at + lane * out_step
        squares = terms // n if used == n else 0
        gather_tile(panel, here, pitch, out, there, out_step, squares, tables, rows_at)
        for t in range(squares * n, terms):
            for m in range(used):
                out[unsigned(there + m * out_step + t)] = panel[unsigned(here + tables[rows_at + t] * pitch + m)]
