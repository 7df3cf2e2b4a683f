"""Softmax and cross entropy, and their gradient, in one pass over the scores.

The algorithm, for each row i of scores X and its class t, with the share e of each target spread evenly over all C classes:

    P[i,c]  = exp(X[i,c] - highest) / total, where total is the sum over c of the exponentials: none overflows, and one is 1
    loss[i] = -(1 - e) * log P[i,t] - e/C * sum over c of log P[i,c]
    dX[i,c] = (P[i,c] - (1 - e) * (c = t) - e/C) * scale

The schedule.  Blocks of rows are spread over the threads.  The exponentials of a block are computed in one loop, and written
out, in double precision, so that LLVM makes vector instructions of them, as it would not of calls: with n = round(y / log 2),
exp(y) = 2^n * exp(y - n log 2), of which the latter is Taylor's polynomial, and 2^n the number whose exponent's bits are n.

Contract: ``scores`` and ``dx`` have shape (rows, C) and are C-contiguous; ``classes`` are int64, from 0 to C - 1, and
``losses`` float64, both of shape (rows,).  ``rooms`` are those of `rooms_of_rows`.
"""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Array
from ..jit import inner_kernel, prange, signed, streaming_kernel, unsigned
from .sums import rooms_for, rows_of

__all__ = ["cross_entropy", "rooms_of_rows"]

LOG_2_HIGH, LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""The logarithm of 2, as a number with so few bits that n times it is exact, and the rest."""

LEAST = -708.0
"""Where exponentials end to be normal numbers; below they are 0 here."""

TAYLOR = tuple(1 / math.factorial(k) for k in range(13, -1, -1))
"""Coefficients of the exponential, the highest power's first: what is left out is less than 1e-17 up to half of log 2."""


NUMBERS = 1024
"""Numbers that are computed at once: enough to fill vectors, where classes are few, and few enough to stay in the cache."""


def rooms_of_rows(rows: int, count: int) -> Array:
    """Return scratch memory for each block of rows: for some rows, their scores, the exponentials, and powers of 2."""
    per_part = max(1, NUMBERS // count)
    return rooms_for(-(-rows // per_part), 3 * per_part * count, np.dtype(np.float64))


@streaming_kernel
def cross_entropy(
    scores: Array, classes: Array, smoothing: float, scale: float, rooms: Array, losses: Array, dx: Array
) -> None:  # fmt: skip
    """Compute ``losses`` and ``dx``."""
    rows, count = scores.shape
    flat, gradients = scores.reshape(scores.size), dx.reshape(dx.size)
    even, per_part = smoothing / count, rooms.shape[1] // (3 * count)
    for block in prange(len(rooms)):
        first_row, last_row = rows_of(signed(block), len(rooms), rows)
        room = rooms[signed(block)]
        for begin in range(first_row, last_row, per_part):
            end = min(begin + per_part, last_row)
            size = (end - begin) * count
            shifted, exponentials, powers = room[:size], room[size : 2 * size], room[2 * size : 3 * size]
            for row in range(begin, end):
                highest, at = flat[row * count], (row - begin) * count
                for c in range(1, count):
                    highest = max(highest, flat[row * count + c])
                for c in range(unsigned(count)):
                    shifted[unsigned(at) + c] = np.float64(flat[unsigned(row * count) + c]) - np.float64(highest)
            exponentiate(shifted, powers, exponentials)
            for row in range(begin, end):
                first, at = row * count, (row - begin) * count
                total, plain = 0.0, 0.0
                for c in range(at, at + count):
                    total += exponentials[c]
                    plain += shifted[c]
                log_total, hit = math.log(total), classes[row]
                losses[row] = (1 - smoothing) * (log_total - shifted[at + hit])
                if smoothing > 0:  # else a class that is ruled out, by a score of -inf, has no part in it
                    losses[row] += even * (count * log_total - plain)
                share = scale / total
                for c in range(unsigned(count)):
                    gradients[unsigned(first) + c] = exponentials[unsigned(at) + c] * share - even * scale
                gradients[first + hit] = (exponentials[at + hit] / total - even - (1 - smoothing)) * scale


@inner_kernel
def exponentiate(x: Array, scales: Array, out: Array) -> None:
    """out[c] = exp(x[c]), of numbers up to 0."""
    powers = scales.view(np.int64)
    for c in range(unsigned(x.size)):
        y = LEAST if x[c] < LEAST else x[c]
        n = np.floor((y if y == y else LEAST) * (1 / math.log(2)) + 0.5)  # of what is no number, only ``rest`` is none
        rest = y - n * LOG_2_HIGH - n * LOG_2_LOW
        polynomial = 0.0
        for coefficient in TAYLOR:
            polynomial = polynomial * rest + coefficient
        powers[c] = (np.int64(n) + 1023) << 52
        out[c] = 0.0 if x[c] < LEAST else polynomial
    for c in range(unsigned(x.size)):
        out[c] *= scales[c]
