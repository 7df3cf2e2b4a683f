"""Batch normalisation of images whose channels lie last, alone or with what follows it: the sum of a shortcut, and ReLU.

The algorithm, for each channel c, over all rows i (pixels of all images), M of them:

    mean[c] = (sum over i of X[i,c]) / M        var[c] = (sum over i of (X[i,c] - mean[c])^2) / M
    O[i,c]  = (X[i,c] - mean[c]) * factor[c] + bias[c] + S[i,c], with ReLU max(that, 0)
    dX[i,c] = g[i,c] * factor[c] + (X[i,c] - mean[c]) * slope[c] + offset[c]

where factor = weight / sqrt(var + eps), g is dO, with ReLU only where O is above 0, and

    slope[c] = -factor[c] / (var[c] + eps) * mean over i of g[i,c] * (X[i,c] - mean[c])
    offset[c] = -factor[c] * mean over i of g[i,c]

Whether O is above 0 is computed again from X, by the same operations: no mask is kept.

The schedule.  Rows are spread over the threads, channels are the lanes of the innermost loop; the caller joins rows of few
channels to longer ones.  Sums over a block of rows are kept in double precision in a row of ``sums`` that is the block's own,
and added up by the caller in the order of the blocks: the bits do not depend on the number of threads.

Contract: ``x``, ``shortcut``, ``grad`` and ``out`` have shape (rows, channels) and are C-contiguous, ``shortcut`` may be empty;
``sums`` have shape (blocks, 2, channels); all other arrays have shape (channels,).
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import inlined, prange, signed, streaming_kernel, unsigned
from .sums import rows_of

__all__ = ["grad_input", "grad_sums", "moments", "normalise"]


@inlined
def normalised(x: float, mean: float, factor: float, bias: float) -> float:
    """O[i,c], without a shortcut."""
    return (x - mean) * factor + bias


@streaming_kernel
def moments(x: Array, shift: Array, sums: Array) -> None:
    """sums[block,0,c] = sum of X[i,c] - shift[c], sums[block,1,c] = sum of (X[i,c] - shift[c])^2 over the block's rows.

    The shift is one of the values: sums of squares then do not cancel, however far the values are from 0.
    """
    rows, channels = x.shape
    flat = x.reshape(x.size)
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), rows)
        plain, squares = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        squares[:] = 0
        for i in range(first, last):
            for c in range(unsigned(channels)):
                difference = np.float64(flat[unsigned(i * channels) + c] - shift[c])
                plain[c] += difference
                squares[c] += difference * difference


@streaming_kernel
def normalise(
    x: Array, mean: Array, factor: Array, bias: Array, shortcut: Array, lowest: float, out: Array
) -> None:  # fmt: skip
    """O[i,c], at least ``lowest``: 0 with ReLU, -inf without.  A NaN stays NaN."""
    rows, channels = x.shape
    flat, added, results = x.reshape(x.size), shortcut.reshape(shortcut.size), out.reshape(out.size)
    for row in prange(rows):
        at = unsigned(row) * unsigned(channels)
        if shortcut.size:
            for c in range(unsigned(channels)):
                value = normalised(flat[at + c], mean[c], factor[c], bias[c]) + added[at + c]
                results[at + c] = lowest if value < lowest else value
        else:
            for c in range(unsigned(channels)):
                value = normalised(flat[at + c], mean[c], factor[c], bias[c])
                results[at + c] = lowest if value < lowest else value


@streaming_kernel
def grad_sums(
    x: Array, grad: Array, mean: Array, factor: Array, bias: Array, least: float, sums: Array
) -> None:  # fmt: skip
    """sums[block,0,c] = sum of g[i,c], sums[block,1,c] = sum of g[i,c] * (X[i,c] - mean[c]) over the block's rows.

    The gradient passes where O is at least ``least``: the smallest number above 0 with ReLU, -inf without.
    """
    rows, channels = x.shape
    flat, gradients = x.reshape(x.size), grad.reshape(grad.size)
    zero = grad.dtype.type(0)
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), rows)
        plain, products = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        products[:] = 0
        for i in range(first, last):
            at = unsigned(i * channels)
            for c in range(unsigned(channels)):
                value, gradient = flat[at + c], gradients[at + c]
                g = np.float64(zero if normalised(value, mean[c], factor[c], bias[c]) < least else gradient)
                plain[c] += g
                products[c] += g * np.float64(value - mean[c])


@streaming_kernel
def grad_input(
    x: Array, grad: Array, mean: Array, factor: Array, bias: Array, least: float, slope: Array, offset: Array, dx: Array
) -> None:  # fmt: skip
    """dX[i,c], of the gradient that passes as in `grad_sums`."""
    rows, channels = x.shape
    flat, gradients, results = x.reshape(x.size), grad.reshape(grad.size), dx.reshape(dx.size)
    zero = grad.dtype.type(0)
    for row in prange(rows):
        at = unsigned(row) * unsigned(channels)
        for c in range(unsigned(channels)):
            value, gradient = flat[at + c], gradients[at + c]
            g = zero if normalised(value, mean[c], factor[c], bias[c]) < least else gradient
            results[at + c] = g * factor[c] + ((value - mean[c]) * slope[c] + offset[c])
