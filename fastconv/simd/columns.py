"""The tiles that slide down the columns of planes: channels do not mix, and lanes are neighbours in a row of pixels.

A step is ``stride`` rows of the input, and the row of outputs that they complete.  Each row meets the outputs of several steps,
which stay in registers until the last of their taps has come: so a row is loaded once for all of them.  Of weights it is the
sums of some rows of taps that stay in registers, with the gradients that a row of the input meets.  Rows that do not exist are
left out; columns that do not are zeros in what the tiles are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import VECTORS
from .words import I32, I64, Array, Words, lanes, private_function, tile_of_kinds

__all__ = [
    "COLUMNS",
    "KEYS",
    "BareRow",
    "column_tile",
    "depth_of",
    "lines_at_once",
    "sum_column_tile",
    "write_sum_lines",
]

COLUMNS = tuple(itertools.product((3, 5, 7), (1, 2)))
"""(taps, stride) of these tiles, along rows and columns."""

REGISTERS = 8 * VECTORS

PLANE = "x, x_at, x_half, x_row, x_plane, row, row_end"
PLANE_PASSED = "x+x_at x_half x_row x_plane row row_end"

COLUMN = (
    f"taps, stride, planes, rows, count, weights, weights_at, down, across, weights_plane, {PLANE}, out, out_at, out_row, "
    "out_plane, start, start_at, floor_at"
)
COLUMN_PASSED = (
    f"planes rows count weights+weights_at down across weights_plane {PLANE_PASSED} out+out_at out_row out_plane start+start_at "
    "start+floor_at"
)

SUM_COLUMN = (
    f"taps, stride, planes, rows, count, {PLANE}, gradient, gradient_at, gradient_row, gradient_plane, out, out_at, "
    "out_plane"
)
SUM_COLUMN_PASSED = (
    f"planes rows count {PLANE_PASSED} gradient+gradient_at gradient_row gradient_plane out+out_at out_plane"
)


def depth_of(taps: int, stride: int) -> int:
    """Count the steps whose outputs a row meets."""
    return -(-taps // stride)


def _widths(taps: int, stride: int) -> list[int]:
    """List how many vectors of a row are taken at once: at first as many as registers hold, with a factor, and then fewer."""
    return [v for v in (4, 2, 1) if v == 1 or (depth_of(taps, stride) + 1) * v < REGISTERS]


def lines_at_once(taps: int) -> list[int]:
    """Share the rows of taps out over sums: beside these, registers hold the gradients that a row meets, and a vector of it."""
    most = max(n for n in range(1, taps + 1) if n == 1 or n * taps < REGISTERS - 4)
    parts = -(-taps // most)
    return [(taps + part) // parts for part in range(parts)]


def _column(w: Words, half: Any, stride: int, k: int) -> Any:
    """How far the pixels of a column of taps lie from those of the first: columns of a phase lie together."""
    offset = I64(k // stride * w.size)
    return w.b.add(offset, half) if k % stride else offset


class BareRow:
    """What a vector of outputs meets in a row of a bare plane, which is ``width`` wide: what does not exist is not read.

    Lane 0 meets the column ``first`` at the first tap.  With a stride, lanes meet every second number of two vectors.
    """

    def __init__(self, w: Words, taps: int, stride: int, first: Any, width: Any) -> None:
        self.w, self.taps, self.stride = w, taps, stride
        self.exist = {}
        for k, part in itertools.product(range(0, taps, stride), range(stride)):
            column = w.b.add(first, I64(k + part * w.lanes))
            self.exist[k, part] = w.b.and_(w.from_lane(w.b.neg(column)), w.before_lane(w.b.sub(width, column)))

    def values(self, source: Any) -> Iterator[Any]:
        """Visit what each tap meets: it is loaded then."""
        w, n = self.w, self.w.lanes
        for k in range(0, self.taps, self.stride):
            first, *more = (
                w.load_some(w.b.add(source, I64((k + part * n) * w.size)), self.exist[k, part])
                for part in range(self.stride)
            )
            if not more:
                yield first
            for odd in range(min(2, self.taps - k)) if more else ():
                order = ir.Constant(ir.VectorType(I32, n), list(range(odd, 2 * n, 2)))
                yield w.b.shuffle_vector(first, *more, order)

    def fetch(self, source: Any, ahead: Any) -> None:
        """Have what lies behind these columns brought into the cache."""
        for part in range(self.stride):
            self.w.prefetch(self.w.b.add(source, self.w.b.add(ahead, I64(part * self.w.bytes))))


def _write_columns(function: Any, dtype: Any, taps: int, stride: int, vectors: int) -> None:
    """Emit the columns of some vectors of pixels."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    rows, weights, down, across, x, half, x_row, row, row_end, out, out_row, start, floor = function.args
    depth = depth_of(taps, stride)
    acc = [[w.variable(w.vector) for _ in range(vectors)] for _ in range(depth)]
    bias, least = w.splat(w.load(start, w.scalar)), w.splat(w.load(floor, w.scalar))
    for a in itertools.chain(*acc):
        b.store(bias, a)

    def take(source: Any, meets: list[tuple[int, int]]) -> None:
        """Add a row to the outputs that it meets, each of which began so many steps before, at a tap."""
        for k in range(taps):
            at, factors = b.add(source, _column(w, half, stride, k)), b.add(weights, b.mul(across, I64(k)))
            values = [w.load(b.add(at, I64(v * w.bytes)), w.vector) for v in range(vectors)]
            for before, tap in meets:
                factor = w.splat(w.load(b.add(factors, b.mul(down, I64(tap))), w.scalar))
                for a, value in zip(acc[before], values, strict=True):
                    b.store(w.multiply_add(factor, value, b.load(a)), a)

    ahead = I64(depth - 1)
    with cgutils.for_range(b, b.add(rows, ahead)) as step:
        for j in range(stride):
            here = b.add(row, b.add(b.mul(step.index, I64(stride)), I64(j)))
            with b.if_then(b.icmp_unsigned("<", here, row_end), likely=True):
                meets = [(before, j + stride * before) for before in range(depth) if j + stride * before < taps]
                take(b.add(x, b.mul(here, x_row)), meets)
        with b.if_then(b.icmp_signed(">=", step.index, ahead), likely=True):
            there = b.add(out, b.mul(b.sub(step.index, ahead), out_row))
            for v, a in enumerate(acc[-1]):
                w.store(w.at_least(b.load(a), least), b.add(there, I64(v * w.bytes)))
        for older, newer in itertools.pairwise(acc[::-1]):
            for a, value in zip(older, newer, strict=True):
                b.store(b.load(value), a)
        for a in acc[0]:
            b.store(bias, a)
    b.ret_void()


def _write_column_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile: the columns of a plane from the last to the first, as what is stored may end behind a row."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    planes, rows, count, *places = function.args
    (
        weights,
        down,
        across,
        weights_plane,
        x,
        half,
        x_row,
        x_plane,
        row,
        row_end,
        out,
        out_row,
        out_plane,
        start,
        floor,
    ) = places
    down, across, weights_plane, half, x_row, x_plane, out_row, out_plane = (
        b.mul(step, I64(w.size)) for step in (down, across, weights_plane, half, x_row, x_plane, out_row, out_plane)
    )
    left = w.variable(I64)
    with cgutils.for_range(b, planes) as plane:
        factors, source, end, first = (
            b.add(a, b.mul(plane.index, step))
            for a, step in ((weights, weights_plane), (x, x_plane), (out, out_plane), (start, I64(w.size)))
        )
        b.store(b.sdiv(b.add(count, I64(w.lanes - 1)), I64(w.lanes)), left)
        for vectors in _widths(taps, stride):
            columns, new = private_function(b.module, f"columns_{w.suffix}_{taps}_{stride}_{vectors}", 13)
            if new:
                _write_columns(columns, dtype, taps, stride, vectors)
            with w.repeat(lambda: b.icmp_signed(">=", b.load(left), I64(vectors))):  # noqa: B023
                b.store(b.sub(b.load(left), I64(vectors)), left)
                at = b.mul(b.load(left), I64(w.bytes))
                here, there = b.add(source, at), b.add(end, at)
                passed = [rows, factors, down, across, here, half, x_row, row, row_end, there, out_row, first, floor]
                b.call(columns, passed)
    b.ret_void()


def write_sum_lines(function: Any, dtype: Any, taps: int, stride: int, lines: int, bare: bool = False) -> None:
    """Emit the sums for some rows of taps over some vectors of a row, of which only so many lanes count.

    In a step one more row of gradients comes, but not in the last ones; a row of the input meets those that have come, each at a
    row of taps of its own.  Of a ``bare`` plane no columns are read but those that exist, and what lies ``ahead`` is fetched.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    rows, vectors, used, x, half, x_row, row, row_end, gradient, gradient_row, out, *plane = function.args
    counts = w.before_lane(used)
    acc = [[w.variable(w.vector) for _ in range(taps)] for _ in range(lines)]
    depth = depth_of(lines, stride)
    held = [w.variable(w.vector) for _ in range(depth)]  # gradients that came so many steps before
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    for a in itertools.chain(*acc):
        b.store(zero, a)

    def values(source: Any) -> Any:
        """Visit what the taps of a row meet."""
        for k in range(taps):
            yield w.load(b.add(source, _column(w, half, stride, k)), w.vector)

    def take(source: Any, meets: list[tuple[int, int]]) -> None:
        """Add a row's products with the gradients that came so many steps before, each for a row of taps."""
        for k, value in enumerate(beside.values(source) if bare else values(source)):
            for before, line in meets:
                a = acc[line][k]
                b.store(w.multiply_add(b.load(held[before]), value, b.load(a)), a)

    with cgutils.for_range(b, vectors) as vector:
        across = b.mul(vector.index, I64(w.bytes))
        pixels, factors = b.add(x, across), b.add(gradient, across)
        if bare:
            first, width, ahead = plane
            pixels = b.add(pixels, b.mul(across, I64(stride - 1)))
            beside = BareRow(w, taps, stride, b.add(first, b.mul(vector.index, I64(stride * w.lanes))), width)
        with cgutils.for_range(b, b.add(rows, I64(depth - 1))) as step:
            for older, newer in itertools.pairwise(held[::-1]):
                b.store(b.load(newer), older)
            last = b.sub(rows, I64(1))
            come = b.select(b.icmp_signed("<", step.index, last), step.index, last)
            at = b.add(factors, b.mul(come, gradient_row))
            b.store(w.load_some(at, counts) if bare else w.load(at, w.vector), held[0])
            if bare:
                w.prefetch(b.add(at, ahead))
            exists = [b.icmp_unsigned("<", b.sub(step.index, I64(before)), rows) for before in range(depth)]
            for j in range(stride):
                meets = [(before, j + stride * before) for before in range(depth) if j + stride * before < lines]
                if not meets:
                    continue
                here = b.add(row, b.add(b.mul(step.index, I64(stride)), I64(j)))
                with b.if_then(b.icmp_unsigned("<", here, row_end), likely=True):
                    source = b.add(pixels, b.mul(here, x_row))
                    if bare:
                        beside.fetch(source, ahead)
                    if depth == 1:
                        take(source, meets)
                        continue
                    with b.if_else(b.and_(exists[0], exists[-1]), likely=True) as (all_of_them, some):
                        with all_of_them:
                            take(source, meets)
                        with some:
                            for before, line in meets:
                                with b.if_then(exists[before]):
                                    take(source, [(before, line)])
    for n, a in enumerate(itertools.chain(*acc)):
        end = b.add(out, I64(n * w.bytes))
        w.store(b.fadd(w.load(end, w.vector), b.select(counts, b.load(a), zero)), end)
    b.ret_void()


def _write_sum_column_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile: some rows of taps after the other, in whole vectors and in the last one."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    (
        planes,
        rows,
        count,
        x,
        half,
        x_row,
        x_plane,
        row,
        row_end,
        gradient,
        gradient_row,
        gradient_plane,
        out,
        out_plane,
    ) = function.args
    half, x_row, x_plane, gradient_row, gradient_plane, out_plane = (
        b.mul(step, I64(w.size)) for step in (half, x_row, x_plane, gradient_row, gradient_plane, out_plane)
    )
    whole = b.sdiv(count, I64(w.lanes))
    at, rest = b.mul(whole, I64(w.bytes)), b.sub(count, b.mul(whole, I64(w.lanes)))
    with cgutils.for_range(b, planes) as plane:
        source, factors, end = (
            b.add(a, b.mul(plane.index, step))
            for a, step in ((x, x_plane), (gradient, gradient_plane), (out, out_plane))
        )
        first = 0
        for lines in lines_at_once(taps):
            sums, new = private_function(b.module, f"sum_lines_{w.suffix}_{taps}_{stride}_{lines}", 11)
            if new:
                write_sum_lines(sums, dtype, taps, stride, lines)
            line, to = b.add(row, I64(first)), b.add(end, I64(first * taps * w.bytes))
            first += lines
            for vectors, used, here in (
                (whole, I64(w.lanes), I64(0)),
                (b.zext(b.icmp_signed(">", rest, I64(0)), I64), rest, at),
            ):
                with b.if_then(b.icmp_signed(">", vectors, I64(0))):
                    begin, there = b.add(source, here), b.add(factors, here)
                    b.call(sums, [rows, vectors, used, begin, half, x_row, line, row_end, there, gradient_row, to])
    b.ret_void()


def _pixels(
    taps: int, stride: int, x: Array, x_at: int, x_half: int, x_row: int, row: int, row_end: int, rows: int, count: int
) -> dict[tuple[int, int, int], Array]:  # fmt: skip
    """List the pixels that a row of outputs meets at each tap, (row, tap down, tap across), of those rows that exist."""
    met = {}
    for r, down, across in itertools.product(range(rows), range(taps), range(taps)):
        if 0 <= (here := row + r * stride + down) < row_end:
            at = x_at + here * x_row + across // stride + across % stride * x_half
            met[r, down, across] = x[at : at + count]
    return met


def _column_twin(
    taps: int, stride: int, planes: int, rows: int, count: int, weights: Array, weights_at: int, down: int, across: int,
    weights_plane: int, x: Array, x_at: int, x_half: int, x_row: int, x_plane: int, row: int, row_end: int, out: Array,
    out_at: int, out_row: int, out_plane: int, start: Array, start_at: int, floor_at: int,
) -> None:  # fmt: skip
    """The tile in plain Python."""
    whole = -(-count // lanes(x.itemsize)) * lanes(x.itemsize)
    for plane in range(planes):
        acc = np.full((rows, whole), start[start_at + plane], x.dtype)
        here = x_at + plane * x_plane
        with np.errstate(over="ignore", invalid="ignore"):
            for (r, y, k), pixels in _pixels(taps, stride, x, here, x_half, x_row, row, row_end, rows, whole).items():
                acc[r] += weights[weights_at + plane * weights_plane + y * down + k * across] * pixels
        for r in range(rows):
            end = out_at + plane * out_plane + r * out_row
            out[end : end + whole] = np.where(acc[r] < start[floor_at], start[floor_at], acc[r])


def _sum_column_twin(
    taps: int, stride: int, planes: int, rows: int, count: int, x: Array, x_at: int, x_half: int, x_row: int, x_plane: int,
    row: int, row_end: int, gradient: Array, gradient_at: int, gradient_row: int, gradient_plane: int, out: Array, out_at: int,
    out_plane: int,
) -> None:  # fmt: skip
    """The tile that sums in plain Python."""
    n = lanes(x.itemsize)
    for plane in range(planes):
        here = x_at + plane * x_plane
        with np.errstate(over="ignore", invalid="ignore"):
            for (r, y, k), pixels in _pixels(taps, stride, x, here, x_half, x_row, row, row_end, rows, count).items():
                at = gradient_at + plane * gradient_plane + r * gradient_row
                end = out_at + plane * out_plane + (y * taps + k) * n
                products = np.zeros(-(-count // n) * n, x.dtype)
                products[:count] = gradient[at : at + count] * pixels
                out[end : end + n] += products.reshape(-1, n).sum(0)


KEYS = ("taps", "stride")
"""What tells kinds of these tiles apart."""

column_tile = (
    _column_twin
    if config.DISABLE_JIT
    else tile_of_kinds(COLUMN, COLUMN_PASSED, "column_tile", KEYS, lambda _: COLUMNS, _write_column_tile)
)
"""Rows of ``count`` neighbouring pixels of planes::

    out[plane, r, m] = start[plane] + sum over i < taps and j < taps of
                       weights[plane, i*down + j*across] * x[plane, row + stride*r + i, stride*m + j]

A row of x that is not from 0 to ``row_end`` - 1 is left out.  With a stride of 2 the even columns of a row lie together, and
``x_half`` behind them the odd ones.

Whole vectors are read and written: x has to have as many columns; and what lies behind a row of ``out`` is overwritten, before
the next row, or plane, is written there.

Parameters
----------
taps, stride : int
    One of COLUMNS.
planes, rows, count : int
    Planes, rows of outputs, and pixels of a row; at least one of each.
weights, weights_at, down, across, weights_plane : flat array, offset and distances
    The factors.
x, x_at, x_half, x_row, x_plane : flat array, offset and distances
    The first column of row 0, and the distances of odd columns, of rows and of planes.
row, row_end : int
    The first row that outputs meet, which may be negative, and how many there are.
out, out_at, out_row, out_plane : flat array, offset and distances
    Where the pixels go.
start, start_at, floor_at : flat array and offsets
    What the sums of each plane begin with, and a number: what is less becomes that.
"""

sum_column_tile = (
    _sum_column_twin
    if config.DISABLE_JIT
    else tile_of_kinds(
        SUM_COLUMN, SUM_COLUMN_PASSED, "sum_column_tile", KEYS, lambda _: COLUMNS, _write_sum_column_tile
    )
)
"""The products of the same pixels with gradients, summed over rows and columns to what ``out`` holds, a vector for each tap::

    out[plane, i*taps + j, lane] += sum over r < rows and m < count, where m is the lane and every lanes-th behind it, of
                                    gradient[plane, r, m] * x[plane, row + stride*r + i, stride*m + j]

Whole vectors are read, but what lies behind ``count`` is no part of a sum.
"""
