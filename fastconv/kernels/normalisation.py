"""Batch normalisation of images whose channels lie last, alone or with what follows it: the sum of a shortcut, and ReLU.

The algorithm, for each channel c, over all rows i (pixels of all images), M of them:

    mean[c] = (sum over i of X[i,c]) / M        var[c] = (sum over i of (X[i,c] - mean[c])^2) / M
    O[i,c]  = (X[i,c] - mean[c]) * factor[c] + bias[c] + S[i,c], with ReLU max(that, 0)
    dX[i,c] = g[i,c] * factor[c] + (X[i,c] - mean[c]) * slope[c] + offset[c]
    dW[c]   = (sum over i of g[i,c] * (X[i,c] - mean[c])) * inverse[c]        db[c] = sum over i of g[i,c]

where inverse = 1 / sqrt(var + eps), factor = weight * inverse, g is dO, with ReLU only where O is above 0, and

    slope[c] = -factor[c] * inverse[c]^2 * mean over i of g[i,c] * (X[i,c] - mean[c])
    offset[c] = -factor[c] * mean over i of g[i,c]

Without a shortcut, whether O is above 0 is computed again from X, by the same operations: no mask is kept.

The schedule.  Rows are spread over the threads, channels are the lanes of the innermost loop; the caller joins rows of few
channels to longer ones, each of some pixels.  Sums over a block of rows are kept in double precision in a row of ``sums`` that is
the block's own, and added up in the order of the blocks: the bits do not depend on the number of threads.  Four rows are added to
them at a time, which saves reading and writing sums; they come from the block's four quarters, so that the hardware sees each
read from front to back and fetches ahead.

Contract: ``x``, ``shortcut``, ``grad``, ``output`` and results have shape (rows, lanes) and are C-contiguous, ``shortcut`` and
``output`` may be empty; ``sums`` have shape (blocks, 2, lanes); ``table`` has a row of numbers for all lanes for each of MEAN,
FACTOR, BIAS, INVERSE, SLOPE and OFFSET, of the dtype of ``x``; all other arrays have shape (channels,), or are empty if there is
no such thing.  ``passed`` and ``dx`` may be the array ``grad``.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import inlined, kernel, prange, signed, streaming_kernel, unsigned
from .sums import add_up, rows_of

__all__ = [
    "MEAN", "ROWS_OF_TABLE", "grad_input", "grad_scales", "grad_sums", "masked_sums", "measure", "moments", "normalise", "scales",
]  # fmt: skip

MEAN, FACTOR, BIAS, INVERSE, SLOPE, OFFSET = range(6)

ROWS_OF_TABLE = 6


@inlined
def normalised(x: float, mean: float, factor: float, bias: float) -> float:
    """O[i,c], without a shortcut."""
    return (x - mean) * factor + bias


@streaming_kernel
def moments(x: Array, shift: Array, sums: Array) -> None:
    """sums[block,0,c] = sum of X[i,c] - shift[c], sums[block,1,c] = sum of (X[i,c] - shift[c])^2 over the block's rows.

    The shift is one of the values: sums of squares then do not cancel, however far the values are from 0.
    """
    rows, lanes = x.shape
    flat = x.reshape(x.size)
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), rows)
        plain, squares = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        squares[:] = 0
        quarter = (last - first) // 4
        for i in range(first, first + quarter):
            at0, at1 = unsigned(i * lanes), unsigned((i + quarter) * lanes)
            at2, at3 = unsigned((i + 2 * quarter) * lanes), unsigned((i + 3 * quarter) * lanes)
            for c in range(unsigned(lanes)):
                d0, d1 = np.float64(flat[at0 + c] - shift[c]), np.float64(flat[at1 + c] - shift[c])
                d2, d3 = np.float64(flat[at2 + c] - shift[c]), np.float64(flat[at3 + c] - shift[c])
                plain[c] += (d0 + d1) + (d2 + d3)
                squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        for i in range(first + 4 * quarter, last):
            for c in range(unsigned(lanes)):
                difference = np.float64(flat[unsigned(i * lanes) + c] - shift[c])
                plain[c] += difference
                squares[c] += difference * difference


@kernel
def measure(
    sums: Array, rows: int, table: Array, mean: Array, var: Array, rate: float, running_mean: Array, running_var: Array
) -> None:  # fmt: skip
    """Mean and variance from the `moments` of so many rows, of which ``table`` holds the shift; running ones follow them."""
    channels, lanes = mean.size, table.shape[1]
    count = rows * (lanes // channels)
    number = mean.dtype.type
    add_up(sums, channels)
    for c in range(channels):
        plain, squares = sums[0, 0, c] / count, sums[0, 1, c] / count
        mean[c] = table[MEAN, c] + plain
        spread = squares - plain * plain
        var[c] = 0.0 if spread < 0 else spread
        if running_mean.size:
            unbiased = var[c] * number(count / (count - 1))
            running_mean[c] = running_mean[c] * number(1 - rate) + number(rate) * mean[c]
            running_var[c] = running_var[c] * number(1 - rate) + number(rate) * unbiased


@kernel
def scales(mean: Array, var: Array, eps: float, weight: Array, bias: Array, table: Array) -> None:
    """Fill the rows of ``table`` that forward passes need."""
    channels, lanes = mean.size, table.shape[1]
    number = mean.dtype.type
    for lane in range(lanes):
        c = lane % channels
        inverse = number(1) / np.sqrt(var[c] + number(eps))
        table[MEAN, lane] = mean[c]
        table[INVERSE, lane] = inverse
        table[FACTOR, lane] = inverse * weight[c] if weight.size else inverse
        table[BIAS, lane] = bias[c] if bias.size else number(0)


@streaming_kernel
def normalise(x: Array, table: Array, shortcut: Array, lowest: float, out: Array) -> None:
    """O[i,c], at least ``lowest``: 0 with ReLU, -inf without.  A NaN stays NaN."""
    rows, lanes = x.shape
    flat, added, results = x.reshape(x.size), shortcut.reshape(shortcut.size), out.reshape(out.size)
    mean, factor, bias = table[MEAN], table[FACTOR], table[BIAS]
    for row in prange(rows):
        at = unsigned(row) * unsigned(lanes)
        if shortcut.size:
            for c in range(unsigned(lanes)):
                value = normalised(flat[at + c], mean[c], factor[c], bias[c]) + added[at + c]
                results[at + c] = lowest if value < lowest else value
        else:
            for c in range(unsigned(lanes)):
                value = normalised(flat[at + c], mean[c], factor[c], bias[c])
                results[at + c] = lowest if value < lowest else value


@inlined
def passing(x: float, mean: float, factor: float, bias: float, least: float, gradient: float) -> float:
    """g[i,c] in double precision."""
    return 0.0 if normalised(x, mean, factor, bias) < least else np.float64(gradient)


@streaming_kernel
def grad_sums(x: Array, grad: Array, table: Array, least: float, sums: Array) -> None:
    """sums[block,0,c] = sum of g[i,c], sums[block,1,c] = sum of g[i,c] * (X[i,c] - mean[c]) over the block's rows.

    The gradient passes where O is at least ``least``: the smallest number above 0 with ReLU, -inf without.
    """
    rows, lanes = x.shape
    flat, gradients = x.reshape(x.size), grad.reshape(grad.size)
    mean, factor, bias = table[MEAN], table[FACTOR], table[BIAS]
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), rows)
        plain, products = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        products[:] = 0
        quarter = (last - first) // 4
        for i in range(first, first + quarter):
            at0, at1 = unsigned(i * lanes), unsigned((i + quarter) * lanes)
            at2, at3 = unsigned((i + 2 * quarter) * lanes), unsigned((i + 3 * quarter) * lanes)
            for c in range(unsigned(lanes)):
                m, f, b = mean[c], factor[c], bias[c]
                x0, x1, x2, x3 = flat[at0 + c], flat[at1 + c], flat[at2 + c], flat[at3 + c]
                g0, g1 = (
                    passing(x0, m, f, b, least, gradients[at0 + c]),
                    passing(x1, m, f, b, least, gradients[at1 + c]),
                )
                g2, g3 = (
                    passing(x2, m, f, b, least, gradients[at2 + c]),
                    passing(x3, m, f, b, least, gradients[at3 + c]),
                )
                y0, y1, y2, y3 = np.float64(x0 - m), np.float64(x1 - m), np.float64(x2 - m), np.float64(x3 - m)
                plain[c] += (g0 + g1) + (g2 + g3)
                products[c] += (g0 * y0 + g1 * y1) + (g2 * y2 + g3 * y3)
        for i in range(first + 4 * quarter, last):
            at = unsigned(i * lanes)
            for c in range(unsigned(lanes)):
                value = flat[at + c]
                g = passing(value, mean[c], factor[c], bias[c], least, gradients[at + c])
                plain[c] += g
                products[c] += g * np.float64(value - mean[c])


@streaming_kernel
def masked_sums(x: Array, grad: Array, output: Array, table: Array, passed: Array, sums: Array) -> None:
    """Compute `grad_sums` of a sum with ReLU, whose output tells where the gradient passes, and write g to ``passed``."""
    rows, lanes = x.shape
    flat, gradients = x.reshape(x.size), grad.reshape(grad.size)
    outputs, results = output.reshape(output.size), passed.reshape(passed.size)
    mean, zero = table[MEAN], grad.dtype.type(0)
    for block in prange(len(sums)):
        first, last = rows_of(signed(block), len(sums), rows)
        plain, products = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        products[:] = 0
        half = (last - first) // 2
        for i in range(first, first + half):
            at0, at1 = unsigned(i * lanes), unsigned((i + half) * lanes)
            for c in range(unsigned(lanes)):
                g0, g1 = gradients[at0 + c], gradients[at1 + c]
                g0, g1 = g0 if outputs[at0 + c] != 0 else zero, g1 if outputs[at1 + c] != 0 else zero
                y0, y1 = np.float64(flat[at0 + c] - mean[c]), np.float64(flat[at1 + c] - mean[c])
                results[at0 + c], results[at1 + c] = g0, g1
                plain[c] += np.float64(g0) + np.float64(g1)
                products[c] += np.float64(g0) * y0 + np.float64(g1) * y1
        for i in range(first + 2 * half, last):
            at = unsigned(i * lanes)
            for c in range(unsigned(lanes)):
                gradient = gradients[at + c]
                g = gradient if outputs[at + c] != 0 else zero
                results[at + c] = g
                plain[c] += np.float64(g)
                products[c] += np.float64(g) * np.float64(flat[at + c] - mean[c])


@kernel
def grad_scales(
    sums: Array, rows: int, table: Array, channels: int, grad_weight: Array, grad_bias: Array, accumulate: bool
) -> None:  # fmt: skip
    """Fill the rows of ``table`` that `grad_input` needs besides; write dW and db, or add them to what is there."""
    lanes = table.shape[1]
    count = rows * (lanes // channels)
    add_up(sums, channels)
    for c in range(channels):
        total, product = sums[0, 0, c], sums[0, 1, c]
        inverse = np.float64(table[INVERSE, c])
        if grad_weight.size:
            before_weight, before_bias = (grad_weight[c], grad_bias[c]) if accumulate else (0.0, 0.0)
            grad_weight[c] = before_weight + product * inverse
            grad_bias[c] = before_bias + total
        scale = -np.float64(table[FACTOR, c]) / count
        for lane in range(c, lanes, channels):
            table[SLOPE, lane] = scale * inverse * inverse * product
            table[OFFSET, lane] = scale * total


@streaming_kernel
def grad_input(x: Array, grad: Array, table: Array, least: float, dx: Array) -> None:
    """dX[i,c], of the gradient that passes as in `grad_sums`."""
    rows, lanes = x.shape
    flat, gradients, results = x.reshape(x.size), grad.reshape(grad.size), dx.reshape(dx.size)
    mean, factor, bias, slope, offset = table[MEAN], table[FACTOR], table[BIAS], table[SLOPE], table[OFFSET]
    zero = grad.dtype.type(0)
    for row in prange(rows):
        at = unsigned(row) * unsigned(lanes)
        for c in range(unsigned(lanes)):
            value, gradient = flat[at + c], gradients[at + c]
            g = zero if normalised(value, mean[c], factor[c], bias[c]) < least else gradient
            results[at + c] = g * factor[c] + ((value - mean[c]) * slope[c] + offset[c])
