"""The summing tiles: a vector added up over the pixels of a strip, and vectors over their lanes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from .words import I32, I64, Array, Words, address_of, lanes, private_function, tile_intrinsic

__all__ = ["TOGETHER", "lane_sum_tile", "sum_tile"]

TOGETHER = 8
"""Neighbours in a row whose sum is taken in the numbers' own precision, pair by pair; these sums are added up in double."""


def _write_sum_tile(function: Any, dtype: Any) -> None:
    """Emit the tile."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, images, planes, rows, columns, *steps, out = function.args
    steps = [b.mul(step, I64(w.size)) for step in steps]
    wide = ir.VectorType(ir.DoubleType(), w.lanes)
    single = wide != w.vector
    total = w.variable(wide)
    b.store(ir.Constant(wide, [0.0] * w.lanes), total)

    def add(first: Any, count: int) -> None:
        """Add so many pixels, a power of two, to the total."""
        values = [w.load(b.add(first, b.mul(steps[3], I64(m))), w.vector) for m in range(count)]
        while len(values) > 1:
            values = [b.fadd(x, y) for x, y in zip(values[::2], values[1::2], strict=True)]
        b.store(b.fadd(b.load(total), b.fpext(values[0], wide) if single else values[0]), total)

    with (
        cgutils.for_range(b, images) as image,
        cgutils.for_range(b, planes) as plane,
        cgutils.for_range(b, rows) as row,
    ):
        at = source
        for loop, step in zip((image, plane, row), steps, strict=False):
            at = b.add(at, b.mul(loop.index, step))
        whole = b.sdiv(columns, I64(TOGETHER))
        with cgutils.for_range(b, whole) as some:
            add(b.add(at, b.mul(some.index, b.mul(steps[3], I64(TOGETHER)))), TOGETHER)
        with cgutils.for_range(b, columns, start=b.mul(whole, I64(TOGETHER))) as column:
            add(b.add(at, b.mul(column.index, steps[3])), 1)
    w.store(b.fptrunc(b.load(total), w.vector) if single else b.load(total), out)
    b.ret_void()


TILE = "source, source_at, images, planes, rows, columns, image_step, plane_step, row_step, column_step, out, out_at"
"""What the summing tile is given."""


def _sum_tile_twin(
    source: Array, source_at: int, images: int, planes: int, rows: int, columns: int, image_step: int, plane_step: int,
    row_step: int, column_step: int, out: Array, out_at: int,
) -> None:  # fmt: skip
    """The summing tile in plain Python."""
    width = lanes(source.itemsize)
    total = np.zeros(width, np.float64)
    whole = columns // TOGETHER * TOGETHER
    with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
        for image, plane, row in itertools.product(range(images), range(planes), range(rows)):
            at = source_at + image * image_step + plane * plane_step + row * row_step
            pixels = [source[at + x * column_step : at + x * column_step + width] for x in range(columns)]
            for first in range(0, whole, TOGETHER):
                values = pixels[first : first + TOGETHER]
                while len(values) > 1:
                    values = [a + c for a, c in zip(values[::2], values[1::2], strict=True)]
                total += values[0]
            for pixel in pixels[whole:]:
                total += pixel
        out[out_at : out_at + width] = total


def _call_sum_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit the call of the tile."""
    dtype = named["source"][0].dtype
    w = Words(builder, dtype)
    source, out = (w.at(address_of(context, builder, *named[n]), named[f"{n}_at"][1]) for n in ("source", "out"))
    function, new = private_function(builder.module, f"sum_tile_{w.suffix}", 10)
    if new:
        _write_sum_tile(function, dtype)
    builder.call(function, [source, *(named[name][1] for name in TILE.split(", ")[2:10]), out])


sum_tile = _sum_tile_twin if config.DISABLE_JIT else tile_intrinsic(TILE, _call_sum_tile)
"""A vector, summed over pixels: for k < lanes,

    out[out_at + k] = sum over (image, plane, row, column) of source[source_at + their steps + k]

A row's TOGETHER neighbours are added up first; all sums of these are taken in double precision.
"""


LANE_SUM = "source, source_at, count, out, out_at"
"""What the tile that sums over lanes is given."""


def _write_lane_sum_tile(function: Any, dtype: Any) -> None:
    """Emit the tile: as many vectors as lanes at a time, in half as many with each round.

    In a round, a vector of the first half has the sums of both halves of its lanes in the one, and those of its partner's in the
    other.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, count, out = function.args
    n, last = w.lanes, b.sub(count, I64(1))
    with cgutils.for_range_slice(b, I64(0), count, I64(n)) as (first, _):
        rows = []
        for m in range(n):  # the last vector comes again, where there are none
            row = b.add(first, I64(m))
            row = b.select(b.icmp_signed("<", row, last), row, last)
            rows.append(w.load(w.at(source, row, w.bytes), w.vector))
        size = n // 2
        while size:
            upper = ir.Constant(ir.VectorType(I32, n), [n + i - size if i & size else i for i in range(n)])
            lower = ir.Constant(ir.VectorType(I32, n), [n + i if i & size else i + size for i in range(n)])
            pairs = zip(rows[:size], rows[size:], strict=True)
            rows = [b.fadd(b.shuffle_vector(*pair, upper), b.shuffle_vector(*pair, lower)) for pair in pairs]
            size //= 2
        w.store_some(rows[0], w.at(out, first), w.before_lane(b.sub(count, first)))
    b.ret_void()


def _lane_sum_twin(source: Array, source_at: int, count: int, out: Array, out_at: int) -> None:
    """The tile in plain Python."""
    n = lanes(source.itemsize)
    rows = source[source_at : source_at + count * n].reshape(count, n)
    with np.errstate(over="ignore", invalid="ignore"):
        while rows.shape[1] > 1:
            half = rows.shape[1] // 2
            rows = rows[:, :half] + rows[:, half:]
    out[out_at : out_at + count] = rows[:, 0]


def _call_lane_sum_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit the call of the tile."""
    dtype = named["source"][0].dtype
    w = Words(builder, dtype)
    source, out = (w.at(address_of(context, builder, *named[n]), named[f"{n}_at"][1]) for n in ("source", "out"))
    function, new = private_function(builder.module, f"lane_sum_tile_{w.suffix}", 3)
    if new:
        _write_lane_sum_tile(function, dtype)
    builder.call(function, [source, named["count"][1], out])


lane_sum_tile = _lane_sum_twin if config.DISABLE_JIT else tile_intrinsic(LANE_SUM, _call_lane_sum_tile)
"""Vectors, each summed over its lanes: for k < ``count``,

    out[out_at + k] = sum over m < lanes of source[source_at + k*lanes + m]

The halves of a vector are added up, and then those of what came of it.
"""
