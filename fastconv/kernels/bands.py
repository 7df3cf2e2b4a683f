"""Convolution of planes as they lie: nothing is turned over, lanes are neighbours in a row of pixels.

A task takes a band of rows of an image.  It copies the rows of the input that these meet, with zeros around them; with a
stride of 2 the even columns of a row and behind these the odd ones.  Where channels do not mix, it does so with some planes at a
time, and tiles slide down their columns: `gather_columns` computes equations (1) and (2), the latter with a stride of 1, and
`correlate_columns` equation (3).  `gather_filters` computes equation (1) of few channels that mix: the rows of tiles are
filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import inner_kernel, linked_kernel, unsigned
from ..simd import (
    FETCH_AHEAD,
    VECTORS,
    clear,
    column_tile,
    compact,
    copy,
    copy_tile,
    lanes,
    outer_tile,
    pad_tile,
    sum_column_tile,
    take_tile,
)  # fmt: skip
from ..tasks import task
from .fields import Fields
from .pack import transpose

__all__ = [
    "BANDS", "CORRELATE_COLUMNS", "GATHER_COLUMNS", "GATHER_FILTERS", "correlate_columns", "gather_columns", "gather_filters",
]  # fmt: skip

Array = np.ndarray[Any, Any]

BANDS = Fields(
    "Bands",
    "images channels depth height width rows columns top left taps stride before half pitch plane band together edge parts",
)
"""Images, channels of each, planes of a channel, rows and columns of the input's and of the output's, padding above and beside
the input, taps along rows and columns, their stride, numbers of a row in scratch before the first column and to the odd ones, and
in all, numbers of a plane there, rows of outputs of a band, planes that are taken together, numbers of a row in scratch before
what the first output meets, and parts of the channels."""

GATHER_COLUMNS = Fields("GatherColumns", "weights_at channel_step down across result_at streams", BANDS)
"""Where the weight's first factor lies, the distance of channels, and those of neighbouring taps along columns and rows, where
scratch holds results, and whether these go to memory past the caches."""

GATHER_FILTERS = Fields(
    "GatherFilters", "filters terms pairs_at rows_at targets_at tiles weight_step panel_at streams", BANDS
)
"""Filters, terms of each and one more, where tables hold their pairs, the rows of tiles and where these go, how many rows there
are, the distance of filters in the weight, where scratch holds these, and whether results go to memory past the caches."""

CORRELATE_COLUMNS = Fields("CorrelateColumns", "chunks each gradient_at gradient_row sums_at", BANDS)
"""Chunks of bands, the distance of their sums, where scratch holds gradients, the distance of their rows, and where sums."""

read_bands, read_gather_columns, read_gather_filters, read_correlate_columns = (
    fields.reader() for fields in (BANDS, GATHER_COLUMNS, GATHER_FILTERS, CORRELATE_COLUMNS)
)


@inner_kernel
def band_of(number: int, numbers: Array) -> tuple[int, int, int, int, int]:
    """Image of a band, its first row of outputs, and their number, the first row of the input that it meets, and their number."""
    s = read_bands(numbers)
    height, rows, top, taps, stride, band = s.height, s.rows, s.top, s.taps, s.stride, s.band
    image, part = divmod(number, (rows + band - 1) // band)
    first = part * band
    count = min(band, rows - first)
    begin, end = stride * first - top, stride * (first + count - 1) - top + taps
    begin, end = max(0, begin), min(height, end)
    return image, first, count, begin, max(0, end - begin)


@linked_kernel
def pack_rows(numbers: Array, x: Array, at: int, planes: int, rows: int, room: Array, to: int) -> None:
    """Copy so many rows of planes, the first of which is at ``at``, into scratch where there are zeros around them."""
    compact()
    s = read_bands(numbers)
    height, width, half, pitch, plane = s.height, s.width, s.half, s.pitch, s.plane
    if rows == 0:
        return
    if rows == height and plane == rows * pitch:  # those of one plane follow those of another
        planes, rows = 1, planes * rows
    for p in range(planes):
        here, there = at + p * height * width, to + p * plane
        if s.stride == 1:
            pad_tile(x, here, width, room, there + s.before, pitch, rows, width)
            continue
        for odd in range(2):
            first = (odd + s.left) % 2  # column of x that is the first of these
            place = (first + s.left) // 2
            columns = min((width - first + 1) // 2, half - place)
            if columns > 0:
                to_row = there + odd * half + place
                take_tile(x, here + first, width, room, to_row, pitch, rows, columns, FETCH_AHEAD // x.itemsize)


@task
def gather_columns(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[channel, y, x] = start[channel] + sum over taps of weight[channel, tap] * x[channel, place of (y, x) and the tap].

    What is less than the floor, the last number of ``start``, becomes that.
    """
    s, t = read_bands(numbers), read_gather_columns(numbers)
    channels, depth, height, width, rows, columns, stride, box, together, parts, result_at, streams = (
        s.channels, s.depth, s.height, s.width, s.rows, s.columns, s.stride, s.plane, s.together, s.parts, t.result_at, t.streams
    )  # fmt: skip
    number, part = divmod(task, parts)
    image, y, count, begin, met = band_of(number, numbers)
    size, line = count * columns, VECTORS * lanes(out.itemsize)
    clear(room, 0, together * box)
    plane, last = channels * part // parts * depth, channels * (part + 1) // parts * depth
    while plane < last:
        # What is behind a plane is another one of this task, which then writes there: but behind the last.
        straight = count == rows and not streams and plane < last - 1
        planes = min(together, last - 1 - plane) if straight else 1
        at, channel = image * channels * depth + plane, plane // depth
        to = (at * rows + y) * columns
        pack_rows(numbers, x, (at * height + begin) * width, planes, met, room, 0)
        target, place = (out, to) if straight else (room, result_at)
        column_tile(
            s.taps, stride, planes, count, columns, weight, t.weights_at + channel * t.channel_step, t.down, t.across,
            t.channel_step, room, s.edge, s.half, s.pitch, box, stride * y - s.top - begin, met, target, place, columns, size,
            start, channel, channels + 1,
        )  # fmt: skip
        if not straight:
            lines = size // line if streams else 0
            copy_tile(room, result_at, line, out, to, line, lines, VECTORS, 1)
            copy(room, result_at + lines * line, out, to + lines * line, size - lines * line)
        plane += planes


@task
def gather_filters(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[filter, y, x] = start[filter] + sum over terms of weight[filter, term] * x[place of (y, x) and the term].

    Filters are the rows of tiles, pixels of a row their lanes.  The bias is the factor of one more channel, of ones.
    """
    s, t = read_bands(numbers), read_gather_filters(numbers)
    channels, height, width, rows, columns, stride, pitch, box = (
        s.channels, s.height, s.width, s.rows, s.columns, s.stride, s.pitch, s.plane
    )  # fmt: skip
    filters, terms, panel_at = t.filters, t.terms, t.panel_at
    n = lanes(out.itemsize)
    image, y, count, begin, met = band_of(task, numbers)
    clear(room, 0, channels * box)
    for k in range(channels * box, (channels + 1) * box):
        room[unsigned(k)] = 1
    above = stride * y - s.top  # the first row that is met, if it exists
    pack_rows(numbers, x, (image * channels * height + begin) * width, channels, met, room, (begin - above) * pitch)
    for f in range(filters):
        copy(weight, f * t.weight_step, room, panel_at + f * terms, terms - 1)
        room[unsigned(panel_at + f * terms + terms - 1)] = start[f]
    zeros, floor = filters, filters + VECTORS * n + 1
    for r in range(count):
        here = stride * r * pitch + s.edge
        to = (image * filters * rows + y + r) * columns
        q = 0
        while q < columns:
            valid = min(VECTORS * n, columns - q)
            if valid % n > 0 and valid > n:
                valid -= valid % n
            elif valid < n <= columns:  # the last vector overlaps the one before it
                q, valid = columns - n, n
            outer_tile(
                room, here + q, tables, t.pairs_at, terms, room, panel_at, t.rows_at, out, to + q, t.targets_at, t.tiles,
                start, zeros, floor, 0, valid, t.streams,
            )  # fmt: skip
            q += valid


@task
def correlate_columns(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, sums: Array, _: Array
) -> None:  # fmt: skip
    """sums[s, channel, tap] = sum over pixels of chunk s of gradient[channel, y, x] * x[channel, place of (y, x) and the tap].

    A task is a chunk of consecutive bands and a part of the channels.  Each band of a plane is summed up by itself first.
    """
    s, t = read_bands(numbers), read_correlate_columns(numbers)
    channels, depth, height, width, rows, columns, taps, stride, box, band, together, parts = (
        s.channels, s.depth, s.height, s.width, s.rows, s.columns, s.taps, s.stride, s.plane, s.band, s.together, s.parts
    )  # fmt: skip
    chunks, gradient_at, gradient_row, sums_at = t.chunks, t.gradient_at, t.gradient_row, t.sums_at
    n, terms = lanes(x.itemsize), taps * taps
    chunk, part = divmod(task, parts)
    first, last = channels * part // parts * depth, channels * (part + 1) // parts * depth
    channel, many = first // depth, (last - first) // depth
    clear(room, 0, sums_at + many * terms * n)
    bands = s.images * ((rows + band - 1) // band)
    for number in range(chunk * bands // chunks, (chunk + 1) * bands // chunks):
        image, y, count, begin, met = band_of(number, numbers)
        for plane in range(first, last, together):
            planes, at = min(together, last - plane), image * channels * depth + plane
            pack_rows(numbers, x, (at * height + begin) * width, planes, met, room, 0)
            for p in range(planes):
                here, there = ((at + p) * rows + y) * columns, gradient_at + p * count * gradient_row
                pad_tile(gradient, here, columns, room, there, gradient_row, count, columns)
            sum_column_tile(
                taps, stride, planes, count, columns, room, s.edge, s.half, s.pitch, box, stride * y - s.top - begin, met, room,
                gradient_at, gradient_row, count * gradient_row, room, sums_at + (plane // depth - channel) * terms * n,
                terms * n,
            )  # fmt: skip
    # Their lanes are added up side by side.
    count = many * terms
    line = (count + n - 1) // n * n
    turned, to = sums_at + count * n, chunk * t.each + channel * terms
    transpose(room, sums_at, n, count, n, room, turned, line, 0)
    for lane in range(1, n):
        for term in range(count):
            room[unsigned(turned + term)] += room[unsigned(turned + lane * line + term)]
    copy(room, turned, sums, to, count)
