"""The walking tile: one vector times numbers that lie side by side, summed over pixels that lie evenly apart.

With one vector an outer tile of six rows loads more than it multiplies: a vector, six numbers, and two of the table that says
where they are.  Here up to MOST_SIDE rows have one address between them, and no table is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import VECTORS
from .words import I64, Array, Words, lanes, tile_of_kinds

__all__ = ["MOST_SIDE", "walk_tile"]

MOST_SIDE = 16 if VECTORS == 4 else 12
"""Most rows of a tile: as many accumulators as registers hold beside a vector, and no more than numbers that use one address."""

HEIGHTS = tuple((rows,) for rows in range(1, MOST_SIDE + 1))
"""Rows of each tile."""

WALK = (
    "height, lines, columns, vectors, vector_at, vector_line, vector_step, scalars, scalar_at, scalar_line, scalar_step, ahead, "
    "out, out_at, out_step"
)
WALK_PASSED = (
    "lines columns vectors+vector_at vector_line vector_step scalars+scalar_at scalar_line scalar_step ahead "
    "out+out_at out_step"
)  # fmt: skip


def _write_walk_tile(function: Any, dtype: Any, height: int) -> None:
    """Emit the tile with so many rows."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    lines, columns, vectors, vector_line, vector_step, scalars, scalar_line, scalar_step, ahead, out, out_step = (
        function.args
    )
    vector_line, vector_step, scalar_line, scalar_step, ahead, out_step = (
        b.mul(step, I64(w.size)) for step in (vector_line, vector_step, scalar_line, scalar_step, ahead, out_step)
    )
    acc = [w.variable(w.vector) for _ in range(height)]
    places = vector_at, scalar_at = w.variable(I64), w.variable(I64)
    for a in acc:
        b.store(w.constant(0), a)
    with cgutils.for_range(b, lines) as line:
        for place, first, step in zip(places, (vectors, scalars), (vector_line, scalar_line), strict=True):
            b.store(b.add(first, b.mul(line.index, step)), place)
        with cgutils.for_range(b, columns):
            vector, here = w.load(b.load(vector_at), w.vector), b.load(scalar_at)
            w.prefetch(b.add(here, ahead))
            for m, a in enumerate(acc):
                factor = w.splat(w.load(b.add(here, I64(m * w.size)), w.scalar))
                b.store(w.multiply_add(vector, factor, b.load(a)), a)
            for place, step in zip(places, (vector_step, scalar_step), strict=True):
                b.store(b.add(b.load(place), step), place)
    for m, a in enumerate(acc):
        end = b.add(out, b.mul(out_step, I64(m)))
        w.store(b.fadd(w.load(end, w.vector), b.load(a)), end)
    b.ret_void()


def _walk_tile_twin(
    height: int, lines: int, columns: int, vectors: Array, vector_at: int, vector_line: int, vector_step: int, scalars: Array,
    scalar_at: int, scalar_line: int, scalar_step: int, ahead: int, out: Array, out_at: int, out_step: int,
) -> None:  # fmt: skip
    """The tile in plain Python."""
    n = lanes(out.itemsize)
    total = np.zeros((height, n), out.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for line in range(lines):
            for column in range(columns):
                at = vector_at + line * vector_line + column * vector_step
                here = scalar_at + line * scalar_line + column * scalar_step
                total += scalars[here : here + height, None] * vectors[at : at + n]
        for m, row in enumerate(total):
            end = out_at + m * out_step
            out[end : end + n] += row


walk_tile = (
    _walk_tile_twin
    if config.DISABLE_JIT
    else tile_of_kinds(WALK, WALK_PASSED, "walk_tile", ("height",), lambda _: HEIGHTS, _write_walk_tile)
)
"""The products of the pixels of some lines, summed to what ``out`` holds: for m < height,

    out[out_at + m*out_step + lane] += sum over the pixels of vectors[pixel + lane] * scalars[pixel + m]

Parameters
----------
height, lines, columns : int
    Rows, 1 to MOST_SIDE, lines of pixels, and pixels of a line; there may be none.
vectors, vector_at, vector_line, vector_step : flat array, offset and distances
    The vector of the first pixel, and how far the next line and the next pixel lie from it.
scalars, scalar_at, scalar_line, scalar_step, ahead : flat array, offset and distances
    The first number of the first pixel, the same, and how far behind each pixel lies what is fetched from memory meanwhile.
out, out_at, out_step : flat array, offset and distance
    Where the sums of the rows are added.
"""
