"""The sliding tiles: vectors times vectors, where channels do not mix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from .words import I64, Array, Words, address_of, call_first, lanes, private_function, tile_intrinsic

__all__ = ["SLIDES", "SPAN", "slide_tile", "sum_slide_tile"]

SPAN = 7
"""Neighbouring pixels that a sliding tile computes at once: 7 accumulators, up to 7 taps and a pixel of the input are 15
registers, and the sizes of common images (7, 14, 28, 56, 112) are multiples of it."""

SLIDES = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2))
"""(taps in a row, stride) of the sliding tiles: each pixel is loaded once for all taps and outputs that it meets.  All other
kernels are taken as rows of one tap."""

SLIDE = (
    "taps, stride, weights, weights_at, pitch, tables, lines_at, lines, x, x_at, x_step, x_row, out, out_at, out_step, out_row, "
    "count, rows, start, start_at, floor_at"
)  # fmt: skip


def _write_slide_tile(function: Any, dtype: Any, taps: int, stride: int, span: int) -> None:
    """Emit the sliding tile for ``span`` pixels at once; the last ones overlap those before, if need be."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    weights, pitch, offsets, lines, x, x_step, x_row, out, out_step, out_row, count, rows, start, floor = function.args
    pitch, x_step, x_row, out_step, out_row = (
        b.mul(step, I64(w.size)) for step in (pitch, x_step, x_row, out_step, out_row)
    )
    acc = [w.variable(w.vector) for _ in range(span)]
    done = w.variable(I64)

    def add_products(index: Any, here: Any) -> None:
        at = w.at(here, w.load(w.at(offsets, index, 8), I64))
        weight = b.add(weights, b.mul(index, b.mul(pitch, I64(taps))))
        column = [w.load(b.add(weight, b.mul(pitch, I64(c))), w.vector) for c in range(taps)]
        for j in range((span - 1) * stride + taps):
            meets = [(m, j - m * stride) for m in range(span) if 0 <= j - m * stride < taps]
            if meets:
                pixel = w.load(b.add(at, b.mul(x_step, I64(j))), w.vector)
            for m, c in meets:
                b.store(w.multiply_add(column[c], pixel, b.load(acc[m])), acc[m])

    def compute(begin: Any, row: Any) -> None:
        here = b.add(b.add(x, b.mul(row, x_row)), b.mul(begin, b.mul(x_step, I64(stride))))
        there = b.add(out, b.mul(row, out_row))
        for a in acc:
            b.store(w.load(start, w.vector), a)
        with cgutils.for_range(b, lines) as line:
            add_products(line.index, here)
        least = w.splat(w.load(floor, w.scalar))
        values = [w.at_least(b.load(a), least) for a in acc]
        ends = [b.add(there, b.mul(b.add(begin, I64(m)), out_step)) for m in range(span)]
        for value, end in zip(values, ends, strict=True):
            w.store(value, end)

    with cgutils.for_range(b, rows) as row:
        b.store(I64(0), done)
        with w.repeat(lambda: b.icmp_signed("<", b.load(done), count)):
            rest = b.sub(count, I64(span))
            compute(b.select(b.icmp_signed("<", b.load(done), rest), b.load(done), rest), row.index)
            b.store(b.add(b.load(done), I64(span)), done)
    b.ret_void()


def _slide_twin(
    taps: int, stride: int, weights: Array, weights_at: int, pitch: int, tables: Array, lines_at: int, lines: int, x: Array,
    x_at: int, x_step: int, x_row: int, out: Array, out_at: int, out_step: int, out_row: int, count: int, rows: int,
    start: Array, start_at: int, floor_at: int,
) -> None:  # fmt: skip
    """The sliding tile in plain Python."""
    n = lanes(out.itemsize)
    for row, m in itertools.product(range(rows), range(count)):
        acc = start[start_at : start_at + n].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for line in range(lines):
                for c in range(taps):
                    at = x_at + row * x_row + tables[lines_at + line] + (m * stride + c) * x_step
                    weight = weights_at + (line * taps + c) * pitch
                    acc += weights[weight : weight + n] * x[at : at + n]
        end = out_at + row * out_row + m * out_step
        out[end : end + n] = np.where(acc < start[floor_at], start[floor_at], acc)


def _slide_arguments(
    context: Any, builder: Any, named: dict[str, tuple[Any, Any]], names: str
) -> tuple[Any, Words, list[Any]]:
    """Turn the arguments of a sliding tile into those of its LLVM function: addresses, and numbers as they are."""
    dtype = named["x"][0].dtype
    w, passed = Words(builder, dtype), []
    for name in names.split():
        array, _, at = name.partition("+")
        kind, value = named[array]
        passed.append(
            w.at(address_of(context, builder, kind, value), named[at][1], 8 if array == "tables" else w.size)
            if at
            else value
        )
    return dtype, w, passed


def _slides(
    builder: Any, named: dict[str, tuple[Any, Any]], w: Words, name: str, write: Callable[..., None], n_args: int
) -> list[Any]:
    """Emit the sliding tiles, and return each with the condition for it."""
    calls = []
    for taps, stride in SLIDES[::-1]:
        same = [
            builder.icmp_signed("==", named[key][1], I64(value)) for key, value in (("taps", taps), ("stride", stride))
        ]
        function, new = private_function(builder.module, f"{name}_{w.suffix}_{taps}x{stride}", n_args)
        if new:
            write(function, taps, stride)
        calls.append((builder.and_(*same), function))
    return calls


def _call_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = (
        "weights+weights_at pitch tables+lines_at lines x+x_at x_step x_row out+out_at out_step out_row count rows "
        "start+start_at start+floor_at"
    )
    dtype, w, passed = _slide_arguments(context, builder, named, names)
    calls = _slides(
        builder,
        named,
        w,
        "slide_tile",
        lambda f, taps, stride: _write_slide_tile(f, dtype, taps, stride, SPAN),
        len(passed),
    )
    function, new = private_function(builder.module, f"slide_tile_{w.suffix}_short", len(passed))
    if new:
        _write_slide_tile(function, dtype, 1, 1, 1)
    few = builder.icmp_signed("<", named["count"][1], I64(SPAN))
    call_first(builder, [(few, function), *calls], passed)


SUM_SLIDE = (
    "taps, stride, x, x_at, x_step, x_line, gradient, gradient_at, gradient_step, gradient_line, lines, count, out, out_at, "
    "pitch"
)


def _write_sum_slide_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile that sums the products of pixels and gradients for each tap of a row.

    Sums that follow each other wait for each other: with few taps, neighbouring pixels have sums of their own.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    x, x_step, x_line, gradient, gradient_step, gradient_line, lines, count, out, pitch = function.args
    pitch, x_step, x_line, gradient_step, gradient_line = (
        b.mul(step, I64(w.size)) for step in (pitch, x_step, x_line, gradient_step, gradient_line)
    )
    sets = max(1, 12 // taps) if taps > 1 else SPAN
    acc = [[w.variable(w.vector) for _ in range(taps)] for _ in range(sets)]
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    done = w.variable(I64)
    for a in itertools.chain(*acc):
        b.store(zero, a)

    def add_products(span: int, here: Any, there: Any) -> None:
        pixels = [b.add(there, b.mul(gradient_step, I64(m))) for m in range(span)]
        for j in range((span - 1) * stride + taps):
            meets = [(m, j - m * stride) for m in range(span) if 0 <= j - m * stride < taps]
            if meets:
                pixel = w.load(b.add(here, b.mul(x_step, I64(j))), w.vector)
            for m, c in meets:
                a = acc[m % sets][c]
                b.store(w.multiply_add(w.load(pixels[m], w.vector), pixel, b.load(a)), a)
        b.store(b.add(b.load(done), I64(span)), done)

    with cgutils.for_range(b, lines) as line:
        b.store(I64(0), done)
        left, right = b.add(x, b.mul(line.index, x_line)), b.add(gradient, b.mul(line.index, gradient_line))

        def places() -> tuple[Any, Any]:
            at = b.load(done)
            return b.add(left, b.mul(at, b.mul(x_step, I64(stride)))), b.add(right, b.mul(at, gradient_step))

        for span in (SPAN, 1):
            with w.repeat(lambda: b.icmp_signed("<=", b.add(b.load(done), I64(span)), count)):  # noqa: B023
                add_products(span, *places())
    for c in range(taps):
        value = b.load(acc[0][c])
        for s in range(1, sets):
            value = b.fadd(value, b.load(acc[s][c]))
        end = b.add(out, b.mul(pitch, I64(c)))
        w.store(b.fadd(w.load(end, w.vector), value), end)
    b.ret_void()


def _sum_slide_twin(
    taps: int, stride: int, x: Array, x_at: int, x_step: int, x_line: int, gradient: Array, gradient_at: int,
    gradient_step: int, gradient_line: int, lines: int, count: int, out: Array, out_at: int, pitch: int,
) -> None:  # fmt: skip
    """The tile that sums over pixels in plain Python."""
    n = lanes(out.itemsize)
    with np.errstate(over="ignore", invalid="ignore"):
        for c in range(taps):
            acc = np.zeros(n, out.dtype)
            for line in range(lines):
                for m in range(count):
                    here, there = (
                        x_at + line * x_line + (m * stride + c) * x_step,
                        gradient_at + line * gradient_line + m * gradient_step,
                    )
                    acc += gradient[there : there + n] * x[here : here + n]
            out[out_at + c * pitch : out_at + c * pitch + n] += acc


def _call_sum_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = "x+x_at x_step x_line gradient+gradient_at gradient_step gradient_line lines count out+out_at pitch"
    dtype, w, passed = _slide_arguments(context, builder, named, names)
    calls = _slides(
        builder,
        named,
        w,
        "sum_slide_tile",
        lambda f, taps, stride: _write_sum_slide_tile(f, dtype, taps, stride),
        len(passed),
    )
    call_first(builder, calls, passed)


slide_tile = _slide_twin if config.DISABLE_JIT else tile_intrinsic(SLIDE, _call_slide)
"""A vector of channels of ``count`` neighbouring pixels of each row, where each channel has weights of its own::

    out[row, m] = start + sum over lines and c < taps of  weights[line*taps + c] * x[row, offset of line + m*stride + c]

Parameters
----------
taps, stride : int
    One of SLIDES; with less than SPAN pixels, (1, 1).
weights, weights_at, pitch : flat array, offset and distance
    A vector for each tap.
tables, lines_at, lines : flat int64 array, offset and int
    The offset in ``x`` of each line of taps.
x, x_at, x_step, x_row : flat array, offset and distances
    The input, its neighbouring pixels, and those that neighbouring rows begin with.
out, out_at, out_step, out_row : flat array, offset and distances
    Where the pixels go.
count, rows : int
    Pixels of a row, at least 1, and rows.
start, start_at, floor_at : flat array and offsets
    The vector that each sum begins with, and a number: what is less becomes that.
"""

sum_slide_tile = _sum_slide_twin if config.DISABLE_JIT else tile_intrinsic(SUM_SLIDE, _call_sum_slide)
"""For each of ``taps`` neighbouring taps, added to what ``out`` holds::

    out[c*pitch ...] += sum over lines and m < count of  gradient[line, m] * x[line, m*stride + c]
"""
