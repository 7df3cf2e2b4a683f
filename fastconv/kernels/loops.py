"""Parallel loops: every pass as a gather over rows, for any shape, stride, padding, dilation and groups.

Arrays are C-contiguous with three spatial axes: x (N, C, D, H, W), weight (F, C/groups, KD, KH, KW), grad_output and out
as their pass has them.  ``stride``, ``left`` (the padding P) and ``dilation`` hold one int per axis.

The schedule.  A task owns one row of the output (or one tap of dW).  It walks over the terms of its sum by the ranges
i_lower..i_upper and j_lower..j_upper of `fastconv.geometry`, and adds them a row at a time: the innermost loop runs along
a row without any test, so that LLVM turns it into vector instructions, and four terms are added in one go, so that a
partial sum is loaded and stored once for four multiplications (one go for each ran at a third of the speed).

Each element has one owner and one order of summation: results do not depend on how many threads share the tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import ceil_div, gather_range, phase_taps, tap_range
from ..jit import inner_kernel, parallel_kernel, prange, signed, unsigned

__all__ = ["grad_bias", "grad_input", "grad_weight", "output"]

Array = np.ndarray[Any, Any]
Ints3 = tuple[int, int, int]

TERMS = 64
"""Terms of a row's sum that are collected before they are added; a multiple of 4."""


@parallel_kernel
def output(
    x: Array, weight: Array, bias: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (1).

    out[n,f,z,i,j] = bias[f] + sum over ch, k, r, c of weight[f,ch,k,r,c] * x[n,ch, s*z + d*k - P, s*i + d*r - P, s*j + d*c - P]

    A task is one output row (n, f, z, i); a term is one tap (ch, k, r, c), for the columns j_lower..j_upper.
    """
    N, F, OD, OH, OW = out.shape
    _, C, D, H, W = x.shape
    _, GC, KD, KH, KW = weight.shape
    image, filters = x.reshape(x.size), weight.reshape(weight.size)
    for task in prange(N * F * OD * OH):
        rest, i = divmod(signed(task), OH)
        rest, z = divmod(rest, OD)
        n, f = divmod(rest, F)
        first = n * C + f // (F // groups) * GC
        row, part = np.empty(OW, out.dtype), np.empty(OW, out.dtype)
        row[:] = bias[f]
        columns = np.empty((KW, 2), np.int64)
        for c in range(KW):
            columns[c, 0], columns[c, 1] = tap_range(c, W, OW, stride[2], dilation[2], left[2])
        terms, used = np.empty((TERMS, 4), np.int64), 0
        for ch in range(GC):
            for k in range(KD):
                pz = stride[0] * z + dilation[0] * k - left[0]
                if pz < 0 or pz >= D:
                    continue
                for r in range(KH):
                    p = stride[1] * i + dilation[1] * r - left[1]
                    if p < 0 or p >= H:
                        continue
                    for c in range(KW):
                        terms[used, 0] = (((first + ch) * D + pz) * H + p) * W + dilation[2] * c - left[2]
                        terms[used, 1] = (((f * GC + ch) * KD + k) * KH + r) * KW + c
                        terms[used, 2], terms[used, 3] = columns[c, 0], columns[c, 1]
                        used += 1
                        if used == TERMS:
                            add_terms(row, part, terms, used, image, stride[2], filters)
                            used = 0
        add_terms(row, part, terms, used, image, stride[2], filters)
        for j in range(OW):
            out[n, f, z, i, j] = row[j]


@parallel_kernel
def grad_input(
    grad_output: Array, weight: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (2).

    out[n,ch,z,p,q] = sum over f, i = i_lower..i_upper, j = j_lower..j_upper of grad_output[n,f,..,i,j] * weight[f,ch,..,r,c]
    with r = (p + P - s*i) / d and c = (q + P - s*j) / d

    A task is one input row (n, ch, z, p).  Its columns fall apart into the phases q mod s: within one, neighbouring columns
    q = phase + s*t read neighbouring outputs j = t + shift through the same taps c, so again a term is a whole row.
    """
    N, F, OD, OH, OW = grad_output.shape
    _, C, D, H, W = out.shape
    _, GC, KD, KH, KW = weight.shape
    GF = F // groups
    s, d, P = stride[2], dilation[2], left[2]
    gradient, filters = grad_output.reshape(grad_output.size), weight.reshape(weight.size)
    for task in prange(N * C * D * H):
        rest, p = divmod(signed(task), H)
        rest, pz = divmod(rest, D)
        n, channel = divmod(rest, C)
        first, ch = channel // GC * GF, channel % GC
        z_lower, z_upper = gather_range(pz, KD, OD, stride[0], dilation[0], left[0])
        i_lower, i_upper = gather_range(p, KH, OH, stride[1], dilation[1], left[1])
        row, part = np.empty(ceil_div(W, s), out.dtype), np.empty(ceil_div(W, s), out.dtype)
        shift = np.empty(KW, np.int64)
        terms, used = np.empty((TERMS, 4), np.int64), 0
        for phase in range(min(s, W)):
            columns = ceil_div(W - phase, s)
            first_tap, tap_step = phase_taps(phase, s, d, P)
            for c in range(max(0, first_tap), KW, tap_step):
                shift[c] = (phase + P - d * c) // s
            row[:] = 0
            for f in range(first, first + GF if first_tap >= 0 else first):
                for z in range(z_lower, z_upper + 1):
                    k, gap = divmod(pz + left[0] - stride[0] * z, dilation[0])
                    if gap != 0:
                        continue
                    for i in range(i_lower, i_upper + 1):
                        r, gap = divmod(p + left[1] - stride[1] * i, dilation[1])
                        if gap != 0:
                            continue
                        for c in range(first_tap, KW, tap_step):
                            terms[used, 0] = (((n * F + f) * OD + z) * OH + i) * OW + shift[c]
                            terms[used, 1] = (((f * GC + ch) * KD + k) * KH + r) * KW + c
                            terms[used, 2], terms[used, 3] = max(0, -shift[c]), min(columns - 1, OW - 1 - shift[c])
                            used += 1
                            if used == TERMS:
                                add_terms(row, part, terms, used, gradient, 1, filters)
                                used = 0
            add_terms(row, part, terms, used, gradient, 1, filters)
            used = 0
            for t in range(columns):
                out[n, channel, pz, p, phase + s * t] = row[t]


@parallel_kernel
def grad_weight(
    grad_output: Array, x: Array, out: Array, stride: Ints3, left: Ints3, dilation: Ints3, groups: int
) -> None:
    """Equation (3).

    out[m,f,ch,k,r,c] = sum over n, z, i, j of grad_output[n,f,z,i,j] * x[n,ch, s*z + d*k - P, s*i + d*r - P, s*j + d*c - P]

    ``out`` holds S sums, each over N/S consecutive images.  A task is one tap (m, f, ch, k, r, c).  It adds products row upon
    row into one sum per column, and adds up the columns at the end of each image: no run of additions is longer than an image
    has rows, or a row has columns, or there are images.
    """
    N, F, OD, OH, OW = grad_output.shape
    _, C, D, H, W = x.shape
    S, _, GC, KD, KH, KW = out.shape
    gradient, image = grad_output.reshape(grad_output.size), x.reshape(x.size)
    for task in prange(S * F * GC * KD * KH * KW):
        rest, c = divmod(signed(task), KW)
        rest, r = divmod(rest, KH)
        rest, k = divmod(rest, KD)
        rest, ch = divmod(rest, GC)
        m, f = divmod(rest, F)
        channel = f // (F // groups) * GC + ch
        z_lower, z_upper = tap_range(k, D, OD, stride[0], dilation[0], left[0])
        i_lower, i_upper = tap_range(r, H, OH, stride[1], dilation[1], left[1])
        j_lower, j_upper = tap_range(c, W, OW, stride[2], dilation[2], left[2])
        p, q = stride[1] * i_lower + dilation[1] * r - left[1], stride[2] * j_lower + dilation[2] * c - left[2]
        columns = np.empty(OW, out.dtype)
        total = out.dtype.type(0)
        for n in range(m * N // S, (m + 1) * N // S):
            columns[:] = 0
            for z in range(z_lower, z_upper + 1):
                pz = stride[0] * z + dilation[0] * k - left[0]
                add_products(
                    columns,
                    j_upper - j_lower + 1,
                    i_upper - i_lower + 1,
                    gradient,
                    (((n * F + f) * OD + z) * OH + i_lower) * OW + j_lower,
                    OW,
                    image,
                    (((n * C + channel) * D + pz) * H + p) * W + q,
                    stride[1] * W,
                    stride[2],
                )
            total += total_of(columns)
        out[m, f, ch, k, r, c] = total


@parallel_kernel
def grad_bias(grad_output: Array, out: Array) -> None:
    """Equation (4): out[f] = sum over n, z, i, j of grad_output[n,f,z,i,j], in double precision, one sum per column."""
    N, F, OD, OH, OW = grad_output.shape
    gradient = grad_output.reshape(grad_output.size)
    for task in prange(F):
        f = signed(task)
        columns = np.empty(OW, np.float64)
        total = 0.0
        for n in range(N):
            columns[:] = 0
            for line in range(OD * OH):
                at = ((n * F + f) * OD * OH + line) * OW
                for j in range(OW):
                    columns[j] += gradient[unsigned(at + j)]
            total += total_of(columns)
        out[f] = total


# The rows.  Offsets are unsigned: for a signed one Numba would add the wrap-around of negative indices, and LLVM would
# not vectorise the loop.


@inner_kernel
def add_terms(row: Array, part: Array, terms: Array, used: int, source: Array, step: int, scale: Array) -> None:
    """row[t] += scale[b] * source[a + step*t] for t = lower..upper, for each of the ``used`` terms (a, b, lower, upper).

    Every row[t] adds its terms in their order, first among themselves in ``part``: where a sum has thousands of terms, no run
    of additions is longer than TERMS, or the number of such runs, and the error grows with these.
    """
    for t in range(row.size):
        part[t] = 0
    whole = used - used % 4
    for m in range(0, whole, 4):
        lower = max(terms[m, 2], terms[m + 1, 2], terms[m + 2, 2], terms[m + 3, 2])
        upper = min(terms[m, 3], terms[m + 1, 3], terms[m + 2, 3], terms[m + 3, 3])
        if lower <= upper:
            for e in range(m, m + 4):  # what is not common to the four lies at the row's ends
                add_term(part, terms[e, 0], scale[terms[e, 1]], terms[e, 2], lower - 1, source, step)
                add_term(part, terms[e, 0], scale[terms[e, 1]], upper + 1, terms[e, 3], source, step)
            add_four_terms(part, terms[m : m + 4], lower, upper - lower + 1, source, step, scale)
        else:
            for e in range(m, m + 4):
                add_term(part, terms[e, 0], scale[terms[e, 1]], terms[e, 2], terms[e, 3], source, step)
    for e in range(whole, used):
        add_term(part, terms[e, 0], scale[terms[e, 1]], terms[e, 2], terms[e, 3], source, step)
    for t in range(row.size):
        row[t] += part[t]


@inner_kernel
def add_term(row: Array, at: int, scale: Any, lower: int, upper: int, source: Array, step: int) -> None:
    """row[t] += scale * source[at + step*t] for t = lower..upper."""
    if step == 1:
        for t in range(lower, upper + 1):
            row[unsigned(t)] += scale * source[unsigned(at + t)]
    else:
        for t in range(lower, upper + 1):
            row[unsigned(t)] += scale * source[unsigned(at + step * t)]


@inner_kernel
def add_four_terms(row: Array, terms: Array, lower: int, count: int, source: Array, step: int, scale: Array) -> None:
    """Four terms at once, all over the same columns."""
    w0, w1, w2, w3 = scale[terms[0, 1]], scale[terms[1, 1]], scale[terms[2, 1]], scale[terms[3, 1]]
    at, skip = unsigned(lower), unsigned(step)
    a0, a1 = unsigned(terms[0, 0] + step * lower), unsigned(terms[1, 0] + step * lower)
    a2, a3 = unsigned(terms[2, 0] + step * lower), unsigned(terms[3, 0] + step * lower)
    if step == 1:
        for t in range(unsigned(count)):
            total = row[at + t]
            total += w0 * source[a0 + t]
            total += w1 * source[a1 + t]
            total += w2 * source[a2 + t]
            total += w3 * source[a3 + t]
            row[at + t] = total
    else:
        for t in range(unsigned(count)):
            total = row[at + t]
            total += w0 * source[a0 + skip * t]
            total += w1 * source[a1 + skip * t]
            total += w2 * source[a2 + skip * t]
            total += w3 * source[a3 + skip * t]
            row[at + t] = total


@inner_kernel
def add_products(
    columns: Array, count: int, rows: int, a: Array, a0: int, a_row: int, b: Array, b0: int, b_row: int, b_step: int
) -> None:
    """columns[t] += a[a0 + a_row*i + t] * b[b0 + b_row*i + b_step*t] for i = 0..rows-1 in this order, t = 0..count-1."""
    whole = max(0, rows - rows % 4)
    skip, up, across = unsigned(b_step), unsigned(a_row), unsigned(b_row)
    for i in range(0, whole, 4):
        p, q = unsigned(a0 + a_row * i), unsigned(b0 + b_row * i)
        if b_step == 1:
            for t in range(unsigned(max(0, count))):
                total = columns[t]
                total += a[p + t] * b[q + t]
                total += a[p + up + t] * b[q + across + t]
                total += a[p + 2 * up + t] * b[q + 2 * across + t]
                total += a[p + 3 * up + t] * b[q + 3 * across + t]
                columns[t] = total
        else:
            for t in range(unsigned(max(0, count))):
                total = columns[t]
                total += a[p + t] * b[q + skip * t]
                total += a[p + up + t] * b[q + across + skip * t]
                total += a[p + 2 * up + t] * b[q + 2 * across + skip * t]
                total += a[p + 3 * up + t] * b[q + 3 * across + skip * t]
                columns[t] = total
    for i in range(whole, rows):
        p, q = unsigned(a0 + a_row * i), unsigned(b0 + b_row * i)
        for t in range(unsigned(max(0, count))):
            columns[t] += a[p + t] * b[q + skip * t]


@inner_kernel
def total_of(columns: Array) -> Any:
    """Add up the columns from left to right."""
    total = columns.dtype.type(0)
    for j in range(columns.size):
        total += columns[j]
    return total
