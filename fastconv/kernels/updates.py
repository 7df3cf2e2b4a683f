"""Steps of optimisers: each number of all parameters, of their gradients and of what lasts from step to step is read once.

The schedule: parameters lie where they lie, so each is cut into pieces of at most PIECE numbers, which are given by their
addresses, and the pieces of all parameters are tasks of one loop.

Contract: ``tables`` has a row of COLUMNS for each task: the row of ``factors`` that holds its parameter's numbers, the piece's
size, and the addresses of its data, its gradient, and one or two arrays more (0 where there is none).
"""

from __future__ import annotations

import numpy as np
from numba import carray

from ..jit import unsigned
from ..simd.addresses import pointer_at
from ..tasks import Array, task

__all__ = ["ADAM_FACTORS", "COLUMNS", "PIECE", "SGD_FACTORS", "adam", "sgd"]

PIECE = 2**14
"""Numbers of a task: some microseconds of work, and they all fit into the second-level cache."""

COLUMNS = 6
SGD_FACTORS, ADAM_FACTORS = 6, 8


@task
def sgd(
    task: int, room: Array, numbers: Array, tables: Array, factors: Array, _: Array, __: Array, ___: Array
) -> None:  # fmt: skip
    """With g = grad + decay*data: m = keep*m + gain*g, then data -= lr*m, or with Nesterov's rule lr*(g + momentum*m)."""
    at = task * COLUMNS
    row, size = tables[at] * SGD_FACTORS, tables[at + 1]
    lr, decay, momentum = factors[row], factors[row + 1], factors[row + 2]
    keep, gain, nesterov = factors[row + 3], factors[row + 4], factors[row + 5]
    data = carray(pointer_at(tables[at + 2], factors), (size,))
    grad = carray(pointer_at(tables[at + 3], factors), (size,))
    if momentum == 0:
        for i in range(unsigned(size)):
            g = grad[i] + decay * data[i] if decay != 0 else grad[i]
            data[i] -= lr * g
    else:
        moments = carray(pointer_at(tables[at + 4], factors), (size,))
        for i in range(unsigned(size)):
            g = grad[i] + decay * data[i] if decay != 0 else grad[i]
            m = keep * moments[i] + gain * g
            moments[i] = m
            data[i] -= lr * (g + momentum * m if nesterov != 0 else m)


@task
def adam(
    task: int, room: Array, numbers: Array, tables: Array, factors: Array, _: Array, __: Array, ___: Array
) -> None:  # fmt: skip
    """With g = grad: m += (1 - beta1)*(g - m) and v = beta2*v + (1 - beta2)*g*g, then data -= lr*m / (sqrt(v)/root + eps).

    ``lr`` and ``root`` hold what makes up for m and v having begun at 0.  Decoupled decay first makes data ``shrink`` times
    as large; the other adds ``decay*data`` to the gradient.
    """
    at = task * COLUMNS
    row, size = tables[at] * ADAM_FACTORS, tables[at + 1]
    lr, decay, shrink, root = factors[row], factors[row + 1], factors[row + 2], factors[row + 3]
    gain1, beta2, gain2, eps = factors[row + 4], factors[row + 5], factors[row + 6], factors[row + 7]
    data = carray(pointer_at(tables[at + 2], factors), (size,))
    grad = carray(pointer_at(tables[at + 3], factors), (size,))
    means = carray(pointer_at(tables[at + 4], factors), (size,))
    squares = carray(pointer_at(tables[at + 5], factors), (size,))
    for i in range(unsigned(size)):
        value = data[i] * shrink
        g = grad[i] + decay * value if decay != 0 else grad[i]
        m = means[i] + gain1 * (g - means[i])
        v = beta2 * squares[i] + gain2 * (g * g)
        means[i], squares[i] = m, v
        data[i] = value - lr * (m / (np.sqrt(v) / root + eps))
