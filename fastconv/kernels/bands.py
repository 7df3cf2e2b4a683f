"""Convolution of planes as they lie: nothing is turned over, lanes are neighbours in a row of pixels.

A task takes a band of rows of an image.  It copies the rows of the input that these meet, with zeros around them; with a
stride of 2 the even columns of a row and behind these the odd ones.  Where channels do not mix, it does so with some planes at a
time, and tiles slide down their columns: `gather_columns` computes equations (1) and (2), the latter with a stride of 1, and
`correlate_columns` equation (3).  Where there are tiles for bare planes, nothing is copied; nor is it of small planes, which
tiles hold as a whole: `gather_shifted` and `correlate_shifted`.  `gather_filters` computes equation (1) of few channels that mix:
the rows of tiles are filters; `correlate_filters` computes equation (3) of few filters, or few channels, by dot products of rows
of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import inner_kernel, linked_kernel, unsigned
from ..simd import (
    DOT_FILTERS,
    FETCH_AHEAD,
    VECTORS,
    bare_column_tile,
    clear,
    column_tile,
    compact,
    copy,
    copy_tile,
    dot_tile,
    lane_sum_tile,
    lanes,
    outer_tile,
    pad_tile,
    shift_tile,
    sum_bare_column_tile,
    sum_column_tile,
    sum_shift_tile,
    sum_tile,
    take_tile,
)  # fmt: skip
from ..tasks import task
from .fields import Fields

__all__ = [
    "BANDS", "CORRELATE_COLUMNS", "CORRELATE_FILTERS", "CORRELATE_SHIFTED", "GATHER_COLUMNS", "GATHER_FILTERS", "GATHER_SHIFTED",
    "correlate_columns", "correlate_filters", "correlate_shifted", "gather_columns", "gather_filters", "gather_shifted",
]  # fmt: skip

Array = np.ndarray[Any, Any]

BANDS = Fields(
    "Bands",
    "images channels depth height width rows columns top left taps stride before half pitch plane band together edge parts "
    "bare ahead",
)
"""Images, channels of each, planes of a channel, rows and columns of the input's and of the output's, padding above and beside
the input, taps along rows and columns, their stride, numbers of a row in scratch before the first column and to the odd ones, and
in all, numbers of a plane there, rows of outputs of a band, planes that are taken together, numbers of a row in scratch before
what the first output meets, parts of the channels, whether planes are read as they lie, and how far behind what is read of them
lies what is fetched."""

GATHER_COLUMNS = Fields("GatherColumns", "weights_at channel_step down across result_at streams shares", BANDS)
"""Where the weight's first factor lies, the distance of channels, and those of neighbouring taps along columns and rows, where
scratch holds results, whether these go to memory past the caches, and into how many shares the bands of an image are cut, for
tasks of their own."""

GATHER_FILTERS = Fields(
    "GatherFilters", "filters terms pairs_at rows_at targets_at tiles weight_step panel_at streams", BANDS
)
"""Filters, terms of each and one more, where tables hold their pairs, the rows of tiles and where these go, how many rows there
are, the distance of filters in the weight, where scratch holds these, and whether results go to memory past the caches."""

CORRELATE_COLUMNS = Fields("CorrelateColumns", "chunks each gradient_at gradient_row sums_at", BANDS)
"""Chunks of bands, the distance of their sums, where scratch holds gradients, the distance of their rows, and where sums."""

CORRELATE_FILTERS = Fields("CorrelateFilters", "filters terms offsets_at most chunks each sums_at biases_at", BANDS)
"""Filters, terms of each, where a table holds what these add to a place in scratch, most rows that are summed at once, chunks
of bands, the distance of their sums, where scratch holds these, and where the last array has room for equation (4), or 0."""

WHOLE = Fields("Whole", "images channels size width taps parts")
"""Images, channels of each, pixels of a plane and of a row, taps along rows and columns, and parts of the channels."""

GATHER_SHIFTED = Fields("GatherShifted", "weights_at channel_step down across", WHOLE)
"""Where the weight's first factor lies, the distance of channels, and those of neighbouring taps along columns and rows."""

CORRELATE_SHIFTED = Fields("CorrelateShifted", "chunks each", WHOLE)
"""Chunks of images, and the distance of their sums."""

read_whole, read_gather_shifted, read_correlate_shifted = (
    fields.reader() for fields in (WHOLE, GATHER_SHIFTED, CORRELATE_SHIFTED)
)
read_bands, read_gather_columns, read_gather_filters, read_correlate_columns, read_correlate_filters = (
    fields.reader() for fields in (BANDS, GATHER_COLUMNS, GATHER_FILTERS, CORRELATE_COLUMNS, CORRELATE_FILTERS)
)


@inner_kernel
def image_bands(numbers: Array) -> int:
    """Count the bands of an image."""
    s = read_bands(numbers)
    count: int = (s.rows + s.band - 1) // s.band
    return count


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
    image, share = divmod(number, t.shares)
    bands, line = image_bands(numbers), VECTORS * lanes(out.itemsize)
    clear(room, 0, together * box)
    plane, last = channels * part // parts * depth, channels * (part + 1) // parts * depth
    while plane < last:
        planes, at, channel = 1, image * channels * depth + plane, plane // depth
        for band in range(bands * share // t.shares, bands * (share + 1) // t.shares):
            _, y, count, begin, met = band_of(image * bands + band, numbers)
            size, first_row = count * columns, stride * y - s.top - begin  # from the first one that is met
            # What is behind a plane is another one of this task, which then writes there: but behind the last.
            straight = not streams and (s.bare or (count == rows and plane < last - 1))
            planes = min(together, last - plane - (0 if s.bare else 1)) if straight else 1
            to, here = (at * rows + y) * columns, (at * height + begin) * width
            target, place = (out, to) if straight else (room, result_at)
            if s.bare:
                bare_column_tile(
                    s.taps, stride, planes, count, columns, x, here, height * width, width, s.left, first_row, met, s.ahead,
                    weight, t.weights_at + channel * t.channel_step, t.down, t.across, t.channel_step, target, place,
                    rows * columns, start, channel, channels + 1,
                )  # fmt: skip
            else:
                pack_rows(numbers, x, here, planes, met, room, 0)
                column_tile(
                    s.taps, stride, planes, count, columns, weight, t.weights_at + channel * t.channel_step, t.down, t.across,
                    t.channel_step, room, s.edge, s.half, s.pitch, box, first_row, met, target, place, columns, size, start,
                    channel, channels + 1,
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
    channels, depth, height, width, rows, columns, taps, stride, box, together, parts = (
        s.channels, s.depth, s.height, s.width, s.rows, s.columns, s.taps, s.stride, s.plane, s.together, s.parts
    )  # fmt: skip
    chunks, gradient_at, gradient_row, sums_at = t.chunks, t.gradient_at, t.gradient_row, t.sums_at
    n, terms = lanes(x.itemsize), taps * taps
    chunk, part = divmod(task, parts)
    first, last = channels * part // parts * depth, channels * (part + 1) // parts * depth
    channel, many = first // depth, (last - first) // depth
    clear(room, 0, sums_at + many * terms * n)
    bands = image_bands(numbers)
    number: int = chunk * s.images * bands // chunks
    end: int = (chunk + 1) * s.images * bands // chunks
    while number < end:  # the bands of an image
        image, until = number // bands, min(end, (number // bands + 1) * bands)
        for plane in range(first, last, together):
            planes, at = min(together, last - plane), image * channels * depth + plane
            to = sums_at + (plane // depth - channel) * terms * n
            for one in range(number, until):
                image, y, count, begin, met = band_of(one, numbers)
                first_row = stride * y - s.top - begin
                if s.bare:
                    sum_bare_column_tile(
                        taps, stride, planes, count, columns, x, (at * height + begin) * width, height * width, width, s.left,
                        first_row, met, s.ahead, gradient, (at * rows + y) * columns, rows * columns, room, to, terms * n,
                    )  # fmt: skip
                    continue
                pack_rows(numbers, x, (at * height + begin) * width, planes, met, room, 0)
                for p in range(planes):
                    here, there = ((at + p) * rows + y) * columns, gradient_at + p * count * gradient_row
                    pad_tile(gradient, here, columns, room, there, gradient_row, count, columns)
                sum_column_tile(
                    taps, stride, planes, count, columns, room, s.edge, s.half, s.pitch, box, first_row, met, room, gradient_at,
                    gradient_row, count * gradient_row, room, to, terms * n,
                )  # fmt: skip
        number = until
    lane_sum_tile(room, sums_at, many * terms, sums, chunk * t.each + channel * terms)


@task
def gather_shifted(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """The same as `gather_columns` of small planes, which a tile holds as a whole: a part of the channels of an image."""
    s, t = read_whole(numbers), read_gather_shifted(numbers)
    channels, size = s.channels, s.size
    image, part = divmod(task, s.parts)
    first, last = channels * part // s.parts, channels * (part + 1) // s.parts
    at = (image * channels + first) * size
    shift_tile(
        s.width, s.taps, last - first, size, x, at, size, weight, t.weights_at + first * t.channel_step, t.down, t.across,
        t.channel_step, out, at, size, start, first, channels + 1,
    )  # fmt: skip


@task
def correlate_shifted(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, sums: Array, _: Array
) -> None:  # fmt: skip
    """The same as `correlate_columns` of small planes: a chunk of consecutive images and a part of the channels."""
    s, t = read_whole(numbers), read_correlate_shifted(numbers)
    channels, size, parts, chunks = s.channels, s.size, s.parts, t.chunks
    n, terms = lanes(x.itemsize), s.taps * s.taps
    chunk, part = divmod(task, parts)
    first, last = channels * part // parts, channels * (part + 1) // parts
    clear(room, 0, (last - first) * terms * n)
    for image in range(chunk * s.images // chunks, (chunk + 1) * s.images // chunks):
        at = (image * channels + first) * size
        sum_shift_tile(s.width, s.taps, last - first, size, x, at, size, gradient, at, size, room, 0, terms * n)
    lane_sum_tile(room, 0, (last - first) * terms, sums, chunk * t.each + first * terms)


@task
def correlate_filters(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, sums: Array, zeros: Array
) -> None:  # fmt: skip
    """sums[s, filter, term] = sum over pixels of chunk s of gradient[filter, y, x] * x[place of (y, x) and the term].

    A task is a chunk of consecutive bands.  Some rows of each are summed up by themselves first.  Behind the ``zeros`` is room
    for equation (4), if that is asked for.
    """
    s, t = read_bands(numbers), read_correlate_filters(numbers)
    channels, height, width, rows, columns, stride, pitch, box, band = (
        s.channels, s.height, s.width, s.rows, s.columns, s.stride, s.pitch, s.plane, s.band
    )  # fmt: skip
    filters, terms, chunks, sums_at = t.filters, t.terms, t.chunks, t.sums_at
    n, behind = lanes(x.itemsize), sums_at + filters * terms * lanes(x.itemsize)
    slot = (filters + n - 1) // n * n + n
    parts = (filters + DOT_FILTERS - 1) // DOT_FILTERS
    clear(room, sums_at, sums_at + filters * terms * n)
    bands = s.images * ((rows + band - 1) // band)
    for number in range(task * bands // chunks, (task + 1) * bands // chunks):
        image, y, count, begin, met = band_of(number, numbers)
        clear(room, 0, channels * box)
        above = stride * y - s.top  # the first row that is met, if it exists
        pack_rows(numbers, x, (image * channels * height + begin) * width, channels, met, room, (begin - above) * pitch)
        at = (image * filters * rows + y) * columns
        for row in range(0, count, t.most):
            for part in range(parts):
                first, last = filters * part // parts, filters * (part + 1) // parts
                dot_tile(
                    last - first, terms, min(t.most, count - row), columns, room, stride * row * pitch + s.edge, stride * pitch,
                    tables, t.offsets_at, gradient, at + (first * rows + row) * columns, columns, rows * columns, room,
                    sums_at + first * terms * n, terms * n,
                )  # fmt: skip
        for f in range(filters if t.biases_at else 0):
            zeros[t.biases_at + number * slot + n + f] = sum_row(
                gradient, at + f * rows * columns, count * columns, room, behind
            )
    lane_sum_tile(room, sums_at, filters * terms, sums, task * t.each)


@linked_kernel
def sum_row(row: Array, at: int, count: int, room: Array, room_at: int) -> float:
    """Sum a row of numbers; in scratch is room for a vector."""
    n = lanes(row.itemsize)
    vectors, total = count // n, 0.0
    sum_tile(row, at, 1, 1, 1, vectors, 0, 0, 0, n, room, room_at)
    for lane in range(n):
        total += room[unsigned(room_at + lane)]
    for k in range(vectors * n, count):
        total += row[unsigned(at + k)]
    return total
