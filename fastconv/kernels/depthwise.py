"""Depthwise convolution, where every channel is a group with one filter: lanes are channels, and nothing is summed over them.

The tasks are those of `fastconv.kernels.direct`, with tiles that slide along a row of pixels: `gather_depthwise` computes
equations (1) and (2), `correlate_depthwise` equation (3).  A task takes a block of channels of a strip, and packs its box: one
vector of channels behind the other, so that a tile finds neighbouring pixels in neighbouring lines of the cache.  Rows of taps
that lie in the padding are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, unsigned
from ..simd import SPAN, clear, compact, copy_tile, lanes, slide_tile, sum_slide_tile
from ..tasks import task
from .direct import OWN, place_strip
from .pack import five, four, pack_box, pack_strip, three, unpack_strip

__all__ = ["CORRELATE_DEPTHWISE", "GATHER_DEPTHWISE", "correlate_depthwise", "gather_depthwise"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

GATHER_DEPTHWISE = ("channels", "width", "taps", "phases")
"""Channels, those of a block, taps of the weight, and phases."""

CORRELATE_DEPTHWISE = (
    "channels", "width", "taps", "per_chunk", "each", "reads", "row_taps", "stride", "lines", "lines_at"
)  # fmt: skip
"""Channels, those of a block, taps of the weight, strips of a chunk, the distance of chunks' panels, whether gradients are read
as they lie, taps of a line and the stride that a tile slides with, lines of taps, and where tables hold for each its offset in
the box, and the planes and rows of the input that it leads to from an output's."""


@kernel
def pack_vectors(
    numbers: Array, x: Array, x_at: int, n0: int, z0: int, y0: int, x0: int, valid: int, room: Array
) -> None:
    """Pack the first ``valid`` channels of a box from pixel (n0, z0, y0, x0) on: one box for each vector of them."""
    compact()
    n = lanes(x.itemsize)
    shape, steps, box, box_steps = five(numbers, 0), five(numbers, 5), five(numbers, 10), five(numbers, 15)
    size = box_steps[1]
    N, _, D, H, W = shape
    _, _, BD, BH, BW = box
    if steps[1] != 1:
        for lane in range(0, valid, n):
            one = (box[0], min(n, valid - lane), BD, BH, BW)
            one_steps = (box_steps[0], 1, box_steps[2], box_steps[3], box_steps[4])
            pack_box(x, x_at + lane * steps[1], shape, steps, n0, z0, y0, x0, room, lane // n * size, one, one_steps)
        return
    left = min(max(0, -x0), BW)
    right = max(left, min(BW, W - x0))
    for index in range(min(box[0], N - n0) * BD * BH):
        rest, by = divmod(index, BH)
        b, bz = divmod(rest, BD)
        inside = z0 + bz >= 0 and z0 + bz < D and y0 + by >= 0 and y0 + by < H
        first, last = (left, right) if inside else (BW, BW)
        at = x_at + (n0 + b) * steps[0] + (z0 + bz) * steps[2] + (y0 + by) * steps[3] + (x0 + left) * steps[4]
        to = b * box_steps[0] + bz * box_steps[2] + by * box_steps[3]
        vectors = valid // n
        for lane in range(0, valid, n):
            plane = to + lane // n * size
            clear(room, plane, plane + first * n)
            clear(room, plane + last * n, plane + BW * n)
            if lane + n > valid:
                for column in range(last - first):
                    for k in range(valid - lane):
                        room[unsigned(plane + (first + column) * n + k)] = x[
                            unsigned(at + column * steps[4] + lane + k)
                        ]
        for column in range(last - first):  # pixel by pixel, as they lie
            copy_tile(x, at + column * steps[4], n, room, to + (first + column) * n, size, vectors, 1)


@kernel
def spread_strip(
    pixels: Array, pixels_at: int, size: int, images: int, first: Ints, out_step: Ints, strip: Ints, valid: int, out: Array,
    channel: int, out_shape: Ints, out_steps: Ints,
) -> None:  # fmt: skip
    """Copy a strip's outputs, vectors of channels ``size`` apart, to pixels whose channels lie together."""
    compact()
    n = lanes(out.itemsize)
    _, _, D, H, W = out_shape
    Z, Y, X = min(out_step[0] * strip[1], D), min(out_step[1] * strip[2], H), min(out_step[2] * strip[3], W)
    z, y, x = min(Z, D - first[0]), min(Y, H - first[1]), min(X, W - first[2])
    whole, vectors = valid // n * n, valid // n
    for index in range(images * z * y):
        rest, row = divmod(index, y)
        b, plane = divmod(rest, z)
        here = pixels_at + ((b * Z + plane) * Y + row) * X * n
        there = channel + b * out_steps[0] + plane * out_steps[2] + row * out_steps[3]
        for p in range(x):
            copy_tile(pixels, here + p * n, size, out, there + p * out_steps[4], n, vectors, 1)
            for lane in range(whole, valid):
                out[unsigned(there + p * out_steps[4] + lane)] = pixels[
                    unsigned(here + vectors * size + p * n + lane - whole)
                ]


@task
def gather_depthwise(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, panels: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, lane] = start[lane] + sum over taps t of panels[lane, t] * x[source of pixel + offset of tap t, lane].

    What is less than the floor, the last number of ``start``, becomes that.
    """
    channels, width, taps, phases = numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3]
    shape, steps, box_steps = five(numbers, 0), five(numbers, 5), five(numbers, 15)
    strip, left, x_step = four(numbers, 20), three(numbers, 28), three(numbers, 31)
    out_shape, out_steps, out_step = five(numbers, 40), five(numbers, 45), three(numbers, 50)
    n, size = lanes(out.itemsize), box_steps[1]
    blocks = (channels + width - 1) // width
    number, block = divmod(task, blocks)
    floor = blocks * width + 1
    n0, z0, y0, x0, _ = place_strip(number, numbers, tables)
    valid = min(width, channels - block * width)
    images, box_size, out_last = min(strip[0], out_shape[0] - n0), numbers[35], out_steps[1] == 1
    y_in = x_step[1] * y0 - left[1]
    pack_vectors(
        numbers, x, block * width * steps[1], n0, x_step[0] * z0 - left[0], y_in, x_step[2] * x0 - left[2], valid, room
    )  # fmt: skip
    z_out, y_out, x_out = out_step[0] * z0, out_step[1] * y0, out_step[2] * x0
    # Results are written to scratch, one vector of channels behind the other.
    Y_out, X_out = min(out_step[1] * strip[2], out_shape[3]), min(out_step[2] * strip[3], out_shape[4])
    plane = Y_out * X_out * n
    image = min(out_step[0] * strip[1], out_shape[2]) * plane
    for p in range(phases):
        # A phase: how many along each axis, its first pixel, taps of a line and the stride that the tile slides with, lines,
        # their offsets, the rows of the input that they lead to, or -1, its terms, their offsets, and where its panel begins.
        at = numbers[53] + 13 * p
        Z, Y, X = (
            min(strip[1], tables[at] - z0), min(strip[2], tables[at + 1] - y0), min(strip[3], tables[at + 2] - x0)
        )  # fmt: skip
        if Z <= 0 or Y <= 0 or X <= 0:
            continue
        row_taps, stride, lines, lines_at = tables[at + 6], tables[at + 7], tables[at + 8], tables[at + 9]
        if X < SPAN and row_taps > 1:
            row_taps, stride, lines, lines_at = 1, 1, lines * row_taps, tables[at + 11]
        met = tables[at + 10] if row_taps > 1 or lines == tables[at + 8] else -1
        x_column = box_steps[4] if row_taps > 1 else x_step[2] * box_steps[4]
        to = box_size + tables[at + 3] * plane + (tables[at + 4] * X_out + tables[at + 5]) * n
        panel = (block * taps + tables[at + 12]) * width
        for lane in range(0, valid, n):
            for index in range(images * Z):
                b, z = divmod(index, Z)
                source = b * box_steps[0] + z * x_step[0] * box_steps[2] + lane // n * size
                end = to + (lane // n * strip[0] + b) * image + z * out_step[0] * plane
                y = 0
                while y < Y:
                    first, last, rows = met_lines(tables, met, lines, y_in + x_step[1] * y, x_step[1], shape[3], Y - y)
                    slide_tile(
                        row_taps, stride, panels, panel + first * row_taps * width + lane, width, tables, lines_at + first,
                        last - first, room, source + y * x_step[1] * box_steps[3], x_column, x_step[1] * box_steps[3], room,
                        end + y * out_step[1] * X_out * n, out_step[2] * n, out_step[1] * X_out * n, X, rows, start,
                        block * width + lane, floor,
                    )  # fmt: skip
                    y += rows
    first_pixel = (z_out, y_out, x_out)
    corner = n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4]
    corner += block * width * out_steps[1]
    if out_last:
        spread_strip(
            room, box_size, strip[0] * image, images, first_pixel, out_step, strip, valid, out, corner, out_shape, out_steps
        )  # fmt: skip
    else:
        for lane in range(0, valid, n):
            unpack_strip(
                room, box_size + lane // n * strip[0] * image, n, images, first_pixel, out_step, strip, min(n, valid - lane), out,
                corner + lane * out_steps[1], out_shape, out_steps,
            )  # fmt: skip


@kernel
def met_lines(tables: Array, met: int, lines: int, row: int, step: int, height: int, most: int) -> tuple[int, int, int]:
    """Find the lines, first and last, that lead from a row into the input, and how many rows of outputs meet the same.

    From ``met`` on ``tables`` holds the row that each line leads to, from ``row``; if it is negative, all lines are taken.
    """
    compact()
    if met < 0 or lines == 0:
        return 0, lines, most
    first, last = 0, lines
    while first < last and row + tables[met + first] < 0:
        first += 1
    while first < last and row + tables[met + last - 1] >= height:
        last -= 1
    if first > 0 or last < lines:
        return first, last, 1
    return first, last, min(most, (height - 1 - row - tables[met + last - 1]) // step + 1)


@task
def correlate_depthwise(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, panels: Array, _: Array
) -> None:  # fmt: skip
    """panels[s, lane, t] = sum over the pixels of chunk s of gradient[pixel, lane] * x[source of pixel + offset of tap t, lane].

    A task is a chunk of consecutive strips and a block of channels.
    """
    channels, width, taps, per_chunk, each, reads, row_taps, stride, lines, lines_at = (
        numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3], numbers[OWN + 4], numbers[OWN + 5],
        numbers[OWN + 6], numbers[OWN + 7], numbers[OWN + 8], numbers[OWN + 9],
    )  # fmt: skip
    shape, steps, box_steps = five(numbers, 0), five(numbers, 5), five(numbers, 15)
    strip, counts, left, x_step = four(numbers, 20), four(numbers, 24), three(numbers, 28), three(numbers, 31)
    out_shape, out_steps, box_size = five(numbers, 40), five(numbers, 45), numbers[35]
    n, size = lanes(panels.itemsize), box_steps[1]
    s, block = divmod(task, (channels + width - 1) // width)
    valid = min(width, channels - block * width)
    whole = (valid + n - 1) // n * n
    panel = s * each + block * taps * width
    clear(panels, panel, panel + taps * width)
    strips = counts[0] * counts[1] * counts[2] * counts[3]
    vectors = gradient if reads else room
    for number in range(s * per_chunk, min((s + 1) * per_chunk, strips)):
        n0, z0, y0, x0, _kind = place_strip(number, numbers, tables)
        z_in, y_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1]
        pack_vectors(numbers, x, block * width * steps[1], n0, z_in, y_in, x_step[2] * x0 - left[2], valid, room)
        images, Z, Y, X = (
            min(strip[0], out_shape[0] - n0), min(strip[1], out_shape[2] - z0), min(strip[2], out_shape[3] - y0),
            min(strip[3], out_shape[4] - x0),
        )  # fmt: skip
        corner = (
            n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4] + block * width * out_steps[1]
        )
        image, plane, row, column = out_steps[0], out_steps[2], out_steps[3], out_steps[4]
        if not reads:
            pack_strip(gradient, corner, out_shape, out_steps, (images, Z, Y, X), strip, valid, whole, room, box_size)
            corner, column = box_size, whole
            row = strip[3] * column
            plane = strip[2] * row
            image = strip[1] * plane
        for line in range(lines):
            at = lines_at + 3 * line
            # Outputs whose row of the input exists.
            first, last = 0, Y
            while first < last and y_in + x_step[1] * first + tables[at + 2] < 0:
                first += 1
            while first < last and y_in + x_step[1] * (last - 1) + tables[at + 2] >= shape[3]:
                last -= 1
            for index in range(images * Z):
                b, z = divmod(index, Z)
                if z_in + x_step[0] * z + tables[at + 1] < 0 or z_in + x_step[0] * z + tables[at + 1] >= shape[2]:
                    continue
                source = b * box_steps[0] + z * x_step[0] * box_steps[2] + first * x_step[1] * box_steps[3] + tables[at]
                lane_at = corner + b * image + z * plane + first * row
                for lane in range(0, whole, n):
                    sum_slide_tile(
                        row_taps, stride, room, source + lane // n * size,
                        box_steps[4] if row_taps > 1 else x_step[2] * box_steps[4],
                        x_step[1] * box_steps[3], vectors, lane_at + lane, column, row, last - first, X, panels,
                        panel + line * row_taps * width + lane, width,
                    )  # fmt: skip
