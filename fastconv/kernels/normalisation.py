"""Batch normalisation, alone or with the ReLU behind it, of images whose channels lie last.

The algorithm, for each channel c, over all rows i (pixels of all images), M of them:

    mean[c] = (sum over i of X[i,c]) / M        var[c] = (sum over i of (X[i,c] - mean[c])^2) / M
    Z[i,c]  = (X[i,c] - mean[c]) * inverse[c]   O[i,c] = Z[i,c] * weight[c] + bias[c], with ReLU max(that, 0)
    dX[i,c] = (g[i,c] - mean over i of g[i,c] - Z[i,c] * mean over i of g[i,c]*Z[i,c]) * weight[c] * inverse[c]

where g is dO, with ReLU only where O is above 0.

The schedule.  Blocks of ROWS rows are spread over the threads, channels are the lanes of the innermost loop.  A block's sums
are kept in double precision in a row of ``sums`` that is its own, and added up by the caller in the order of the blocks: the
bits do not depend on the number of threads.

Contract: ``x``, ``grad`` and ``out`` have shape (rows, channels) and are C-contiguous, as is ``mask`` of uint8; ``sums`` have
shape (blocks, channels), or (blocks, 2, channels) for two sums at once; all other arrays have shape (channels,).
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array
from ..jit import parallel_kernel, prange, signed, unsigned

__all__ = ["ROWS", "grad_input", "grad_sums", "normalise", "squares", "totals"]

ROWS = 256
"""Rows of a block."""


@parallel_kernel
def totals(x: Array, sums: Array) -> None:
    """sums[block,c] = sum of X[i,c] over the block's rows."""
    rows, channels = x.shape
    flat = x.reshape(x.size)
    for block in prange(len(sums)):
        first = signed(block) * ROWS
        own = sums[signed(block)]
        own[:] = 0
        for i in range(first, min(first + ROWS, rows)):
            for c in range(unsigned(channels)):
                own[c] += flat[unsigned(i * channels) + c]


@parallel_kernel
def squares(x: Array, mean: Array, sums: Array) -> None:
    """sums[block,c] = sum of (X[i,c] - mean[c])^2 over the block's rows."""
    rows, channels = x.shape
    flat = x.reshape(x.size)
    for block in prange(len(sums)):
        first = signed(block) * ROWS
        own = sums[signed(block)]
        own[:] = 0
        for i in range(first, min(first + ROWS, rows)):
            for c in range(unsigned(channels)):
                difference = np.float64(flat[unsigned(i * channels) + c] - mean[c])
                own[c] += difference * difference


@parallel_kernel
def normalise(
    x: Array, mean: Array, inverse: Array, weight: Array, bias: Array, lowest: float, out: Array, mask: Array
) -> None:
    """O[i,c], at least ``lowest`` (-inf without ReLU); the mask, where there is one, is 0 where that cuts, else 1."""
    rows, channels = x.shape
    flat, results, passes = x.reshape(x.size), out.reshape(out.size), mask.reshape(mask.size)
    for block in prange((rows + ROWS - 1) // ROWS):
        first = signed(block) * ROWS
        for i in range(first, min(first + ROWS, rows)):
            at = unsigned(i * channels)
            if mask.size:
                for c in range(unsigned(channels)):
                    value = (flat[at + c] - mean[c]) * inverse[c] * weight[c] + bias[c]
                    above = (value > lowest) | (value != value)
                    results[at + c] = value if above else lowest
                    passes[at + c] = np.uint8(1) if above else np.uint8(0)
            else:
                for c in range(unsigned(channels)):
                    value = (flat[at + c] - mean[c]) * inverse[c] * weight[c] + bias[c]
                    results[at + c] = lowest if value < lowest else value


@parallel_kernel
def grad_sums(x: Array, grad: Array, mask: Array, mean: Array, inverse: Array, sums: Array) -> None:
    """sums[block,0,c] = sum of g[i,c], sums[block,1,c] = sum of g[i,c]*Z[i,c] over the block's rows."""
    rows, channels = x.shape
    flat, gradients, passes = x.reshape(x.size), grad.reshape(grad.size), mask.reshape(mask.size)
    zero = grad.dtype.type(0)
    for block in prange(len(sums)):
        first = signed(block) * ROWS
        plain, products = sums[signed(block), 0], sums[signed(block), 1]
        plain[:] = 0
        products[:] = 0
        for i in range(first, min(first + ROWS, rows)):
            at = unsigned(i * channels)
            if mask.size:
                for c in range(unsigned(channels)):
                    g = gradients[at + c] if passes[at + c] else zero
                    plain[c] += g
                    products[c] += np.float64(g) * ((flat[at + c] - mean[c]) * inverse[c])
            else:
                for c in range(unsigned(channels)):
                    plain[c] += gradients[at + c]
                    products[c] += np.float64(gradients[at + c]) * ((flat[at + c] - mean[c]) * inverse[c])


@parallel_kernel
def grad_input(
    x: Array,
    grad: Array,
    mask: Array,
    mean: Array,
    inverse: Array,
    factor: Array,
    plain: Array,
    product: Array,
    dx: Array,
) -> None:
    """dX[i,c], of the means of g (``plain``) and of g*Z (``product``); ``factor`` is weight*inverse."""
    rows, channels = x.shape
    flat, gradients, passes, results = (
        x.reshape(x.size),
        grad.reshape(grad.size),
        mask.reshape(mask.size),
        dx.reshape(dx.size),
    )
    zero = grad.dtype.type(0)
    for block in prange((rows + ROWS - 1) // ROWS):
        first = signed(block) * ROWS
        for i in range(first, min(first + ROWS, rows)):
            at = unsigned(i * channels)
            if mask.size:
                for c in range(unsigned(channels)):
                    g = gradients[at + c] if passes[at + c] else zero
                    z = (flat[at + c] - mean[c]) * inverse[c]
                    results[at + c] = (g - plain[c] - z * product[c]) * factor[c]
            else:
                for c in range(unsigned(channels)):
                    z = (flat[at + c] - mean[c]) * inverse[c]
                    results[at + c] = (gradients[at + c] - plain[c] - z * product[c]) * factor[c]
