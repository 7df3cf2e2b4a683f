"""Depthwise convolution through Fourier transforms of rows: from 18 products a row of seven taps where there are 49.

Columns of tiles, each SPAN outputs wide, or two times that, go down an image.  A tile's rows of the input are evaluated
(`fastconv.dft`), once for all rows of outputs that meet them; at each of the values the rows of taps are summed over, and from
the sums follow the outputs.
Rows and columns that do not exist are left out, so that padding is not stored.

A task takes a vector of channels at a time, and all images of its strip.  Everything but these then stays in the first-level
cache: the values of the taps, and of two times seven rows, where sums take the place of what they are made of.  Where images lie
channels-last they are read and written as they lie.  The pixels of a vector lie far apart then, and memory gives such lines
slowly, so that those of the next vectors are fetched meanwhile, two lines of each pixel at a time.  Else a task packs its box, as
`fastconv.kernels.depthwise` does.

`gather_fourier` computes equations (1) and (2).  In equation (3) rows of gradients stand for those of taps, and rows of taps for
the outputs: `correlate_fourier` adds up products of all tiles at the values, and makes taps of these at the end.

A task's numbers begin with `fastconv.kernels.direct.STRIPS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dft import EDGE, INPUTS, SPAN, TAPS
from ..jit import inlined, unsigned
from ..simd import (
    FETCHED_LINES,
    clear,
    compact,
    evaluate_taps_tile,
    evaluate_tile,
    interpolate_tile,
    lanes,
    line_parts,
    multiply_tile,
)
from ..tasks import task
from .depthwise import channels_of, pack_vectors
from .direct import STRIPS, count_strips, pixels_of, place_strip, read_strips
from .fields import Fields
from .pack import pack_depths, pack_strip, unpack_strip

__all__ = ["CORRELATE_FOURIER", "GATHER_FOURIER", "correlate_fourier", "gather_fourier"]

Array = np.ndarray[Any, Any]

GATHER_FOURIER = Fields(
    "GatherFourier",
    "channels width parts reads awaits points span values taps_at values_at places_at weight_steps:4 weight_size",
    STRIPS,
)
"""Channels, those of a part that is packed, parts of the channels, whether images are read and written as they lie, and whether
lines that are to be written are fetched first; points of the transforms, outputs of a tile beside each other, and values of a
row; where in its room a task has the values of taps and those of rows, where tables hold the place of each tap, and what
`pack_depths` takes."""

CORRELATE_FOURIER = Fields(
    "CorrelateFourier",
    "channels width parts chunks each points values tap_values gradients_at taps_at values_at sums_at",
    STRIPS,
)
"""Channels, those of a part, which are the numbers in a row of a panel, and parts of the channels; chunks of strips, the distance
of their panels; points of the transforms, values of a row, and those of a row of gradients; and where in its room a task has its
gradients, the values of some rows of them, those of rows of the input, and the sums of their products."""

read_gather, read_correlate = GATHER_FOURIER.reader(), CORRELATE_FOURIER.reader()

MOST_TILES = 8
"""Tiles from which on what is summed up at the values is added to the taps: errors of long sums would be larger."""


@inlined
def evaluate_rows(
    image: Array, at: int, row_step: int, step: int, x: int, width: int, y: int, height: int, done: int, rows: int, room: Array,
    values_at: int, points: int, span: int, values: int,
) -> tuple[int, int]:  # fmt: skip
    """Evaluate the lower rows of the tile ``done`` rows below the first one; if that is above it, the upper rows of the first.

    The first input of a column of tiles, with ``rows`` rows of outputs, is (y, x) of ``height`` x ``width``; ``at`` is where
    column x of row 0 is, or would be.  Rows that do not exist are 0, but for those that the tile is to leave out: so many above,
    and below, as is returned.
    """
    compact()
    row = values * lanes(room.itemsize)
    begin, ends = y + done, done + SPAN >= rows
    above = EDGE if begin <= -EDGE else 0
    below = EDGE if ends and begin + INPUTS - EDGE >= height else 0
    top, count = begin + TAPS, INPUTS - below - TAPS if ends else TAPS
    unused = EDGE if done < 0 and top <= -EDGE else 0
    first = min(max(0, -top), count)
    last = max(first, min(count, height - top))
    clear(room, values_at + unused * row, values_at + first * row)
    evaluate_tile(
        points, image, at + (top + first) * row_step, row_step, step, max(0, -x), min(width - x, span + TAPS - 1), room,
        values_at + first * row, last - first,
    )  # fmt: skip
    clear(room, values_at + last * row, values_at + count * row)
    return above, below


@inlined
def convolve_column(
    image: Array, at: int, row_step: int, step: int, x: int, width: int, y: int, height: int, fetched: int, fetches: int,
    room: Array, points: int, span: int, values: int, taps_at: int, values_at: int, start: Array, start_at: int, floor_at: int,
    out: Array, out_at: int, out_row: int, out_step: int, columns: int, rows: int, streams: int, awaits: int,
) -> None:  # fmt: skip
    """Compute a column of tiles, ``rows`` rows of ``columns`` outputs; see `evaluate_rows`.

    Meanwhile ``fetches`` rows of pixels are fetched for each tile, from ``fetched`` on, relative to the middle of its inputs; and
    the lines that outputs go to, if they are ``awaits``.
    """
    compact()
    upper, lower = values_at, values_at + TAPS * values * lanes(room.itemsize)
    for done in range(-SPAN, rows, SPAN):
        above, below = evaluate_rows(
            image, at, row_step, step, x, width, y, height, done, rows, room, lower, points, span, values
        )
        if done >= 0:
            multiply_tile(
                points, above, below, 0, room, upper, room, lower, room, taps_at, image,
                at + (y + done + EDGE) * row_step + EDGE * step + fetched, row_step, step, fetches,
                out, out_at + done * out_row, out_row, out_step, min(SPAN, rows - done) * awaits, room, upper,
            )  # fmt: skip
            interpolate_tile(
                points, room, upper, start, start_at, floor_at, out, out_at + done * out_row, out_row, out_step, columns,
                min(SPAN, rows - done), streams,
            )  # fmt: skip
        upper, lower = lower, upper


@inlined
def fetch_ahead(lane: int, valid: int, n: int, after: int) -> tuple[int, int, int]:
    """Share out what is fetched for the vectors of channels that follow those of two lines, among which is ``lane``.

    Returned are how far it is to them, which rows of a tile this vector fetches, from the first on, and how many.  What comes
    behind all ``valid`` channels lies ``after`` the first.
    """
    compact()
    together = FETCHED_LINES * line_parts() * n
    group = lane // together * together
    sharing = (min(together, valid - group) + n - 1) // n
    this = (lane - group) // n
    first = SPAN * this // sharing
    beyond = after if group + together >= valid else group + together
    return beyond - lane, first, SPAN * (this + 1) // sharing - first


@task
def gather_fourier(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, lane] = start[lane] + the correlation of x with the weight, or the floor, if that is less."""
    s, t = read_strips(numbers), read_gather(numbers)
    shape, steps, box_steps, left, strip = s.shape, s.steps, s.box_steps, s.left, s.strip
    out_shape, out_steps, parts, reads = s.out_shape, s.out_steps, t.parts, t.reads
    taps_at, values_at, (_, lane_step, depth_step, tap_step) = t.taps_at, t.values_at, t.weight_steps
    n = lanes(out.itemsize)
    number, part = divmod(task, parts)
    n0, z0, y0, x0, _ = place_strip(number, numbers, tables)
    first, valid = channels_of(part, parts, t.channels, t.width, reads, n)
    images, Z, Y, X = pixels_of(numbers, n0, z0, y0, x0)
    y_in, x_in, floor = y0 - left[1], x0 - left[2], (t.channels + n - 1) // n * n + 1
    height, width = min(shape[3], y_in + Y + TAPS - 1), min(shape[4], x_in + X + TAPS - 1)  # of what the outputs see
    corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4] + first * out_steps[1]
    if reads:
        image, at, pitches, vector = x, n0 * steps[0] + z0 * steps[2] + first, steps, n
        target, to, there, next_vector = out, corner, out_steps, n
    else:
        pack_vectors(numbers, x, first, valid, n0, z0, y_in, x_in, room)
        image, at, pitches, vector = room, -y_in * box_steps[3] - x_in * box_steps[4], box_steps, box_steps[1]
        # Results go to scratch, one vector of channels behind the other.
        row = min(strip[3], out_shape[4]) * n
        plane = min(strip[2], out_shape[3]) * row
        volume = min(strip[1], out_shape[2]) * plane
        target, to, there, next_vector = room, s.box_size, (volume, 1, plane, row, n), strip[0] * volume
    at += x_in * pitches[4]
    after = valid
    if part == parts - 1 and number + 1 < count_strips(numbers):
        n1, z1, y1, x1, _ = place_strip(number + 1, numbers, tables)
        after = (n1 - n0) * steps[0] + (z1 - z0) * steps[2] + (y1 - y0) * steps[3] + (x1 - x0) * steps[4] - first
    for lane in range(0, valid, n):
        # The last vector of channels that are read as they lie overlaps the one before it.
        before = max(0, lane + n - valid) if reads else 0
        channel = first + lane - before
        here, goes = at + lane // n * vector - before, to + lane // n * next_vector - before
        pack_depths(
            (1, TAPS * TAPS, min(n, t.channels - channel)), (lane_step, lane_step, depth_step, tap_step), t.weight_size, tables,
            t.places_at, weight, channel, 0, 1, room, values_at, n, 1,
        )  # fmt: skip
        evaluate_taps_tile(t.points, room, values_at, TAPS * n, n, 0, TAPS, room, taps_at, TAPS)
        fetched, first_row, fetches = fetch_ahead(lane, valid, n, after)
        for index in range(images * Z):
            b, z = divmod(index, Z)
            this, there_at = here + b * pitches[0] + z * pitches[2], goes + b * there[0] + z * there[2]
            for column in range(0, X, t.span):
                convolve_column(
                    image, this + column * pitches[4], pitches[3], pitches[4], x_in + column, width, y_in, height,
                    fetched + before + first_row * pitches[3], fetches * reads, room, t.points, t.span, t.values, taps_at,
                    values_at, start, channel, floor, target, there_at + column * there[4], there[3], there[4],
                    min(t.span, X - column), Y, s.streams * reads, t.awaits,
                )  # fmt: skip
    if not reads:
        for lane in range(0, valid, n):
            unpack_strip(
                room, to + lane // n * next_vector, n, images, (z0, y0, x0), (1, 1, 1), strip, min(n, valid - lane), out,
                corner + lane * out_steps[1], out_shape, out_steps, s.streams,
            )  # fmt: skip


@inlined
def correlate_column(
    at: int, row_step: int, step: int, x: int, width: int, y: int, height: int, gradient_at: int, gradient_row: int,
    gradient_step: int, columns: int, rows: int, room: Array, points: int, values: int, tap_values: int, taps_at: int,
    values_at: int, sums_at: int,
) -> None:  # fmt: skip
    """Add up a column of tiles at the values: ``rows`` rows of ``columns`` gradients, and what they meet of a box."""
    compact()
    n = lanes(room.itemsize)
    row = tap_values * n
    upper, lower = values_at, values_at + TAPS * values * n
    for done in range(-SPAN, rows, SPAN):
        above, below = evaluate_rows(
            room, at, row_step, step, x, width, y, height, done, rows, room, lower, points, SPAN, values
        )
        if done >= 0:
            taken = min(SPAN, rows - done)
            evaluate_taps_tile(
                points, room, gradient_at + done * gradient_row, gradient_row, gradient_step, 0, columns, room, taps_at,
                taken,
            )  # fmt: skip
            clear(room, taps_at + taken * row, taps_at + SPAN * row)
            multiply_tile(
                points, above, below, 1, room, upper, room, lower, room, taps_at, room, 0, 0, 0, 0, room, 0, 0, 0, 0, room,
                sums_at,
            )  # fmt: skip
        upper, lower = lower, upper


@task
def correlate_fourier(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, panels: Array, start: Array
) -> None:  # fmt: skip
    """panels[s, tap, lane] = sum over the pixels of chunk s of gradient[pixel, lane] * x[source of pixel + offset of tap, lane].

    A task is a chunk of consecutive strips and a part of the channels.  Some tiles at a time are summed up by themselves first.
    """
    s, t = read_strips(numbers), read_correlate(numbers)
    shape, steps, left, strip = s.shape, s.box_steps, s.left, s.strip
    out_shape, out_steps, parts, chunks, pitch = s.out_shape, s.out_steps, t.parts, t.chunks, t.width
    gradients_at, taps_at, values_at, sums_at = t.gradients_at, t.taps_at, t.values_at, t.sums_at
    n = lanes(panels.itemsize)
    chunk, part = divmod(task, parts)
    first = part * pitch
    valid = min(pitch, t.channels - first)
    whole = (valid + n - 1) // n * n
    panel = chunk * t.each + first * TAPS * TAPS
    for tap in range(TAPS * TAPS):
        clear(panels, panel + tap * pitch, panel + tap * pitch + whole)
    strips = count_strips(numbers)
    for number in range(chunk * strips // chunks, (chunk + 1) * strips // chunks):
        n0, z0, y0, x0, _ = place_strip(number, numbers, tables)
        images, Z, Y, X = pixels_of(numbers, n0, z0, y0, x0)
        y_in, x_in = y0 - left[1], x0 - left[2]
        height, width = min(shape[3], y_in + Y + TAPS - 1), min(shape[4], x_in + X + TAPS - 1)  # of what is met
        corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4] + first * out_steps[1]
        pack_vectors(numbers, x, first, valid, n0, z0, y_in, x_in, room)
        pack_strip(gradient, corner, out_shape, out_steps, (images, Z, Y, X), strip, valid, whole, room, gradients_at)
        row = strip[3] * whole
        for lane in range(0, valid, n):
            tiles = 0
            for index in range(images * Z):
                b, z = divmod(index, Z)
                at = lane // n * steps[1] + b * steps[0] + z * steps[2] - y_in * steps[3]
                goes = gradients_at + lane + (b * strip[1] + z) * strip[2] * row
                for column in range(0, X, SPAN):
                    if tiles == 0:
                        clear(room, sums_at, sums_at + TAPS * t.values * n)
                    correlate_column(
                        at + column * steps[4], steps[3], steps[4], x_in + column, width, y_in, height, goes + column * whole,
                        row, whole, min(SPAN, X - column), Y, room, t.points, t.values, t.tap_values, taps_at, values_at, sums_at,
                    )  # fmt: skip
                    tiles += (Y + SPAN - 1) // SPAN
                    if tiles < MOST_TILES and (index < images * Z - 1 or column + SPAN < X):
                        continue
                    interpolate_tile(t.points, room, sums_at, start, 0, n, room, taps_at, TAPS * n, n, TAPS, TAPS, 0)
                    for tap in range(TAPS * TAPS):
                        for k in range(n):
                            panels[unsigned(panel + tap * pitch + lane + k)] += room[unsigned(taps_at + tap * n + k)]
                    tiles = 0
