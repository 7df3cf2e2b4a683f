"""The sliding tiles: vectors times vectors, where channels do not mix.

They read images as they lie, or from a box in scratch.  A *line* is a row of taps: it leads from an output's place to an input's
by an offset along each of three axes.  A place along an axis that is none of the image's is left out, so that padding is neither
stored nor multiplied.  Channels are taken a vector at a time; the last vector overlaps the one before it, if need be, so that
nothing beside the channels is read or written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import VECTORS
from .words import I64, Array, Words, address_of, call_first, lanes, private_function, tile_intrinsic

__all__ = ["SLIDES", "SPAN", "TALL", "TALLER", "slide_tile", "sum_slide_tile"]

SPAN = 7
"""Neighbouring pixels that a sliding tile computes at once: 7 accumulators, up to 7 taps and a pixel of the input are 15
registers, and the sizes of common images (7, 14, 28, 56, 112) are multiples of it."""

SLIDES = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2))
"""(taps in a row, stride) of the sliding tiles: each pixel is loaded once for all taps and outputs that it meets.  All other
kernels are taken as rows of one tap."""

TALL = 3 if VECTORS == 4 else 1
"""Rows of outputs that a tile of three by three taps computes at once, where there are 32 registers: 3x7 accumulators, nine taps
and a pixel.  It loads 45 pixels for 189 products, not 27 for 63.  Where pixels lie 2 KiB apart nearly all loads are from the
second-level cache, as those of a vector of channels share two sets of the first: 142 GFLOP/s, not 110."""

MANY = 32
"""Vectors of channels from which on one more is worth it, if the others then do not lie in two lines of the cache each: 95
GFLOP/s, not 82, with 1024 channels in float32, of an array that does not begin with a line."""

TALLER = ((3, 1, TALL),) if TALL > 1 else ()
"""(taps in a row, stride, rows of outputs) of the sliding tiles for several rows."""

SLIDE = (
    "taps, stride, height, weights, weights_at, pitch, tables, lines_at, lines, x, x_at, z, z_end, y, y_row, y_end, column, "
    "x_step, x_end, out, out_at, out_step, out_row, count, rows, channels, start, start_at, floor_at"
)


def _write_slide_tile(function: Any, dtype: Any, taps: int, stride: int, height: int) -> None:
    """Emit the sliding tile for SPAN pixels of ``height`` rows at once."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    (
        weights, pitch, table, lines, x, z, z_end, y, y_row, y_end, column, x_step, x_end, out, out_step, out_row, count, rows,
        channels, start, floor,
    ) = function.args  # fmt: skip
    pitch, out_step, out_row = (b.mul(step, I64(w.size)) for step in (pitch, out_step, out_row))
    reach = taps if height > 1 else 1  # lines that follow each other at the distance of rows
    acc = [[w.variable(w.vector) for _ in range(SPAN)] for _ in range(height)]
    done, lane = w.variable(I64), w.variable(I64)
    last = b.sub(channels, I64(w.lanes))
    least = w.splat(w.load(floor, w.scalar))
    # Of many channels all vectors but the first and the last are those that lie in one line of the cache of the input.
    apart = b.and_(b.udiv(x, I64(w.size)), I64(w.lanes - 1))
    begin = b.select(b.icmp_signed("<", channels, I64(MANY * w.lanes)), I64(0), b.sub(I64(0), apart))

    def exists(place: Any, end: Any) -> Any:
        return b.icmp_unsigned("<", place, end)  # as an unsigned number, less than 0 is very large

    def offsets(line: Any) -> list[Any]:
        at = b.add(table, b.mul(line, I64(24)))
        return [w.load(b.add(at, I64(8 * axis)), I64) for axis in range(3)]

    def add_row(here: Any, place: Any, factors: list[tuple[int, Any]]) -> None:
        """Add the products of the pixels of a row with what each row of outputs multiplies them with."""
        these = [(r, [w.load(b.add(at, b.mul(pitch, I64(c))), w.vector) for c in range(taps)]) for r, at in factors]
        for j in range((SPAN - 1) * stride + taps):
            meets = [(m, j - m * stride) for m in range(SPAN) if 0 <= j - m * stride < taps]
            if meets:
                with b.if_then(exists(place, x_end), likely=True):
                    pixel = w.load(w.at(here, place), w.vector)
                    for r, column in these:
                        for m, c in meets:
                            b.store(w.multiply_add(column[c], pixel, b.load(acc[r][m])), acc[r][m])
            place = b.add(place, x_step)

    def compute(row: Any, first: Any, offset: Any) -> None:
        source, factors = b.add(x, offset), b.add(weights, offset)
        bias = w.load(b.add(start, offset), w.vector)
        for a in itertools.chain(*acc):
            b.store(bias, a)
        with cgutils.for_range(b, b.sdiv(lines, I64(reach))) as group:
            line = b.mul(group.index, I64(reach))
            plane, above, beside = offsets(line)
            plane, above = b.add(z, plane), b.add(row, above)
            with b.if_then(exists(plane, z_end), likely=True):
                for i in range(reach + height - 1):
                    here = b.add(above, b.mul(y_row, I64(i)))
                    with b.if_then(exists(here, y_end), likely=True):
                        met = [(r, b.add(line, I64(i - r))) for r in range(height) if 0 <= i - r < reach]
                        add_row(
                            w.at(source, b.add(plane, here)), b.add(first, beside),
                            [(r, b.add(factors, b.mul(of, b.mul(pitch, I64(taps))))) for r, of in met],
                        )  # fmt: skip
        fetch(row, first, source)

    def fetch(row: Any, first: Any, source: Any) -> None:
        """Have the rows that the next outputs add brought into the cache: 132 GFLOP/s, not 116, from outside of it."""
        for n in range(max(height, stride)):
            line = b.sub(lines, I64(1 if height > 1 else 1 + n))
            with b.if_then(b.icmp_signed(">=", line, I64(0)), likely=True):
                plane, above, beside = offsets(line)
                here = b.add(b.add(row, above), b.mul(y_row, I64(height + n if height > 1 else 1)))
                with b.if_then(exists(here, y_end), likely=True):
                    at, place = w.at(source, b.add(b.add(z, plane), here)), b.add(first, beside)
                    for _ in range(SPAN * stride):
                        with b.if_then(exists(place, x_end), likely=True):
                            w.prefetch(w.at(at, place))
                        place = b.add(place, x_step)

    def store(there: Any, rest: Any, left: Any) -> None:
        for m in range(SPAN):
            with b.if_then(b.icmp_signed(">", rest, I64(m)), likely=True):
                for r in range(height):
                    with b.if_then(b.icmp_signed(">", left, I64(r)), likely=True):
                        end = b.add(there, b.add(b.mul(out_row, I64(r)), b.mul(out_step, I64(m))))
                        w.store(w.at_least(b.load(acc[r][m]), least), end)

    with cgutils.for_range_slice(b, I64(0), rows, I64(height)) as (upper, _):
        b.store(I64(0), done)
        with w.repeat(lambda: b.icmp_signed("<", b.load(done), count)):
            b.store(begin, lane)
            with w.repeat(lambda: b.icmp_signed("<", b.load(lane), channels)):
                first = b.select(b.icmp_signed("<", b.load(lane), I64(0)), I64(0), b.load(lane))
                offset = b.mul(b.select(b.icmp_signed("<", first, last), first, last), I64(w.size))
                compute(
                    b.add(y, b.mul(upper, y_row)),
                    b.add(column, b.mul(b.load(done), b.mul(x_step, I64(stride)))),
                    offset,
                )
                there = b.add(b.add(out, b.mul(upper, out_row)), b.mul(b.load(done), out_step))
                store(b.add(there, offset), b.sub(count, b.load(done)), b.sub(rows, upper))
                b.store(b.add(b.load(lane), I64(w.lanes)), lane)
            b.store(b.add(b.load(done), I64(SPAN)), done)
    b.ret_void()


def _slide_twin(
    taps: int, stride: int, height: int, weights: Array, weights_at: int, pitch: int, tables: Array, lines_at: int, lines: int,
    x: Array, x_at: int, z: int, z_end: int, y: int, y_row: int, y_end: int, column: int, x_step: int, x_end: int, out: Array,
    out_at: int, out_step: int, out_row: int, count: int, rows: int, channels: int, start: Array, start_at: int, floor_at: int,
) -> None:  # fmt: skip
    """The sliding tile in plain Python."""
    offsets = tables[lines_at : lines_at + 3 * lines].reshape(-1, 3)
    for row, m in itertools.product(range(rows), range(count)):
        acc = start[start_at : start_at + channels].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for line, c in itertools.product(range(lines), range(taps)):
                plane, above, beside = (int(offset) for offset in offsets[line])
                places = z + plane, y + row * y_row + above, column + (m * stride + c) * x_step + beside
                if all(0 <= place < end for place, end in zip(places, (z_end, y_end, x_end), strict=True)):
                    at, weight = x_at + sum(places), weights_at + (line * taps + c) * pitch
                    acc += weights[weight : weight + channels] * x[at : at + channels]
        end = out_at + row * out_row + m * out_step
        out[end : end + channels] = np.where(acc < start[floor_at], start[floor_at], acc)


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


def _call_slides(
    builder: Any, named: dict[str, tuple[Any, Any]], w: Words, name: str, write: Callable[..., None], passed: list[Any],
    kinds: Sequence[tuple[int, ...]],
) -> None:  # fmt: skip
    """Emit the sliding tiles of these kinds, and the call of the one whose first arguments are those of its kind."""
    calls = []
    for kind in kinds[::-1]:
        condition = ir.Constant(ir.IntType(1), 1)
        for (_, given), value in zip(named.values(), kind, strict=False):
            condition = builder.and_(condition, builder.icmp_signed("==", given, I64(value)))
        function, new = private_function(builder.module, f"{name}_{w.suffix}_{'x'.join(map(str, kind))}", len(passed))
        if new:
            write(function, *kind)
        calls.append((condition, function))
    call_first(builder, calls, passed)


def _call_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = (
        "weights+weights_at pitch tables+lines_at lines x+x_at z z_end y y_row y_end column x_step x_end out+out_at out_step "
        "out_row count rows channels start+start_at start+floor_at"
    )
    dtype, w, passed = _slide_arguments(context, builder, named, names)
    kinds = (*((*kind, 1) for kind in SLIDES), *TALLER)
    _call_slides(builder, named, w, "slide_tile", lambda f, *kind: _write_slide_tile(f, dtype, *kind), passed, kinds)


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
    _call_slides(
        builder, named, w, "sum_slide_tile", lambda f, *kind: _write_sum_slide_tile(f, dtype, *kind), passed, SLIDES
    )


slide_tile = _slide_twin if config.DISABLE_JIT else tile_intrinsic(SLIDE, _call_slide)
"""Channels of ``count`` neighbouring pixels of each row, where each channel has weights of its own::

    out[row, m] = start + sum over lines and c < taps of  weights[line*taps + c] * x[place of (row, m), line and c]

where a place is the sum of three, each of which has to be at least 0 and less than its end, or the product is left out::

    z + offset[line, 0]    y + row*y_row + offset[line, 1]    column + (m*stride + c)*x_step + offset[line, 2]

Parameters
----------
taps, stride, height : int
    One of SLIDES and 1, or one of TALLER.  The latter's lines come in threes, each y_row behind the one before it.
weights, weights_at, pitch : flat array, offset and distance
    The channels' factors for each tap.
tables, lines_at, lines : flat int64 array, offset and int
    For each line of taps its offset along each axis.
x, x_at : flat array and offset
    The input, and what places are counted from.
z, z_end, y, y_row, y_end, column, x_step, x_end : int
    The first output's place along each axis, how far the next one's lies behind it, and the ends of the places that exist.
out, out_at, out_step, out_row : flat array, offset and distances
    Where the pixels go.
count, rows : int
    Pixels of a row, and rows.
channels : int
    At least as many as a vector has lanes.
start, start_at, floor_at : flat array and offsets
    What each channel's sums begin with, and a number: what is less becomes that.
"""

sum_slide_tile = _sum_slide_twin if config.DISABLE_JIT else tile_intrinsic(SUM_SLIDE, _call_sum_slide)
"""For each of ``taps`` neighbouring taps, added to what ``out`` holds::

    out[c*pitch ...] += sum over lines and m < count of  gradient[line, m] * x[line, m*stride + c]
"""
