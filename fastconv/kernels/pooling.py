"""Maxima and means over windows, and their gradients.

The algorithm.  An image is a matrix of rows and columns; output (i, j) looks at the window of rows
``row_start[i] <= p < row_stop[i]`` and columns ``col_start[j] <= q < col_stop[j]``, already cut to the image:

    max   O[i,j] = max over p, q of X[p,q]             dX[p,q] = sum of dO[i,j] over the i, j whose maximum is X[p,q]
    mean  O[i,j] = (sum over p, q of X[p,q]) / n[i,j]  dX[p,q] = sum of dO[i,j] / n[i,j] over the i, j that see (p, q)

Kernel size, stride, padding, ceil mode and adaptive sizes are all in the tables of starts and stops, and so is whether
padding counts: ``n[i,j] = row_size[i] * col_size[j]``.

The schedule.  The planes (image and channel) are spread over the threads.  A plane of the output, or of dX, belongs to
one iteration, which visits the windows row by row: every element has one owner and one order of summation, so its bits
do not depend on the number of threads.

Contract: arrays are C-contiguous; ``x`` and ``dx`` have shape (planes, h, w), ``out`` and ``grad`` (planes, h_out,
w_out), the tables (h_out,) or (w_out,) and dtype int64; no window is empty; ``dx`` is zero on entry.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import parallel_kernel, prange

__all__ = ["max_pool", "max_pool_backward", "mean_pool", "mean_pool_backward"]


@parallel_kernel
def max_pool(
    x: Array,
    row_start: Array,
    row_stop: Array,
    row_step: int,
    col_start: Array,
    col_stop: Array,
    col_step: int,
    out: Array,
    where: Array,
) -> None:
    """O[i,j] = max over window (i, j), of which only every ``row_step``-th row and ``col_step``-th column counts.

    ``where`` gets ``p*w + q``, the place of the maximum in its plane.  Among equals the first in row-major order wins;
    a NaN beats everything, the last one the others (as in PyTorch).
    """
    planes, h_out, w_out = out.shape
    width = x.shape[2]
    for plane in prange(planes):
        n = np.int64(plane)
        for i in range(h_out):
            for j in range(w_out):
                first = row_start[i] * width + col_start[j]
                best, place = x[n, row_start[i], col_start[j]], first
                for p in range(row_start[i], row_stop[i], row_step):
                    for q in range(col_start[j], col_stop[j], col_step):
                        value = x[n, p, q]
                        if value > best or value != value:
                            best, place = value, p * width + q
                out[n, i, j] = best
                where[n, i, j] = place


@parallel_kernel
def max_pool_backward(grad: Array, where: Array, dx: Array) -> None:
    """dX[p,q] += dO[i,j] for the place (p, q) of each maximum; here dx has shape (planes, h*w)."""
    planes, h_out, w_out = grad.shape
    for plane in prange(planes):
        n = np.int64(plane)
        for i in range(h_out):
            for j in range(w_out):
                dx[n, where[n, i, j]] += grad[n, i, j]


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
