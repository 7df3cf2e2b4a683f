r"""Convolution and its gradients as plain loops: the specification that everything else is tested against.

The layer has an input X (n_ch, h, w), a weight W (n_f, n_ch, f_r, f_c), a bias b, an output O (n_f, h_new, w_new) and a
stride s; padding is a layer of its own.  All indices start at 1, h_new = floor((h - f_r)/s) + 1 and
w_new = floor((w - f_c)/s) + 1.  With L the loss, dO stands for dL/dO, and so on::

    (1)  O[f,i,j]     = b[f] + sum over ch, r, c of  W[f,ch,r,c] * X[ch, (i-1)s+r, (j-1)s+c]
    (2)  dX[ch,p,q]   = sum over f, i = i_lower..i_upper, j = j_lower..j_upper of  dO[f,i,j] * W[f,ch, p-(i-1)s, q-(j-1)s]
    (3)  dW[f,ch,r,c] = sum over i, j of  dO[f,i,j] * X[ch, (i-1)s+r, (j-1)s+c]
    (4)  db[f]        = sum over i, j of  dO[f,i,j]

The first half of this file is these four equations, one loop nest each.  The second half is the same four with a third
axis, padding, dilation, groups and a batch, 0-based.  Nothing is shared between them, nor with what they check.

Is the derivation correct?
--------------------------
Yes, but for one bound.  X[ch,p,q] takes part in O[f,i,j] through row r = p - (i-1)s of W.  This row exists if
1 <= r <= f_r, that is (p - f_r)/s <= i - 1 <= (p - 1)/s.  A lower bound on an integer rounds **up**, and i runs from 1 to
h_new only, so::

    i_lower = max(1,     ceil((p - f_r)/s) + 1)
    i_upper = min(h_new, floor((p - 1)/s) + 1)

The published i_lower = floor((p - f_r)/s + 1) rounds down.  With a stride above 1 the sum then gains a term whenever
p > f_r and s does not divide p - f_r.  The smallest case: 3 rows, stride 2, and X's fourth row.

>>> f_r, s, p = 3, 2, 4
>>> published = (p - f_r) // s + 1
>>> p - (published - 1) * s  # the row of W that the first term reads: there are only 3
4
>>> i_lower(p, f_r, s)
2

NumPy would raise an IndexError; a compiled loop reads the next row in silence.  The last (h - f_r) mod s rows of X are
seen by no output: their range is empty and their gradient exactly 0.  Equation (2) needs no rotated weight; the flip
known from textbooks appears only when the sum is rewritten as a full convolution.

How does one begin to vectorise it?
-----------------------------------
`fastconv.ladder` climbs from these loops to the fast kernels in steps that each run, and are compared with the one
before: a NumPy slice per tap, im2col and one matrix product, parallel compiled loops.

Any dtype will do.  Complex numbers are not conjugated: the equations hold as they stand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import kernel

__all__ = ["grad_bias", "grad_input", "grad_weight", "i_lower", "i_upper", "output"]

Array = np.ndarray[Any, Any]


# ---------------------------------------------------------------------------------------------------------------------
# The source's case: one image, two axes, stride s.  Indices start at 1, as in the equations; only the subscripts say -1.
# ---------------------------------------------------------------------------------------------------------------------


@kernel
def i_lower(p: int, f_r: int, s: int) -> int:
    """First output row that input row ``p`` takes part in, all counted from 1.  For columns: q, f_c, s."""
    return max(1, -((f_r - p) // s) + 1)  # -((-a) // s) is ceil(a/s)


@kernel
def i_upper(p: int, h_new: int, s: int) -> int:
    """Last output row that input row ``p`` takes part in, all counted from 1.  For columns: q, w_new, s."""
    return min(h_new, (p - 1) // s + 1)


def output(X: Array, W: Array, b: Array, s: int = 1) -> Array:
    """Equation (1).

    Parameters
    ----------
    X : ndarray of shape (n_ch, h, w)
        Input.
    W : ndarray of shape (n_f, n_ch, f_r, f_c)
        Weight.
    b : ndarray of shape (n_f,) or (n_f, 1, 1, 1)
        Bias.
    s : int
        Stride.

    Returns
    -------
    ndarray of shape (n_f, h_new, w_new)
        O.  For integers it is int64, whatever integers came in.

    Examples
    --------
    >>> X = np.arange(16.0).reshape(1, 4, 4)
    >>> output(X, np.ones((1, 1, 3, 3)), np.zeros(1))
    array([[[45., 54.],
            [81., 90.]]])
    """
    X, W, b = summable(X), summable(W), summable(b).reshape(-1)
    h_new, w_new = (X.shape[1] - W.shape[2]) // s + 1, (X.shape[2] - W.shape[3]) // s + 1
    O = np.empty((W.shape[0], h_new, w_new), np.result_type(X, W, b))
    _output(X, W, b, s, O)
    return O


@kernel
def _output(X: Array, W: Array, b: Array, s: int, O: Array) -> None:
    n_f, n_ch, f_r, f_c = W.shape
    _, h_new, w_new = O.shape
    for f in range(1, n_f + 1):
        for i in range(1, h_new + 1):
            for j in range(1, w_new + 1):
                total = O.dtype.type(b[f - 1])
                for ch in range(1, n_ch + 1):
                    for r in range(1, f_r + 1):
                        for c in range(1, f_c + 1):
                            total += (
                                W[f - 1, ch - 1, r - 1, c - 1] * X[ch - 1, (i - 1) * s + r - 1, (j - 1) * s + c - 1]
                            )
                O[f - 1, i - 1, j - 1] = total


def grad_input(dO: Array, W: Array, h: int, w: int, s: int = 1) -> Array:
    """Equation (2).

    Parameters
    ----------
    dO : ndarray of shape (n_f, h_new, w_new)
        Gradient of the loss with respect to the output.
    W : ndarray of shape (n_f, n_ch, f_r, f_c)
        Weight.
    h, w : int
        Size of X.
    s : int
        Stride.

    Returns
    -------
    ndarray of shape (n_ch, h, w)
        dX.

    Examples
    --------
    >>> grad_input(np.ones((1, 1, 1)), np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), 3, 3, 2)
    array([[[1., 2., 0.],
            [3., 4., 0.],
            [0., 0., 0.]]])
    """
    dO, W = summable(dO), summable(W)
    dX = np.empty((W.shape[1], h, w), np.result_type(dO, W))
    _grad_input(dO, W, s, dX)
    return dX


@kernel
def _grad_input(dO: Array, W: Array, s: int, dX: Array) -> None:
    n_f, n_ch, f_r, f_c = W.shape
    _, h_new, w_new = dO.shape
    _, h, w = dX.shape
    for ch in range(1, n_ch + 1):
        for p in range(1, h + 1):
            for q in range(1, w + 1):
                total = dX.dtype.type(0)
                for f in range(1, n_f + 1):
                    for i in range(i_lower(p, f_r, s), i_upper(p, h_new, s) + 1):
                        for j in range(i_lower(q, f_c, s), i_upper(q, w_new, s) + 1):
                            total += (
                                dO[f - 1, i - 1, j - 1] * W[f - 1, ch - 1, p - (i - 1) * s - 1, q - (j - 1) * s - 1]
                            )
                dX[ch - 1, p - 1, q - 1] = total


def grad_weight(dO: Array, X: Array, f_r: int, f_c: int, s: int = 1) -> Array:
    """Equation (3).

    Parameters
    ----------
    dO : ndarray of shape (n_f, h_new, w_new)
        Gradient of the loss with respect to the output.
    X : ndarray of shape (n_ch, h, w)
        Input.
    f_r, f_c : int
        Rows and columns of a filter.
    s : int
        Stride.

    Returns
    -------
    ndarray of shape (n_f, n_ch, f_r, f_c)
        dW.

    Examples
    --------
    >>> grad_weight(np.ones((1, 2, 2)), np.arange(9.0).reshape(1, 3, 3), 2, 2)
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    dO, X = summable(dO), summable(X)
    dW = np.empty((dO.shape[0], X.shape[0], f_r, f_c), np.result_type(dO, X))
    _grad_weight(dO, X, s, dW)
    return dW


@kernel
def _grad_weight(dO: Array, X: Array, s: int, dW: Array) -> None:
    n_f, n_ch, f_r, f_c = dW.shape
    _, h_new, w_new = dO.shape
    for f in range(1, n_f + 1):
        for ch in range(1, n_ch + 1):
            for r in range(1, f_r + 1):
                for c in range(1, f_c + 1):
                    total = dW.dtype.type(0)
                    for i in range(1, h_new + 1):
                        for j in range(1, w_new + 1):
                            total += dO[f - 1, i - 1, j - 1] * X[ch - 1, (i - 1) * s + r - 1, (j - 1) * s + c - 1]
                    dW[f - 1, ch - 1, r - 1, c - 1] = total


def grad_bias(dO: Array) -> Array:
    """Equation (4).

    Parameters
    ----------
    dO : ndarray of shape (n_f, h_new, w_new)
        Gradient of the loss with respect to the output.

    Returns
    -------
    ndarray of shape (n_f,)
        db.

    Examples
    --------
    >>> grad_bias(np.ones((2, 3, 3)))
    array([9., 9.])
    """
    dO = summable(dO)
    db = np.empty(dO.shape[0], dO.dtype)
    _grad_bias(dO, db)
    return db


@kernel
def _grad_bias(dO: Array, db: Array) -> None:
    n_f, h_new, w_new = dO.shape
    for f in range(1, n_f + 1):
        total = db.dtype.type(0)
        for i in range(1, h_new + 1):
            for j in range(1, w_new + 1):
                total += dO[f - 1, i - 1, j - 1]
        db[f - 1] = total


# ---------------------------------------------------------------------------------------------------------------------
# The general case: x (N, C, D, H, W), weight (F, C/groups, KD, KH, KW), out (N, F, OD, OH, OW).  Indices start at 0.
# Output i reads input s*i + d*k - P through tap k.  stride, left (the padding P) and dilation hold one int per axis.
# These kernels are the last row of the plan's table.
# ---------------------------------------------------------------------------------------------------------------------

Ints3 = tuple[int, int, int]


@kernel
def general_output(
    x: Array, weight: Array, bias: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (1): a tap on padding adds nothing."""
    N, F, OD, OH, OW = out.shape
    _, C, D, H, W = x.shape
    _, GC, KD, KH, KW = weight.shape
    for n in range(N):
        for f in range(F):
            first = f // (F // groups) * GC
            for io in range(OD):
                for i in range(OH):
                    for j in range(OW):
                        total = bias[f]
                        for ch in range(GC):
                            for k in range(KD):
                                for r in range(KH):
                                    for c in range(KW):
                                        po = stride[0] * io + dilation[0] * k - left[0]
                                        p = stride[1] * i + dilation[1] * r - left[1]
                                        q = stride[2] * j + dilation[2] * c - left[2]
                                        if 0 <= po < D and 0 <= p < H and 0 <= q < W:
                                            total += weight[f, ch, k, r, c] * x[n, first + ch, po, p, q]
                        out[n, f, io, i, j] = total


@kernel
def general_grad_input(
    grad_output: Array, weight: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (2): of the outputs i_lower..i_upper, those whose distance a tap can bridge."""
    N, F, OD, OH, OW = grad_output.shape
    _, C, D, H, W = out.shape
    _, GC, KD, KH, KW = weight.shape
    (sd, sh, sw), (dd, dh, dw) = stride, dilation
    GF = F // groups
    for n in range(N):
        for c in range(C):
            first = c // GC * GF
            for z in range(D):
                for y in range(H):
                    for x in range(W):
                        zp, yp, xp = z + left[0], y + left[1], x + left[2]
                        total = out.dtype.type(0)
                        for f in range(first, first + GF):
                            for io in range(max(0, -((dd * (KD - 1) - zp) // sd)), min(OD - 1, zp // sd) + 1):
                                if (zp - sd * io) % dd != 0:
                                    continue
                                for i in range(max(0, -((dh * (KH - 1) - yp) // sh)), min(OH - 1, yp // sh) + 1):
                                    if (yp - sh * i) % dh != 0:
                                        continue
                                    for j in range(max(0, -((dw * (KW - 1) - xp) // sw)), min(OW - 1, xp // sw) + 1):
                                        if (xp - sw * j) % dw != 0:
                                            continue
                                        k, r, q = (zp - sd * io) // dd, (yp - sh * i) // dh, (xp - sw * j) // dw
                                        total += grad_output[n, f, io, i, j] * weight[f, c % GC, k, r, q]
                        out[n, c, z, y, x] = total


@kernel
def general_grad_weight(
    grad_output: Array, x: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (3).  ``out`` (S, F, C/groups, KD, KH, KW) holds S sums, each over N/S consecutive images."""
    N, F, OD, OH, OW = grad_output.shape
    _, C, D, H, W = x.shape
    S, _, GC, KD, KH, KW = out.shape
    for m in range(S):
        for f in range(F):
            first = f // (F // groups) * GC
            for ch in range(GC):
                for k in range(KD):
                    for r in range(KH):
                        for c in range(KW):
                            total = out.dtype.type(0)
                            for n in range(m * N // S, (m + 1) * N // S):
                                for io in range(OD):
                                    for i in range(OH):
                                        for j in range(OW):
                                            po = stride[0] * io + dilation[0] * k - left[0]
                                            p = stride[1] * i + dilation[1] * r - left[1]
                                            q = stride[2] * j + dilation[2] * c - left[2]
                                            if 0 <= po < D and 0 <= p < H and 0 <= q < W:
                                                total += grad_output[n, f, io, i, j] * x[n, first + ch, po, p, q]
                            out[m, f, ch, k, r, c] = total


@kernel
def general_grad_bias(grad_output: Array, out: Array) -> None:
    """Equation (4)."""
    N, F, OD, OH, OW = grad_output.shape
    for f in range(F):
        total = out.dtype.type(0)
        for n in range(N):
            for io in range(OD):
                for i in range(OH):
                    for j in range(OW):
                        total += grad_output[n, f, io, i, j]
        out[f] = total


def summable(array: Array) -> Array:
    """Bring an array to a dtype whose sums do not overflow early: integers to int64, float16 to float32.

    Raises
    ------
    TypeError
        If the dtype is none that the loops can add: text, objects, dates, long double.
    """
    array = np.asarray(array)
    if array.dtype.kind in "biu":
        return np.ascontiguousarray(array, np.int64)
    if array.dtype.newbyteorder("=") == np.float16:
        return np.ascontiguousarray(array, np.float32)
    if array.dtype.newbyteorder("=") in (np.float32, np.float64, np.complex64, np.complex128):
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    raise TypeError(f"dtype {array.dtype} cannot be convolved: expected integers, float16, 32, 64 or complex64, 128")
