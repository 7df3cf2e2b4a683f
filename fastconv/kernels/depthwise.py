"""Depthwise convolution, where every channel is a group with one filter: lanes are channels, and nothing is summed over them.

The tasks are those of `fastconv.kernels.direct`, with tiles that slide along a row of pixels: `gather_depthwise` computes
equations (1) and (2), `correlate_depthwise` equation (3).  A task takes one block of channels, and packs its box of a strip.
Rows of taps that lie in the padding are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..simd import SPAN, VECTORS, clear, lanes, slide_tile, sum_slide_tile
from ..tasks import task
from .direct import OWN, place_strip
from .pack import five, four, pack_box, pack_strip, three, unpack_strip

__all__ = ["CORRELATE_DEPTHWISE", "GATHER_DEPTHWISE", "correlate_depthwise", "gather_depthwise"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

GATHER_DEPTHWISE = ("channels", "pitch", "taps", "phases")
"""Channels, numbers in a row of a panel and of a box, taps of the weight, and phases."""

CORRELATE_DEPTHWISE = (
    "channels", "pitch", "taps", "per_chunk", "each", "reads", "row_taps", "stride", "lines", "lines_at"
)  # fmt: skip
"""Channels, numbers in a row of a panel and of a box, taps of the weight, strips of a chunk, the distance of chunks' panels,
whether gradients are read as they lie, taps of a line and the stride that a tile slides with, lines of taps, and where tables
hold for each its offset in the box, and the planes and rows of the input that it leads to from an output's."""


@task
def gather_depthwise(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, panels: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, lane] = start[lane] + sum over taps t of panels[lane, t] * x[source of pixel + offset of tap t, lane]."""
    channels, pitch, taps, phases = numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3]
    shape, steps, box, box_steps = five(numbers, 0), five(numbers, 5), five(numbers, 10), five(numbers, 15)
    strip, left, x_step = four(numbers, 20), three(numbers, 28), three(numbers, 31)
    out_shape, out_steps, out_step = five(numbers, 40), five(numbers, 45), three(numbers, 50)
    n = lanes(out.itemsize)
    width = VECTORS * n
    blocks = (channels + width - 1) // width
    number, block = divmod(task, blocks)
    n0, z0, y0, x0, _ = place_strip(number, numbers, tables)
    valid = min(width, channels - block * width)
    images, box_size, out_last = min(strip[0], out_shape[0] - n0), numbers[35], out_steps[1] == 1
    y_in = x_step[1] * y0 - left[1]
    pack_box(
        x, block * width * steps[1], shape, steps, n0, x_step[0] * z0 - left[0], y_in, x_step[2] * x0 - left[2], room, 0,
        (box[0], valid, box[2], box[3], box[4]), box_steps,
    )  # fmt: skip
    z_out, y_out, x_out = out_step[0] * z0, out_step[1] * y0, out_step[2] * x0
    if out_last:
        corner = n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4] + block * width
        target, image, plane, row, column = corner, out_steps[0], out_steps[2], out_steps[3], out_steps[4]
    else:
        Y, X = min(out_step[1] * strip[2], out_shape[3]), min(out_step[2] * strip[3], out_shape[4])
        target, column = box_size, width
        row = X * column
        plane = Y * row
        image = min(out_step[0] * strip[1], out_shape[2]) * plane
    pixels = out if out_last else room
    for p in range(phases):
        # A phase: how many along each axis, its first pixel, taps of a line and the stride that the tile slides with, lines,
        # their offsets, the rows of the input that they lead to, or -1, its terms, their offsets, and where its panel begins.
        at = numbers[53] + 13 * p
        Z, Y, X = (
            min(strip[1], tables[at] - z0), min(strip[2], tables[at + 1] - y0), min(strip[3], tables[at + 2] - x0)
        )  # fmt: skip
        if Z <= 0 or Y <= 0 or X <= 0:
            continue
        row_taps, stride, lines, rows_at = tables[at + 6], tables[at + 7], tables[at + 8], tables[at + 10]
        to = target + tables[at + 3] * plane + tables[at + 4] * row + tables[at + 5] * column
        panel = block * taps * pitch + tables[at + 12] * pitch
        for index in range(images * Z * Y):
            rest, y = divmod(index, Y)
            b, z = divmod(rest, Z)
            first, last = 0, lines
            if rows_at >= 0:
                while first < last and y_in + x_step[1] * y + tables[rows_at + first] < 0:
                    first += 1
                while first < last and y_in + x_step[1] * y + tables[rows_at + last - 1] >= shape[3]:
                    last -= 1
            source = b * box_steps[0] + z * x_step[0] * box_steps[2] + y * x_step[1] * box_steps[3]
            end = to + b * image + z * out_step[0] * plane + y * out_step[1] * row
            for lane in range(0, valid, n):
                slides = X >= SPAN
                slide_tile(
                    row_taps if slides else 1, stride if slides else 1, panels, panel + first * row_taps * pitch + lane, pitch,
                    tables, tables[at + 9] + first if slides else tables[at + 11] + first * row_taps,
                    last - first if slides else (last - first) * row_taps, room, source + lane,
                    box_steps[4] if slides and row_taps > 1 else x_step[2] * box_steps[4], pixels, end + lane,
                    out_step[2] * column, X, start, block * width + lane, min(n, valid - lane) if out_last else n,
                )  # fmt: skip
    if not out_last:
        unpack_strip(
            room, box_size, width, images, (z_out, y_out, x_out), out_step, (strip[0], strip[1], strip[2], strip[3]), valid, out,
            n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4] + block * width * out_steps[1],
            out_shape, out_steps,
        )  # fmt: skip


@task
def correlate_depthwise(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, panels: Array, _: Array
) -> None:  # fmt: skip
    """panels[s, lane, t] = sum over the pixels of chunk s of gradient[pixel, lane] * x[source of pixel + offset of tap t, lane].

    A task is a chunk of consecutive strips and a block of channels.
    """
    channels, pitch, taps, per_chunk, each, reads, row_taps, stride, lines, lines_at = (
        numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3], numbers[OWN + 4], numbers[OWN + 5],
        numbers[OWN + 6], numbers[OWN + 7], numbers[OWN + 8], numbers[OWN + 9],
    )  # fmt: skip
    shape, steps, box, box_steps = five(numbers, 0), five(numbers, 5), five(numbers, 10), five(numbers, 15)
    strip, counts, left, x_step = four(numbers, 20), four(numbers, 24), three(numbers, 28), three(numbers, 31)
    out_shape, out_steps, box_size = five(numbers, 40), five(numbers, 45), numbers[35]
    n = lanes(panels.itemsize)
    width = VECTORS * n
    blocks = (channels + width - 1) // width
    s, block = divmod(task, blocks)
    valid = min(width, channels - block * width)
    whole = (valid + n - 1) // n * n
    panel = s * each + block * taps * pitch
    clear(panels, panel, panel + taps * pitch)
    strips = counts[0] * counts[1] * counts[2] * counts[3]
    vectors = gradient if reads else room
    for number in range(s * per_chunk, min((s + 1) * per_chunk, strips)):
        n0, z0, y0, x0, _kind = place_strip(number, numbers, tables)
        z_in, y_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1]
        pack_box(
            x, block * width * steps[1], shape, steps, n0, z_in, y_in, x_step[2] * x0 - left[2], room, 0,
            (box[0], valid, box[2], box[3], box[4]), box_steps,
        )  # fmt: skip
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
                        row_taps, stride, room, source + lane, box_steps[4] if row_taps > 1 else x_step[2] * box_steps[4],
                        x_step[1] * box_steps[3], vectors, lane_at + lane, column, row, last - first, X, panels,
                        panel + line * row_taps * pitch + lane, pitch,
                    )  # fmt: skip
