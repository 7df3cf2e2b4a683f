"""Maxima and means over windows, and their gradients.

The algorithm.  An image is a matrix of rows and columns; output (i, j) looks at the window of rows
``row_start[i] <= p < row_stop[i]`` and columns ``col_start[j] <= q < col_stop[j]``, already cut to the image:

    max   O[i,j] = max over p, q of X[p,q]             dX[p,q] = sum of dO[i,j] over the i, j whose maximum is X[p,q]
    mean  O[i,j] = (sum over p, q of X[p,q]) / n[i,j]  dX[p,q] = sum of dO[i,j] / n[i,j] over the i, j that see (p, q)

Kernel size, stride, padding, ceil mode and adaptive sizes are all in the tables of starts and stops, and so is whether
padding counts: ``n[i,j] = row_size[i] * col_size[j]``.

The schedule.  The planes (image and channel) are spread over the threads.  A plane of the output, or of dX, belongs to
one iteration, which visits the windows row by row: every element has one owner and one order of summation, so its bits
do not depend on the number of threads.  Maxima are taken of images that lie channels-last as they lie: there a plane is an
image, whose channels are lanes of the innermost loop; of other images each channel is a plane of one lane.

Contract: arrays are C-contiguous; for means ``x`` and ``dx`` have shape (planes, h, w), ``out`` and ``grad`` (planes,
h_out, w_out), for maxima there are lanes behind; the tables have shape (h_out,) or (w_out,) and dtype int64; no window is
empty; for means ``dx`` is zero on entry.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import parallel_kernel, prange, signed, unsigned

__all__ = ["NOWHERE", "max_pool", "max_pool_backward", "mean_pool", "mean_pool_backward"]

LANES = 64
"""Most channels of a task of `max_pool_backward`: one image's are shared by the threads, and whole lines of the cache each."""

NOWHERE = 255
"""Place of a maximum that no element of the window is; places are bytes where windows have less elements than that."""


@parallel_kernel
def max_pool(
    x: Array,
    row_start: Array,
    row_stop: Array,
    row_step: int,
    col_start: Array,
    col_stop: Array,
    col_step: int,
    lowest: float,
    nowhere: int,
    out: Array,
    where: Array,
) -> None:
    """O[i,j] = max over window (i, j), of which only every ``row_step``-th row and ``col_step``-th column counts.

    ``where`` gets the number of the maximum in its window, counted in row-major order.  Among equals the first wins; a NaN
    beats everything, the last one the others (as in PyTorch).  Where nothing is above ``lowest``, that is the output, and
    ``nowhere`` its place: with -inf and 0 it is the maximum, with 0 and `NOWHERE` that of ReLU(x).
    """
    planes, h_out, w_out, lanes = out.shape
    _, height, width, _ = x.shape
    images, maxima, places = x.reshape(x.size), out.reshape(out.size), where.reshape(where.size)
    none = where.dtype.type(nowhere)
    for task in prange(planes * h_out):
        n, i = divmod(signed(task), h_out)
        for j in range(w_out):
            to = signed(task) * w_out * lanes + j * lanes
            for c in range(unsigned(lanes)):
                maxima[unsigned(to) + c] = lowest
                places[unsigned(to) + c] = none
            tap = 0
            for p in range(row_start[i], row_stop[i], row_step):
                for q in range(col_start[j], col_stop[j], col_step):
                    at, place = ((n * height + p) * width + q) * lanes, where.dtype.type(tap)
                    for c in range(unsigned(lanes)):
                        value, best, before = (
                            images[unsigned(at) + c],
                            maxima[unsigned(to) + c],
                            places[unsigned(to) + c],
                        )
                        wins = (value > best) | (value != value)
                        maxima[unsigned(to) + c] = value if wins else best
                        places[unsigned(to) + c] = place if wins else before
                    tap += 1


@parallel_kernel
def max_pool_backward(
    grad: Array,
    where: Array,
    row_start: Array,
    row_stop: Array,
    row_step: int,
    col_start: Array,
    col_stop: Array,
    col_step: int,
    dx: Array,
) -> None:
    """dX[p,q] = sum of dO[i,j] over the windows whose maximum is (p, q); the tables are those of `max_pool`."""
    planes, h_out, w_out, lanes = grad.shape
    _, height, width, _ = dx.shape
    gradients, places, images = grad.reshape(grad.size), where.reshape(where.size), dx.reshape(dx.size)
    zero = dx.dtype.type(0)
    blocks = (lanes + LANES - 1) // LANES
    for task in prange(planes * blocks):
        n, block = divmod(signed(task), blocks)
        first = block * LANES
        count = unsigned(min(LANES, lanes - first))
        for pixel in range(height * width):
            at = (n * height * width + pixel) * lanes + first
            for c in range(count):
                images[unsigned(at) + c] = zero
        for i in range(h_out):
            for j in range(w_out):
                source = ((n * h_out + i) * w_out + j) * lanes + first
                tap = 0
                for p in range(row_start[i], row_stop[i], row_step):
                    for q in range(col_start[j], col_stop[j], col_step):
                        at, place = ((n * height + p) * width + q) * lanes + first, where.dtype.type(tap)
                        for c in range(count):
                            share = gradients[unsigned(source) + c] if places[unsigned(source) + c] == place else zero
                            images[unsigned(at) + c] += share
                        tap += 1


@parallel_kernel
def mean_pool(
    x: Array,
    row_start: Array,
    row_stop: Array,
    row_size: Array,
    col_start: Array,
    col_stop: Array,
    col_size: Array,
    out: Array,
) -> None:
    """O[i,j] = (sum over window (i, j)) / n[i,j], summed in float64."""
    planes, h_out, w_out = out.shape
    for plane in prange(planes):
        n = np.int64(plane)
        for i in range(h_out):
            for j in range(w_out):
                total = np.float64(0.0)
                for p in range(row_start[i], row_stop[i]):
                    for q in range(col_start[j], col_stop[j]):
                        total += x[n, p, q]
                out[n, i, j] = total / (row_size[i] * col_size[j])


@parallel_kernel
def mean_pool_backward(
    grad: Array,
    row_start: Array,
    row_stop: Array,
    row_size: Array,
    col_start: Array,
    col_stop: Array,
    col_size: Array,
    dx: Array,
) -> None:
    """dX[p,q] += dO[i,j] / n[i,j] for each (p, q) of each window."""
    planes, h_out, w_out = grad.shape
    for plane in prange(planes):
        n = np.int64(plane)
        for i in range(h_out):
            for j in range(w_out):
                share = grad[n, i, j] / np.float64(row_size[i] * col_size[j])
                for p in range(row_start[i], row_stop[i]):
                    for q in range(col_start[j], col_stop[j]):
                        dx[n, p, q] += share
