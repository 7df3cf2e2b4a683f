"""The tiles that hold whole planes in registers: channels do not mix, and lanes are neighbours in a small plane.

What a tap meets of a plane is the plane itself, moved by as many pixels as the tap lies from the one in the middle: a vector of
it is parts of two.  Pixels that come from the row before, or after, are zeros before the plane is moved.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import MASKS
from .copying import FETCH_AHEAD
from .words import I32, I64, LINE, Array, Words, lanes, tile_of_kinds

__all__ = ["holds_plane", "shift_tile", "sum_shift_tile"]

SHIFTS = tuple(itertools.product((4, 5, 6, 7, 8), (3, 5, 7))) if MASKS else ()
"""(columns of a plane, taps along rows and columns) of these tiles."""

KEYS = ("width", "taps")
"""What tells them apart."""

MOST_VECTORS = 4
"""Most vectors of a plane: registers hold it, what a column of taps meets of it, and a vector of sums for each."""

SUMS = 8
"""Sums that are under way at once: they hide the time that a multiply-add takes.  A vector's may have several parts."""

PLANE = "width, taps, planes, count, x, x_at, x_plane"
SHIFT = f"{PLANE}, weights, weights_at, down, across, weights_plane, out, out_at, out_plane, start, start_at, floor_at"
SUM_SHIFT = f"{PLANE}, gradient, gradient_at, gradient_plane, out, out_at, out_plane"
PLANE_PASSED = "planes count x+x_at x_plane"
SHIFT_PASSED = (
    f"{PLANE_PASSED} weights+weights_at down across weights_plane out+out_at out_plane start+start_at start+floor_at"
)
SUM_SHIFT_PASSED = f"{PLANE_PASSED} gradient+gradient_at gradient_plane out+out_at out_plane"


def _vectors_of(width: int, itemsize: int) -> int:
    """Count the vectors of a plane with so many columns, and no more rows."""
    return -(-width * width // lanes(itemsize))


def holds_plane(width: int, taps: int, count: int, itemsize: int) -> bool:
    """Say whether there are tiles for planes of so many columns and pixels, and so many taps along both axes."""
    vectors = _vectors_of(width, itemsize)
    return (width, taps) in SHIFTS and vectors <= MOST_VECTORS and count <= vectors * lanes(itemsize)


class _Plane:
    """A plane in registers."""

    def __init__(self, w: Words, width: int, taps: int, address: Any, exist: list[Any]) -> None:
        self.w, self.width, self.reach = w, width, taps // 2
        self.values = [w.load_some(w.b.add(address, I64(v * w.bytes)), mask) for v, mask in enumerate(exist)]

    def column(self, across: int) -> list[Any]:
        """Return the plane without the columns that a tap, so far beside the middle, does not meet."""
        n, columns = self.w.lanes, range(max(0, across), self.width + min(0, across))
        masks = ([(v * n + lane) % self.width in columns for lane in range(n)] for v in range(len(self.values)))
        mask_of = ir.VectorType(ir.IntType(1), n)
        return [
            self.w.b.select(ir.Constant(mask_of, mask), value, self.w.constant(0))
            for mask, value in zip(masks, self.values, strict=True)
        ]

    def moved(self, column: list[Any], shift: int) -> list[tuple[int, Any]]:
        """Return the vectors of what lies so many pixels further, each with its number; not those of nothing but zeros."""
        n, found = self.w.lanes, []
        for v in range(len(column)):
            first, lane = divmod(v * n + shift, n)
            both = [column[k] if 0 <= k < len(column) else None for k in (first, first + 1)]
            if lane == 0:
                both[1] = None
            if both == [None, None]:
                continue
            value = both[0]
            if lane:
                order = ir.Constant(ir.VectorType(I32, n), list(range(lane, lane + n)))
                value = self.w.b.shuffle_vector(*(self.w.constant(0) if k is None else k for k in both), order)
            found.append((v, value))
        return found

    def met(self) -> Any:
        """Visit the taps, column by column: (row, column, the vectors of what it meets)."""
        reach = range(-self.reach, self.reach + 1)
        for across in reach:
            column = self.column(across)
            for down in reach:
                yield down + self.reach, across + self.reach, self.moved(column, down * self.width + across)


def _masks(w: Words, width: int, count: Any) -> list[Any]:
    """Return which lanes of each vector exist."""
    return [w.before_lane(w.b.sub(count, I64(v * w.lanes))) for v in range(_vectors_of(width, w.size))]


def _fetch(w: Words, address: Any, vectors: int) -> None:
    """Have as many planes further on brought into the cache as FETCH_AHEAD bytes are."""
    for line in range(0, vectors * w.bytes, LINE):
        w.prefetch(w.b.add(address, I64(FETCH_AHEAD + line)))


def _write_shift(function: Any, dtype: Any, width: int, taps: int) -> None:
    """Emit the planes' sums over taps."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    w.align_stack()
    planes, count, x, x_plane, weights, down, across, weights_plane, out, out_plane, start, floor = function.args
    down, across, weights_plane, x_plane, out_plane = (
        b.mul(step, I64(w.size)) for step in (down, across, weights_plane, x_plane, out_plane)
    )
    exist, least = _masks(w, width, count), w.splat(w.load(floor, w.scalar))
    with cgutils.for_range(b, planes) as plane:
        source, factors, end = (
            b.add(a, b.mul(plane.index, step)) for a, step in ((x, x_plane), (weights, weights_plane), (out, out_plane))
        )
        _fetch(w, source, len(exist))
        # A vector's sum is taken in parts, none of which waits for the others.
        parts: list[list[Any]] = [[] for _ in exist]
        most, bias = SUMS // len(exist), w.splat(w.load(w.at(start, plane.index), w.scalar))
        for n, (i, j, met) in enumerate(_Plane(w, width, taps, source, exist).met()):
            factor = w.splat(w.load(b.add(factors, b.add(b.mul(down, I64(i)), b.mul(across, I64(j)))), w.scalar))
            for v, value in met:
                some = parts[v]
                if len(some) < most:
                    some.append(w.multiply_add(factor, value, bias) if not some else b.fmul(factor, value))
                else:
                    some[n % most] = w.multiply_add(factor, value, some[n % most])
        for v, (some, mask) in enumerate(zip(parts, exist, strict=True)):
            w.store_some(w.at_least(functools.reduce(b.fadd, some), least), b.add(end, I64(v * w.bytes)), mask)
    b.ret_void()


def _write_sum_shift(function: Any, dtype: Any, width: int, taps: int) -> None:
    """Emit the planes' sums over pixels."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    w.align_stack()
    planes, count, x, x_plane, gradient, gradient_plane, out, out_plane = function.args
    x_plane, gradient_plane, out_plane = (b.mul(step, I64(w.size)) for step in (x_plane, gradient_plane, out_plane))
    exist = _masks(w, width, count)
    with cgutils.for_range(b, planes) as plane:
        source, factors, end = (
            b.add(a, b.mul(plane.index, step))
            for a, step in ((x, x_plane), (gradient, gradient_plane), (out, out_plane))
        )
        _fetch(w, source, len(exist))
        _fetch(w, factors, len(exist))
        gradients = _Plane(w, width, taps, factors, exist).values
        for i, j, met in _Plane(w, width, taps, source, exist).met():
            total = None
            for v, value in met:
                total = b.fmul(gradients[v], value) if total is None else w.multiply_add(gradients[v], value, total)
            if total is not None:
                at = b.add(end, I64((i * taps + j) * w.bytes))
                w.store(b.fadd(w.load(at, w.vector), total), at)
    b.ret_void()


def _met(width: int, taps: int, count: int, plane: Array) -> dict[tuple[int, int], Array]:
    """List what each tap meets of a plane: zeros where that is outside of it."""
    rows = -(-count // width)
    padded = np.zeros((rows + taps - 1, width + taps - 1), plane.dtype)
    whole = np.zeros(rows * width, plane.dtype)
    whole[:count] = plane
    padded[taps // 2 :, taps // 2 :][:rows, :width] = whole.reshape(rows, width)
    return {
        (i, j): padded[i : i + rows, j : j + width].reshape(-1)[:count]
        for i, j in itertools.product(range(taps), repeat=2)
    }


def _shift_twin(
    width: int, taps: int, planes: int, count: int, x: Array, x_at: int, x_plane: int, weights: Array, weights_at: int,
    down: int, across: int, weights_plane: int, out: Array, out_at: int, out_plane: int, start: Array, start_at: int,
    floor_at: int,
) -> None:  # fmt: skip
    """The tile in plain Python."""
    for plane in range(planes):
        here, there = x_at + plane * x_plane, out_at + plane * out_plane
        acc = np.full(count, start[start_at + plane], x.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for (i, j), pixels in _met(width, taps, count, x[here : here + count]).items():
                acc += weights[weights_at + plane * weights_plane + i * down + j * across] * pixels
        out[there : there + count] = np.where(acc < start[floor_at], start[floor_at], acc)


def _sum_shift_twin(
    width: int, taps: int, planes: int, count: int, x: Array, x_at: int, x_plane: int, gradient: Array, gradient_at: int,
    gradient_plane: int, out: Array, out_at: int, out_plane: int,
) -> None:  # fmt: skip
    """The tile that sums in plain Python."""
    n = lanes(x.itemsize)
    for plane in range(planes):
        here, there = x_at + plane * x_plane, gradient_at + plane * gradient_plane
        with np.errstate(over="ignore", invalid="ignore"):
            for (i, j), pixels in _met(width, taps, count, x[here : here + count]).items():
                end = out_at + plane * out_plane + (i * taps + j) * n
                products = np.zeros(-(-count // n) * n, x.dtype)
                products[:count] = gradient[there : there + count] * pixels
                out[end : end + n] += products.reshape(-1, n).sum(0)


def _kinds(itemsize: int) -> list[tuple[int, int]]:
    """List the kinds of these tiles."""
    return [kind for kind in SHIFTS if holds_plane(*kind, 0, itemsize)]


shift_tile = (
    _shift_twin if config.DISABLE_JIT else tile_of_kinds(SHIFT, SHIFT_PASSED, "shift_tile", KEYS, _kinds, _write_shift)
)
"""Planes whose outputs are as many as their pixels::

    out[plane, y, x] = start[plane] + sum over i < taps and j < taps of
                       weights[plane, i*down + j*across] * x[plane, y + i - taps//2, x + j - taps//2]

Pixels that do not exist are zeros.

Parameters
----------
width, taps, planes, count : int
    The columns of a plane, the taps along rows and columns, how many planes, and the pixels of each; as `holds_plane` asks.
x, x_at, x_plane : flat array, offset and distance
    The first pixel of the first plane, and how far behind it that of the next one lies.
weights, weights_at, down, across, weights_plane : flat array, offset and distances
    The factors.
out, out_at, out_plane : flat array, offset and distance
    Where the pixels go.
start, start_at, floor_at : flat array and offsets
    What the sums of each plane begin with, and a number: what is less becomes that.
"""

sum_shift_tile = (
    _sum_shift_twin
    if config.DISABLE_JIT
    else tile_of_kinds(SUM_SHIFT, SUM_SHIFT_PASSED, "sum_shift_tile", KEYS, _kinds, _write_sum_shift)
)
"""The products of the same pixels with gradients, which lie as they do, are added to what ``out`` holds, a vector for each tap::

    out[plane, i*taps + j, lane] += sum over pixels p < count, where p is the lane and every lanes-th behind it, of
                                    gradient[plane, p] * x[plane, p's row + i - taps//2, p's column + j - taps//2]
"""
