"""From the formula to a fast kernel, one step at a time.

Each step computes the forward pass of the source's layer, equation (1) for one image without padding, and each is the one
before it with one idea more:

1. `loops`         the formula as Python loops: every index visible, every operation interpreted
2. `slices`        one NumPy operation per tap: the loops over pixels become strided slices
3. `im2col`        one matrix product: the loops over taps and channels become a copy and a call to BLAS
4. `compiled`      the loops of step 1 again, compiled and shared among the cores: no copy, and the pixels of a row side by
                   side in vector registers
5. `tiles`         a matrix of sums that stays in registers: what is loaded once is used several times

The gradients climb the same ladder: each is a sum over pixels, or over taps and filters, that can be sliced, copied into a
matrix, or compiled.  `STEPS` lists the functions in order; `python -m fastconv.ladder` times each beside the one before.

>>> rng = np.random.default_rng(0)
>>> X, W, b = rng.integers(-9, 9, (3, 9, 8)) * 1.0, rng.integers(-9, 9, (4, 3, 3, 2)) * 1.0, np.arange(4.0)
>>> steps = [step(X, W, b, 2) for step in STEPS]
>>> all(np.array_equal(before, after) for before, after in zip(steps, steps[1:]))
True
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from . import ops

__all__ = ["STEPS", "compiled", "im2col", "loops", "slices", "tiles"]

Array = np.ndarray[Any, Any]


def loops(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Step 1: equation (1) as it stands, with indices from 0.

    Parameters
    ----------
    X : ndarray of shape (n_ch, h, w)
        Image.
    W : ndarray of shape (n_f, n_ch, f_r, f_c)
        Filters.
    b : ndarray of shape (n_f,)
        Bias.
    s : int
        Stride.

    Returns
    -------
    ndarray of shape (n_f, h_new, w_new)
        O.
    """
    n_f, n_ch, f_r, f_c = W.shape
    _, h, w = X.shape
    O = np.empty((n_f, (h - f_r) // s + 1, (w - f_c) // s + 1), X.dtype)
    for f, i, j in np.ndindex(O.shape):
        total = b[f]
        for ch in range(n_ch):
            for r in range(f_r):
                for c in range(f_c):
                    total = total + W[f, ch, r, c] * X[ch, s * i + r, s * j + c]
        O[f, i, j] = total
    return O


def slices(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Step 2: for a fixed tap (r, c) the pixels that it meets are a slice of X with step s.

    ``X[:, s*i + r, s*j + c]`` for all i and j at once is ``X[:, r : r + s*h_new : s, c : c + s*w_new : s]``, and the sum over
    channels is a contraction with ``W[:, :, r, c]``.  Only f_r * f_c steps of Python are left.  Arguments as in `loops`.
    """
    n_f, _, f_r, f_c = W.shape
    _, h, w = X.shape
    h_new, w_new = (h - f_r) // s + 1, (w - f_c) // s + 1
    O = np.empty((n_f, h_new, w_new), X.dtype)
    O[:] = b[:, None, None]
    for r in range(f_r):
        for c in range(f_c):
            O += np.tensordot(W[:, :, r, c], X[:, r : r + s * h_new : s, c : c + s * w_new : s], 1)
    return O


def im2col(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Step 3: lay every window out as a column; then equation (1) is one matrix product.

    The matrix has n_ch * f_r * f_c rows and h_new * w_new columns, so each pixel is copied once for every tap that meets it:
    nine times the memory for 3x3, in exchange for a product that BLAS runs near the peak.  Arguments as in `loops`.
    """
    n_f, n_ch, f_r, f_c = W.shape
    windows = sliding_window_view(X, (f_r, f_c), (1, 2))[:, ::s, ::s]  # (n_ch, h_new, w_new, f_r, f_c), still a view
    _, h_new, w_new, _, _ = windows.shape
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(n_ch * f_r * f_c, h_new * w_new)  # the copy
    O: Array = (W.reshape(n_f, -1) @ columns).reshape(n_f, h_new, w_new)
    return O + b[:, None, None]


def compiled(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Step 4: the loops again, as parallel compiled kernels: `fastconv.kernels.loops`.

    Each task owns a row of the output.  The innermost loop runs over the pixels of the row, which lie side by side in memory,
    without a test inside, so the compiler turns it into vector instructions.  Arguments as in `loops`.
    """
    return ops.conv2d(X, W, b, s, algorithm="loops")


def tiles(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Step 5: the register tile, `fastconv.simd` under `fastconv.kernels.direct`.

    Step 4 loads and stores a partial sum for every few multiplications.  Here a block of sums, pixels times filters, stays in
    registers over all taps and channels: each vector of weights is multiplied with every pixel of the block, each pixel with
    every vector.  That needs filters side by side in memory, so weights are packed first, and images where they do not lie as the
    tile reads them, which costs little beside the arithmetic that it feeds.  Arguments as in `loops`.
    """
    return ops.conv2d(X, W, b, s, algorithm="direct")


STEPS: tuple[Callable[..., Array], ...] = (loops, slices, im2col, compiled, tiles)


def main() -> None:
    """Time each step on a layer small enough for the first."""
    rng = np.random.default_rng(0)
    n_ch, size, n_f = 16, 30, 32
    X, W = (
        rng.standard_normal((n_ch, size, size)).astype(np.float32),
        rng.standard_normal((n_f, n_ch, 3, 3)).astype(np.float32),
    )
    b = np.zeros(n_f, np.float32)
    flops = 2 * n_f * (size - 2) ** 2 * n_ch * 9
    print(f"{n_ch} -> {n_f} channels, {size}x{size}, 3x3, float32, {flops / 1e6:.1f} MFLOP")
    before = 0.0
    for step in STEPS:
        repeats = 1 if step is loops else 20
        step(X, W, b) if step is not loops else None
        seconds = min(_seconds(step, X, W, b) for _ in range(repeats))
        speedup = f"{before / seconds:8.1f}x the step before" if before else ""
        print(f"{step.__name__:<10}{1e3 * seconds:10.3f} ms {flops / seconds / 1e9:8.2f} GFLOP/s {speedup}")
        before = seconds


def _seconds(step: Callable[..., Array], *arguments: Array) -> float:
    start = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
