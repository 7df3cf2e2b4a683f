"""Maxima and means over windows, and their gradients, of images that lie channels-last.

The algorithm.  An image is a matrix of rows and columns; output (i, j) looks at the window of rows
``row_start[i] <= p < row_stop[i]`` and columns ``col_start[j] <= q < col_stop[j]``, already cut to the image; where maxima have
a ``row_step`` or ``col_step``, only at every so manieth of them:

    max   O[i,j] = max over p, q of X[p,q]             dX[p,q] = sum of dO[i,j] over the i, j whose maximum is X[p,q]
    mean  O[i,j] = (sum over p, q of X[p,q]) / n[i,j]  dX[p,q] = sum of dO[i,j] / n[i,j] over the i, j that see (p, q)

Kernel size, stride, padding, ceil mode and adaptive sizes are all in the tables of starts and stops, and so is whether
padding counts: ``n[i,j] = row_size[i] * col_size[j]``.  The place of a maximum, the r-th row and s-th column of its window, is
the number r * taps + s, where no window has more than ``taps`` columns.

The schedule.  The rows of the output are spread over the threads, in blocks, each of which has a room; backwards
``bands`` of rows of dX are, of which a few do where images are many.  Every element has one owner and one order of summation,
that of the windows, so its bits depend neither on the number of threads nor on that of bands.
Maxima are compared vector by vector of a pixel's channels; where these do not fill one, the taps of a whole row of the output
are copied side by side first.

Contract: arrays are C-contiguous, of shape (images, h, w, channels) or (images, h_out, w_out, channels); tables are of int64;
no window is empty.  ``rooms`` have a row for each block of rows or bands, with as many numbers as the kernel says.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import inner_kernel, linked_kernel, prange, signed, streaming_kernel, unsigned
from ..simd import NOWHERE, compact, lanes, pool_tile
from .sums import rows_of

__all__ = ["NOWHERE", "max_pool", "max_room", "mean_pool", "pool_backward", "pool_strip"]


@streaming_kernel
def max_pool(
    x: Array, row_start: Array, row_stop: Array, row_step: int, col_start: Array, col_stop: Array, col_step: int, taps: int,
    lowest: Array, nowhere: int, rooms: Array, out: Array, where: Array,
) -> None:  # fmt: skip
    """O[i,j] = max over window (i, j).

    ``where`` gets the place of the maximum.  Among equals the first in row-major order wins; a NaN beats everything, the last
    one the others (as in PyTorch).  Where nothing is above ``lowest``, an array of one number, that is the output, and
    ``nowhere`` its place: with -inf and 0 it is the maximum, with 0 and `NOWHERE` that of ReLU(x).  Rooms have as many numbers
    as `max_room` says.
    """
    images, h_out, w_out, channels = out.shape
    _, height, width, _ = x.shape
    flat, maxima, places = x.reshape(x.size), out.reshape(out.size), where.reshape(where.size)
    row_pitch, n = width * channels, lanes(out.itemsize)
    for block in prange(len(rooms)):
        begin, end = rows_of(signed(block), len(rooms), images * h_out)
        room = rooms[signed(block)]
        for task in range(begin, end):
            image, i = divmod(task, h_out)
            rows = (row_stop[i] - row_start[i] + row_step - 1) // row_step
            source, to = (image * height + row_start[i]) * row_pitch, task * w_out * channels
            if where.itemsize == 1 and channels >= n:
                for j in range(w_out):
                    columns = (col_stop[j] - col_start[j] + col_step - 1) // col_step
                    take_maxima(
                        flat, source + col_start[j] * channels, row_step * row_pitch, col_step * channels, rows, columns, taps,
                        channels, lowest, nowhere, maxima, places, to + j * channels,
                    )  # fmt: skip
                continue
            size = w_out * channels
            for r in range(rows):
                for s in range(taps):
                    kept = (r * taps + s) * size if where.itemsize == 1 else 0
                    for j in range(w_out):
                        q, at = col_start[j] + s * col_step, kept + j * channels
                        if q < col_stop[j]:
                            pixel = source + r * row_step * row_pitch + q * channels
                            for c in range(unsigned(channels)):
                                room[unsigned(at) + c] = flat[unsigned(pixel) + c]
                        else:
                            room[at : at + channels] = lowest[0]  # which never wins
                    if where.itemsize > 1:
                        take_far_maxima(room, size, r * taps + s, lowest[0], nowhere, maxima, places, to)
            if where.itemsize == 1:
                take_maxima(
                    room, 0, taps * size, size, rows, taps, taps, size, lowest, nowhere, maxima, places, to
                )  # fmt: skip


def max_room(windows: tuple[int, int], w_out: int, channels: int, itemsize: int, places_size: int) -> int:
    """Numbers of a room of `max_pool`: all taps of a row of the output where a pixel does not fill a vector, else none.

    Or a row for one tap at a time where places are no bytes.  ``windows`` are the most rows and columns of a window.
    """
    n = lanes(itemsize)
    if places_size > 1:
        return w_out * channels
    return 1 if channels >= n else windows[0] * windows[1] * w_out * channels + n


@inner_kernel
def take_maxima(
    source: Array, at: int, row_step: int, step: int, rows: int, columns: int, taps: int, size: int, lowest: Array, nowhere: int,
    maxima: Array, places: Array, to: int,
) -> None:  # fmt: skip
    """Store the maxima of ``size`` numbers of each tap, and their places; less than a vector of them are read as a whole one."""
    n = lanes(source.itemsize)
    pool_tile(
        source, at, row_step, step, n, rows, columns, taps, maxima, to, n, places, to, lowest, 0, nowhere, size // n, n
    )  # fmt: skip
    if size % n:
        done = max(0, size - n)  # the last vector overlaps
        pool_tile(
            source, at + done, row_step, step, n, rows, columns, taps, maxima, to + done, n, places, to + done, lowest, 0,
            nowhere, 1, size,
        )  # fmt: skip


@inner_kernel
def take_far_maxima(
    row: Array, size: int, tap: int, lowest: float, nowhere: int, maxima: Array, places: Array, to: int
) -> None:  # fmt: skip
    """Let a row's numbers win, over nothing yet if this is the first tap, where places are no bytes."""
    place, none = places.dtype.type(tap), places.dtype.type(nowhere)
    for c in range(size):
        value, best = row[c], lowest if tap == 0 else maxima[to + c]
        wins = (value > best) | (value != value)
        maxima[to + c] = value if wins else best
        places[to + c] = place if wins else none if tap == 0 else places[to + c]


@linked_kernel
def pool_strip(
    pixels: Array, pixels_at: int, pitch: int, images: int, room: tuple[int, ...], sizes: tuple[int, ...], valid: int,
    out: Array, first: tuple[int, ...], lane: int, window: tuple[int, ...], steps: tuple[int, ...], places_at: int, start: Array,
    floor_at: int,
) -> None:  # fmt: skip
    """Store the maxima of windows of a block of lanes of a strip of a convolution's output, and their places.

    ``pixels`` are scratch memory with ``room`` for (rows, columns) of each image, of which ``sizes`` exist; ``first`` is the
    strip's first image, row and column, where a window begins.  ``window`` are its rows and columns, ``steps`` the distances of
    images, rows and columns of maxima, and places begin at ``places_at``, in bytes.  Windows that are not whole are left out.
    """
    compact()
    n = lanes(out.itemsize)
    nowhere = NOWHERE if start[floor_at] == 0 else 0
    rows, columns = sizes[0] // window[0], sizes[1] // window[1]
    begin = first[0] * steps[0] + first[1] // window[0] * steps[1] + first[2] // window[1] * steps[2] + lane
    row, places = room[1] * pitch, out.view(np.uint8)
    for b in range(images):
        for y in range(rows):
            here, to = pixels_at + (b * room[0] + y * window[0]) * row, begin + b * steps[0] + y * steps[1]
            for c in range(0, valid, n):
                pool_tile(
                    pixels, here + c, row, pitch, window[1] * pitch, window[0], window[1], window[1], out, to + c, steps[2],
                    places, places_at + to + c, start, floor_at, nowhere, columns, valid - c,
                )  # fmt: skip


@streaming_kernel
def mean_pool(
    x: Array, row_start: Array, row_stop: Array, row_size: Array, col_start: Array, col_stop: Array, col_size: Array,
    rooms: Array, out: Array,
) -> None:  # fmt: skip
    """O[i,j] = (sum over window (i, j)) / n[i,j], summed in float64.  Rooms are for a pixel, in float64."""
    images, h_out, w_out, lanes = out.shape
    _, height, width, _ = x.shape
    flat, means = x.reshape(x.size), out.reshape(out.size)
    for block in prange(len(rooms)):
        begin, end = rows_of(signed(block), len(rooms), images * h_out)
        total = rooms[signed(block)]
        for task in range(begin, end):
            n, i = divmod(task, h_out)
            for j in range(w_out):
                total[:] = 0
                for p in range(row_start[i], row_stop[i]):
                    for q in range(col_start[j], col_stop[j]):
                        at = ((n * height + p) * width + q) * lanes
                        for c in range(unsigned(lanes)):
                            total[c] += flat[unsigned(at) + c]
                to = (task * w_out + j) * lanes
                for c in range(unsigned(lanes)):
                    means[unsigned(to) + c] = total[c] / (row_size[i] * col_size[j])


@streaming_kernel
def pool_backward(
    grad: Array, where: Array, row_start: Array, row_stop: Array, row_step: int, row_size: Array, col_start: Array,
    col_stop: Array, col_step: int, col_size: Array, taps: int, tiled: bool, bands: int, rooms: Array, dx: Array,
) -> None:  # fmt: skip
    """dX[p,q], of maxima whose places are ``where``, or of means if that is empty.

    ``tiled`` says that each element is in exactly one window: shares are then written, and not added to zeros.
    Rooms are for a row of the output.
    """
    images, h_out, w_out, lanes = grad.shape
    _, height, width, _ = dx.shape
    gradients, places, flat = grad.reshape(grad.size), where.reshape(where.size), dx.reshape(dx.size)
    for block in prange(len(rooms)):
        begin, end = rows_of(signed(block), len(rooms), images * bands)
        row = rooms[signed(block)]
        for task in range(begin, end):
            n, band = divmod(task, bands)
            low, high = rows_of(band, bands, height)
            if not tiled:
                flat[(n * height + low) * width * lanes : (n * height + high) * width * lanes] = 0
            for i in range(h_out):
                if row_stop[i] <= low or row_start[i] >= high:
                    continue
                at = (n * h_out + i) * w_out * lanes
                if where.size == 0:
                    share_means(gradients, at, lanes, row_size[i], col_size, row)
                for p in range(row_start[i], min(row_stop[i], high), row_step):
                    if p < low:
                        continue
                    for s in range(taps):
                        if where.size:
                            share_maxima(gradients, places, at, (p - row_start[i]) // row_step * taps + s, row)
                        for j in range(w_out):
                            q = col_start[j] + s * col_step
                            if q < col_stop[j]:
                                add_share(row, j * lanes, flat, ((n * height + p) * width + q) * lanes, lanes, tiled)


@inner_kernel
def share_maxima(gradients: Array, places: Array, at: int, tap: int, row: Array) -> None:
    """Take a row of dO where the maximum is this tap of the window."""
    place, zero = places.dtype.type(tap), row.dtype.type(0)
    for c in range(unsigned(row.size)):
        gradient, found = gradients[unsigned(at) + c], places[unsigned(at) + c]
        row[c] = gradient if found == place else zero


@inner_kernel
def share_means(gradients: Array, at: int, lanes: int, row_size: int, col_size: Array, row: Array) -> None:
    """Take a row of dO / n."""
    for j in range(col_size.size):
        size = np.float64(row_size * col_size[j])
        for c in range(unsigned(lanes)):
            row[unsigned(j * lanes) + c] = gradients[unsigned(at + j * lanes) + c] / size


@inner_kernel
def add_share(row: Array, source: int, dx: Array, to: int, lanes: int, tiled: bool) -> None:
    """Add a pixel's share to dX, or write it."""
    if tiled:
        for c in range(unsigned(lanes)):
            dx[unsigned(to) + c] = row[unsigned(source) + c]
    else:
        for c in range(unsigned(lanes)):
            dx[unsigned(to) + c] += row[unsigned(source) + c]
