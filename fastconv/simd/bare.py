"""The tiles that slide down the columns of bare planes, which have no zeros around them: masks leave out what does not exist.

They are those of `fastconv.simd.columns` for which nothing has to be copied before.  They take one vector of pixels at a time.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import MASKS
from .columns import KEYS, BareRow, depth_of, lines_at_once, write_sum_lines
from .words import I64, Array, Words, lanes, private_function, tile_of_kinds

__all__ = ["BARE", "SUM_BARE", "bare_column_tile", "sum_bare_column_tile"]

SUM_BARE = tuple(itertools.product((3, 5, 7), (1, 2))) if MASKS else ()
BARE = tuple(kind for kind in SUM_BARE if kind[0] < 7)
"""(taps, stride) of these tiles, along rows and columns.  The factors of 49 taps would not fit into registers, and a vector needs
them all."""

PLANE = "taps, stride, planes, rows, count, x, x_at, x_plane, width, left, row, row_end, ahead"
PLANE_PASSED = "planes rows count x+x_at x_plane width left row row_end ahead"

COLUMN = f"{PLANE}, weights, weights_at, down, across, weights_plane, out, out_at, out_plane, start, start_at, floor_at"
COLUMN_PASSED = (
    f"{PLANE_PASSED} weights+weights_at down across weights_plane out+out_at out_plane start+start_at start+floor_at"
)

SUM_COLUMN = f"{PLANE}, gradient, gradient_at, gradient_plane, out, out_at, out_plane"
SUM_COLUMN_PASSED = f"{PLANE_PASSED} gradient+gradient_at gradient_plane out+out_at out_plane"


def _write_columns(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the columns of a vector of pixels."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    w.align_stack()
    rows, used, x, first, width, row, row_end, ahead, weights, down, across, out, out_row, start, floor = function.args
    beside, stored, depth = BareRow(w, taps, stride, first, width), w.before_lane(used), depth_of(taps, stride)
    acc = [w.variable(w.vector) for _ in range(depth)]
    bias, least = w.splat(w.load(start, w.scalar)), w.splat(w.load(floor, w.scalar))
    for a in acc:
        b.store(bias, a)

    places = [[b.add(b.mul(down, I64(i)), b.mul(across, I64(j))) for j in range(taps)] for i in range(taps)]
    factors = [[w.splat(w.load(b.add(weights, at), w.scalar)) for at in line] for line in places]
    with cgutils.for_range(b, b.add(rows, I64(depth - 1))) as step:
        for j in range(stride):
            here = b.add(row, b.add(b.mul(step.index, I64(stride)), I64(j)))
            with b.if_then(b.icmp_unsigned("<", here, row_end), likely=True):
                source = b.add(x, w.at(I64(0), b.mul(here, width)))
                beside.fetch(source, ahead)
                values = list(beside.values(source))
                # A row meets each stride-th row of taps.  Its products are added up first: the next row has not to wait for them.
                for line, a in zip(factors[j::stride], acc, strict=False):
                    total = b.fmul(line[0], values[0])
                    for factor, value in zip(line[1:], values[1:], strict=True):
                        total = w.multiply_add(factor, value, total)
                    b.store(b.fadd(b.load(a), total), a)
        done = b.sub(step.index, I64(depth - 1))
        with b.if_then(b.icmp_signed(">=", done, I64(0)), likely=True):
            w.store_some(w.at_least(b.load(acc[-1]), least), b.add(out, b.mul(done, out_row)), stored)
        for older, newer in itertools.pairwise(acc[::-1]):
            b.store(b.load(newer), older)
        b.store(bias, acc[0])
    b.ret_void()


def _write_column_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile: vector by vector of each plane."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    planes, rows, count, x, x_plane, width, left, row, row_end, ahead, *places = function.args
    weights, down, across, weights_plane, out, out_plane, start, floor = places
    x_plane, ahead, down, across, weights_plane, out_row, out_plane = (
        b.mul(step, I64(w.size)) for step in (x_plane, ahead, down, across, weights_plane, count, out_plane)
    )
    columns, new = private_function(b.module, f"bare_columns_{w.suffix}_{taps}_{stride}", 15)
    if new:
        _write_columns(columns, dtype, taps, stride)
    with cgutils.for_range(b, planes) as plane:
        source, factors, end, bias = (
            b.add(a, b.mul(plane.index, step))
            for a, step in ((x, x_plane), (weights, weights_plane), (out, out_plane), (start, I64(w.size)))
        )
        with cgutils.for_range_slice(b, I64(0), count, I64(w.lanes)) as (column, _):
            first, used = b.sub(b.mul(column, I64(stride)), left), b.sub(count, column)
            of_plane = [w.at(source, first), first, width, row, row_end, ahead]
            b.call(columns, [rows, used, *of_plane, factors, down, across, w.at(end, column), out_row, bias, floor])
    b.ret_void()


def _write_sum_column_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile: some rows of taps after the other, in whole vectors and in the last one."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    planes, rows, count, x, x_plane, width, left, row, row_end, ahead, *places = function.args
    gradient, gradient_plane, out, out_plane = places
    x_plane, ahead, gradient_plane, out_plane, x_row, gradient_row = (
        b.mul(step, I64(w.size)) for step in (x_plane, ahead, gradient_plane, out_plane, width, count)
    )
    whole = b.sdiv(count, I64(w.lanes))
    rest = b.sub(count, b.mul(whole, I64(w.lanes)))
    with cgutils.for_range(b, planes) as plane:
        source, factors, end = (
            b.add(a, b.mul(plane.index, step))
            for a, step in ((x, x_plane), (gradient, gradient_plane), (out, out_plane))
        )
        line = 0
        for lines in lines_at_once(taps):
            sums, new = private_function(b.module, f"bare_sum_lines_{w.suffix}_{taps}_{stride}_{lines}", 14)
            if new:
                write_sum_lines(sums, dtype, taps, stride, lines, bare=True)
            for vectors, used, column in (
                (whole, I64(w.lanes), I64(0)),
                (b.zext(b.icmp_signed(">", rest, I64(0)), I64), rest, b.sub(count, rest)),
            ):
                first = b.sub(b.mul(column, I64(stride)), left)
                with b.if_then(b.icmp_signed(">", vectors, I64(0))):
                    of_plane = [w.at(source, first), I64(0), x_row, b.add(row, I64(line)), row_end]
                    to = [w.at(factors, column), gradient_row, b.add(end, I64(line * taps * w.bytes))]
                    b.call(sums, [rows, vectors, used, *of_plane, *to, first, width, ahead])
            line += lines
    b.ret_void()


def _padded(
    taps: int, stride: int, rows: int, count: int, plane: Array, left: int, row: int, row_end: int
) -> list[tuple[int, int, Array]]:
    """List what each tap meets of a plane, (row, column, as many rows and columns as outputs have): zeros outside of it."""
    height, width = plane.shape
    room = np.zeros((stride * (rows - 1) + taps, stride * (count - 1) + taps), plane.dtype)
    top, bottom = max(0, row), min(row_end, row + len(room))
    first, last = max(0, -left), min(width, room.shape[1] - left)
    room[top - row : bottom - row, first + left : last + left] = plane[top:bottom, first:last]
    taken = [slice(k, k + stride * (n - 1) + 1, stride) for n in (rows, count) for k in range(taps)]
    return [(i, j, room[taken[i], taken[taps + j]]) for i, j in itertools.product(range(taps), repeat=2)]


def _column_twin(
    taps: int, stride: int, planes: int, rows: int, count: int, x: Array, x_at: int, x_plane: int, width: int, left: int,
    row: int, row_end: int, ahead: int, weights: Array, weights_at: int, down: int, across: int, weights_plane: int,
    out: Array, out_at: int, out_plane: int, start: Array, start_at: int, floor_at: int,
) -> None:  # fmt: skip
    """The tile in plain Python."""
    for plane in range(planes):
        here, there = x_at + plane * x_plane, out_at + plane * out_plane
        acc = np.full((rows, count), start[start_at + plane], x.dtype)
        pixels = x[here : here + row_end * width].reshape(row_end, width)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, j, met in _padded(taps, stride, rows, count, pixels, left, row, row_end):
                acc += weights[weights_at + plane * weights_plane + i * down + j * across] * met
        out[there : there + rows * count] = np.where(acc < start[floor_at], start[floor_at], acc).reshape(-1)


def _sum_column_twin(
    taps: int, stride: int, planes: int, rows: int, count: int, x: Array, x_at: int, x_plane: int, width: int, left: int,
    row: int, row_end: int, ahead: int, gradient: Array, gradient_at: int, gradient_plane: int, out: Array, out_at: int,
    out_plane: int,
) -> None:  # fmt: skip
    """The tile that sums in plain Python."""
    n = lanes(x.itemsize)
    for plane in range(planes):
        here, there = x_at + plane * x_plane, gradient_at + plane * gradient_plane
        pixels = x[here : here + row_end * width].reshape(row_end, width)
        factors = gradient[there : there + rows * count].reshape(rows, count)
        products = np.zeros((rows, -(-count // n) * n), x.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, j, met in _padded(taps, stride, rows, count, pixels, left, row, row_end):
                products[:, :count] = factors * met
                end = out_at + plane * out_plane + (i * taps + j) * n
                out[end : end + n] += products.reshape(-1, n).sum(0)


bare_column_tile = (
    _column_twin
    if config.DISABLE_JIT
    else tile_of_kinds(COLUMN, COLUMN_PASSED, "bare_column_tile", KEYS, lambda _: BARE, _write_column_tile)
)
"""Rows of ``count`` neighbouring pixels of planes::

    out[plane, r, m] = start[plane] + sum over i < taps and j < taps of
                       weights[plane, i*down + j*across] * x[plane, row + stride*r + i, stride*m + j - left]

Rows of x that are not from 0 to ``row_end`` - 1, and columns that are not from 0 to ``width`` - 1, are left out, or zeros.

Parameters
----------
taps, stride, planes, rows, count : int
    One of BARE, for sums of SUM_BARE; planes, rows of outputs, and pixels of a row, which follow each other; at least one of
    each.
x, x_at, x_plane, width, left : flat array, offset, distance and numbers
    Row 0 of the first plane, how far behind it that of the next one lies, its columns, and how many the first output meets
    before these.
row, row_end, ahead : int
    The first row that outputs meet, which may be negative, how many there are; and how far behind what is read lies what is
    brought into the cache meanwhile.
weights, weights_at, down, across, weights_plane : flat array, offset and distances
    The factors.
out, out_at, out_plane : flat array, offset and distance
    Where the pixels go.
start, start_at, floor_at : flat array and offsets
    What the sums of each plane begin with, and a number: what is less becomes that.
"""

sum_bare_column_tile = (
    _sum_column_twin
    if config.DISABLE_JIT
    else tile_of_kinds(
        SUM_COLUMN, SUM_COLUMN_PASSED, "sum_bare_column_tile", KEYS, lambda _: SUM_BARE, _write_sum_column_tile
    )
)
"""The products of the same pixels with gradients, summed over rows and columns to what ``out`` holds, a vector for each tap::

    out[plane, i*taps + j, lane] += sum over r < rows and m < count, where m is the lane and every lanes-th behind it, of
                                    gradient[plane, r, m] * x[plane, row + stride*r + i, stride*m + j - left]
"""
