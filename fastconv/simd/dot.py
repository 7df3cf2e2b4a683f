"""The dot tile: vectors times vectors, of which each pair is summed over the pixels of rows: lanes are neighbours in a row.

It has sums for some filters and some terms, pairs of a channel and a tap.  The gradients of a vector of pixels stay in registers
while what each term meets there passes, which is loaded once for all filters.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import VECTORS
from .words import I64, Array, Words, call_first, equal, lanes, passed_arguments, private_function, tile_intrinsic

__all__ = ["DOT_FILTERS", "dot_tile"]

DOT_FILTERS = 3
"""Most filters of a tile."""

HEIGHTS = (9, 3, 1) if VECTORS == 4 else (3, 1)
"""Terms of a tile: at first as many as registers hold sums, and then fewer.  With 32 registers these are 27, three gradients and
a vector of the input, 12 loads for 27 multiplications; with 16 there is room for a mask, too."""

DOT = (
    "filters, terms, rows, count, x, x_at, x_row, tables, offsets_at, gradient, gradient_at, gradient_row, gradient_plane, out, "
    "out_at, out_pitch"
)
DOT_PASSED = (
    "terms rows count x+x_at x_row tables+offsets_at gradient+gradient_at gradient_row gradient_plane "
    "out+out_at out_pitch"
)


def _write_products(function: Any, dtype: Any, filters: int, height: int, whole: bool) -> None:
    """Emit the sums of so many filters and terms, over ``whole`` vectors only or, in a row, also over a part of one."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    rows, count, x, x_row, offsets, gradient, gradient_row, gradient_plane, out, out_pitch = function.args
    acc = [[w.variable(w.vector) for _ in range(height)] for _ in range(filters)]
    zero = w.constant(0)
    for a in itertools.chain(*acc):
        b.store(zero, a)
    places = [w.at(x, w.load(b.add(offsets, I64(8 * k)), I64)) for k in range(height)]
    planes = [b.add(gradient, b.mul(gradient_plane, I64(f))) for f in range(filters)]
    with cgutils.for_range(b, rows) as row, cgutils.for_range_slice(b, I64(0), count, I64(w.lanes)) as (first, _):
        along, exist = b.mul(first, I64(w.size)), None if whole else w.before_lane(b.sub(count, first))
        at, there = b.add(b.mul(row.index, x_row), along), b.add(b.mul(row.index, gradient_row), along)
        ends = [b.add(plane, there) for plane in planes]
        factors = [w.load(end, w.vector) if whole else w.load_some(end, exist) for end in ends]
        for k, place in enumerate(places):
            value = w.load(b.add(place, at), w.vector)
            value = value if whole else b.select(exist, value, zero)
            for factor, sums in zip(factors, acc, strict=True):
                b.store(w.multiply_add(factor, value, b.load(sums[k])), sums[k])
    for f, sums in enumerate(acc):
        for k, a in enumerate(sums):
            end = b.add(b.add(out, b.mul(out_pitch, I64(f))), I64(k * w.bytes))
            w.store(b.fadd(w.load(end, w.vector), b.load(a)), end)
    b.ret_void()


def _write_dot_tile(function: Any, dtype: Any, filters: int) -> None:
    """Emit the tile: some terms after the other."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    terms, rows, count, x, x_row, offsets, gradient, gradient_row, gradient_plane, out, out_pitch = function.args
    x_row, gradient_row, gradient_plane, out_pitch = (
        b.mul(step, I64(w.size)) for step in (x_row, gradient_row, gradient_plane, out_pitch)
    )
    done = w.variable(I64)
    b.store(I64(0), done)
    whole = b.icmp_signed("==", b.srem(count, I64(w.lanes)), I64(0))
    for height in HEIGHTS:
        with w.repeat(lambda: b.icmp_signed("<=", b.add(b.load(done), I64(height)), terms)):  # noqa: B023
            these, to = w.at(offsets, b.load(done), 8), w.at(out, b.load(done), w.bytes)
            passed = [rows, count, x, x_row, these, gradient, gradient_row, gradient_plane, to, out_pitch]
            with b.if_else(whole) as ways:
                for kind, way in zip(("whole", "part"), ways, strict=True):
                    name = f"products_{w.suffix}_{filters}x{height}_{kind}"
                    products, new = private_function(b.module, name, len(passed))
                    if new:
                        _write_products(products, dtype, filters, height, kind == "whole")
                    with way:
                        b.call(products, passed)
            b.store(b.add(b.load(done), I64(height)), done)
    b.ret_void()


def _dot_twin(
    filters: int, terms: int, rows: int, count: int, x: Array, x_at: int, x_row: int, tables: Array, offsets_at: int,
    gradient: Array, gradient_at: int, gradient_row: int, gradient_plane: int, out: Array, out_at: int, out_pitch: int,
) -> None:  # fmt: skip
    """The tile in plain Python."""
    n = lanes(out.itemsize)
    for f, k in itertools.product(range(filters), range(terms)):
        acc = np.zeros(n, out.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for row, first in itertools.product(range(rows), range(0, count, n)):
                some = min(n, count - first)
                here = x_at + int(tables[offsets_at + k]) + row * x_row + first
                there = gradient_at + f * gradient_plane + row * gradient_row + first
                acc[:some] += x[here : here + some] * gradient[there : there + some]
            end = out_at + f * out_pitch + k * n
            out[end : end + n] += acc


def _call_dot(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    dtype, w, passed = passed_arguments(context, builder, named, DOT_PASSED)
    calls = []
    for filters in range(1, DOT_FILTERS + 1):
        function, new = private_function(builder.module, f"dot_tile_{w.suffix}_{filters}", len(passed))
        if new:
            _write_dot_tile(function, dtype, filters)
        calls.append((equal(builder, named, {"filters": filters}), function))
    call_first(builder, calls, passed)


dot_tile = _dot_twin if config.DISABLE_JIT else tile_intrinsic(DOT, _call_dot)
"""Sums over rows of pixels, a vector of lanes for each pair of a filter and a term::

    out[filter, term, lane] += sum over rows and pixels q < count of this lane of
                               gradient[filter, row, q] * x[x_at + offset of term + row*x_row + q]

Lanes of the last vector behind ``count`` add nothing.

Parameters
----------
filters, terms : int
    At most DOT_FILTERS, and any number.
rows, count : int
    Rows, and pixels of each.
x, x_at, x_row : flat array, offset and distance
    The input, of which whole vectors are read.
tables, offsets_at : flat int64 array and offset
    For each term its offset.
gradient, gradient_at, gradient_row, gradient_plane : flat array, offset and distances
    The gradients.
out, out_at, out_pitch : flat array, offset and distance
    The sums, and how far those of the next filter lie behind.
"""
