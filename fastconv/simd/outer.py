"""The outer tile: vectors times scalars.

A column of tiles has any even number of rows but two: tiles of six, and at the end one or two of four.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import ROWS, VECTORS
from .words import (
    I64,
    Array,
    Words,
    call_first,
    lanes,
    linked_function,
    passed_arguments,
    private_function,
    tile_intrinsic,
)

__all__ = [
    "FETCH_BYTES", "FEW_ROWS", "FEW_VECTORS", "SHORT", "TERMS", "TURN", "far_tile", "near_tile", "outer_tile", "short_tile",
]  # fmt: skip

FEW_ROWS = 4
"""Rows of the tiles at the end of a column."""


def _write_tile(function: Any, dtype: Any, height: int, vectors: int) -> None:
    """Emit the tile with ``height`` rows of ``vectors`` vectors.

    With addresses, and a step for each, it fetches what lies there, one step further after FETCH_BYTES of a row; or if there are
    two, after each term, and where FEW_VECTORS are soon multiplied, after a TURN.

    Registers on AVX2 (16): 6x2 accumulators, 2 vectors, 1 scalar; 10 loads for 12 multiplications.
    On AVX-512 (32): 6x4 accumulators, 4 vectors, 1 scalar; 12 loads for 24.  Six rows, because each row holds an address in a
    general register and there are 15 of those.

    Variables are written to the stack here; LLVM puts them into registers.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    w.align_stack()
    vector, pairs, count, scalar, rows, out, targets, tiles, start, floor, add, valid, streams, *fetches = function.args
    each = [(m, v) for m in range(height) for v in range(vectors)]
    acc = [w.variable(w.vector) for _ in each]
    total = [w.variable(w.vector) for _ in each]
    row = [w.variable(I64) for _ in range(height)]
    pair, until = w.variable(I64), w.variable(I64)
    coming = [(w.variable(I64), b.mul(step, I64(w.size))) for step in fetches[1::2]]
    for (place, _), address in zip(coming, fetches[::2], strict=True):
        b.store(address, place)
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    last = w.at(pairs, count, PAIR)
    fetched = FETCH_BYTES // w.size if len(fetches) == 2 else 1 if vectors > FEW_VECTORS else TURN
    is_long = b.icmp_signed(">", count, I64(TERMS))

    def add_products(terms: int) -> None:
        for i in range(terms):
            here = b.load(pair)
            offset, column = (b.mul(w.load(b.add(here, I64(PAIR * i + 8 * n)), I64), I64(w.size)) for n in (0, 1))
            column = b.add(vector, column)
            columns = [w.load(b.add(column, I64(w.bytes * v)), w.vector) for v in range(vectors)]
            for m in range(height):
                factor = w.splat(w.load(b.add(b.load(row[m]), offset), w.scalar))
                for v in range(vectors):
                    a = acc[m * vectors + v]
                    b.store(w.multiply_add(columns[v], factor, b.load(a)), a)
        b.store(b.add(b.load(pair), I64(PAIR * terms)), pair)

    with cgutils.for_range(b, tiles) as tile:
        here = b.mul(tile.index, I64(8 * height))
        for m in range(height):
            b.store(w.at(scalar, w.load(b.add(b.add(rows, here), I64(8 * m)), I64)), row[m])
        for n, (_, v) in enumerate(each):
            b.store(w.load(b.add(start, I64(w.bytes * v)), w.vector), acc[n])
        b.store(pairs, pair)
        with b.if_then(is_long, likely=False):
            for variable in total:
                b.store(zero, variable)
        with w.repeat(lambda: b.icmp_signed("<", b.load(pair), last)):
            rest = b.sub(last, b.load(pair))
            chunk = b.select(b.icmp_signed("<", rest, I64(PAIR * TERMS)), rest, I64(PAIR * TERMS))
            b.store(b.add(b.load(pair), chunk), until)
            with w.repeat(lambda: b.icmp_signed("<", b.add(b.load(pair), I64(PAIR)), b.load(until))):
                for _ in range(TURN // fetched):
                    for place, step in coming:
                        w.prefetch(b.load(place))
                        b.store(b.add(b.load(place), step), place)
                    add_products(fetched)
            with b.if_then(b.icmp_signed("<", b.load(pair), b.load(until))):
                add_products(1)
            with b.if_then(is_long, likely=False):
                for part, whole in zip(acc, total, strict=True):
                    b.store(b.fadd(b.load(whole), b.load(part)), whole)
                    b.store(zero, part)
        with b.if_then(is_long, likely=False):
            for part, whole in zip(acc, total, strict=True):
                b.store(b.load(whole), part)

        new = [b.load(variable) for variable in acc]
        ends = [w.at(out, w.load(b.add(b.add(targets, here), I64(8 * m)), I64)) for m in range(height)]
        adds = b.icmp_signed("!=", add, I64(0))
        with b.if_else(b.icmp_signed(">=", valid, I64(vectors * w.lanes))) as (whole, part):
            with whole:
                addresses = [b.add(ends[m], I64(w.bytes * v)) for m, v in each]
                with b.if_then(adds):  # all old values are loaded before any is stored: rows may repeat
                    for at, variable, value in zip(addresses, acc, new, strict=True):
                        b.store(b.fadd(w.load(at, w.vector), value), variable)
                least = w.splat(w.load(floor, w.scalar))
                results = [w.at_least(b.load(variable), least) for variable in acc]
                for store in w.stores(ends, streams, vectors):
                    for at, result in zip(addresses, results, strict=True):
                        store(result, at)
            with part:
                w.store_first(new, ends, vectors, valid, adds, floor)
    b.ret_void()


TERMS = 128
"""Longest plain run of additions: a longer sum is taken in chunks, whose sums are added one by one."""

PAIR = 16
"""Bytes of a row of the table of pairs: two int64."""

TURN = 2
"""Terms in a turn of a tile, for half the cost of counting."""

FEW_VECTORS = 2
"""Most vectors of tiles that fetch one number of each kind to come in a TURN, not with each term: with two vectors or with four,
that is one in 24 multiply-adds."""

FETCH_BYTES = 8
"""Bytes of each row in which a tile fetches one line of those that lie behind its rows: as it has six, most of a line."""

SHORT = {1: 8, 2: 4, 3: 3, FEW_ROWS: VECTORS}
"""Vectors in the tiles with fewer rows: as many accumulators as hide the time that a multiply-add takes, with 16 registers."""

TILE = (
    "vectors, vector_at, tables, pairs_at, count, scalars, scalar_at, rows_at, out, out_at, targets_at, rows, start, start_at, "
    "floor_at, add, valid"
)
"""What the outer tile is given."""

NEXT = "streams, first, first_at, first_step"
"""What the near tile is given beside that."""

COMING = f"{NEXT}, second, second_at, second_step"
"""What the far tile is."""

PASSED = (
    "vectors+vector_at tables+pairs_at count scalars+scalar_at tables+rows_at out+out_at tables+targets_at rows start+start_at "
    "start+floor_at add valid"
)
NEXT_PASSED = "streams first+first_at first_step"
COMING_PASSED = f"{NEXT_PASSED} second+second_at second_step"


def _tile_twin(
    vectors: Array, vector_at: int, tables: Array, pairs_at: int, count: int, scalars: Array, scalar_at: int, rows_at: int,
    out: Array, out_at: int, targets_at: int, rows: int, start: Array, start_at: int, floor_at: int, add: int, valid: int,
    streams: int = 0, *_: Any,
) -> None:  # fmt: skip
    """The outer tile, the near and the far one in plain Python."""
    width = -(-valid // lanes(out.itemsize)) * lanes(out.itemsize)
    pairs = tables[pairs_at : pairs_at + 2 * count].reshape(-1, 2)
    ends = [out_at + tables[targets_at + m] for m in range(rows)]
    old = [out[end : end + valid].copy() for end in ends]  # before any is stored: rows may repeat
    for m, end in enumerate(ends):
        total = np.zeros(width, out.dtype)
        acc = start[start_at : start_at + width].copy()
        row = scalar_at + tables[rows_at + m]
        with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
            for k, (offset, column) in enumerate(pairs):
                acc += vectors[vector_at + column : vector_at + column + width] * scalars[row + offset]
                if count > TERMS and (k % TERMS == TERMS - 1 or k == count - 1):
                    total += acc
                    acc[:] = 0
            result = (total if count > TERMS else acc)[:valid]
            result = old[m] + result if add else result
            out[end : end + valid] = np.where(result < start[floor_at], start[floor_at], result)


def _short_tile_twin(
    height: int, vectors: Array, vector_at: int, tables: Array, pairs_at: int, count: int, scalars: Array, scalar_at: int,
    rows_at: int, out: Array, out_at: int, targets_at: int, rows: int, start: Array, start_at: int, floor_at: int, add: int,
    valid: int,
) -> None:  # fmt: skip
    """The tiles with fewer rows in plain Python."""
    _tile_twin(
        vectors, vector_at, tables, pairs_at, count, scalars, scalar_at, rows_at, out, out_at, targets_at, rows, start,
        start_at, floor_at, add, valid,
    )  # fmt: skip


def _tile_function(module: Any, w: Words, dtype: Any, height: int, vectors: int, n_args: int) -> Any:
    function, new = private_function(module, f"outer_tile_{w.suffix}_{height}x{vectors}_{n_args}", n_args)
    if new:
        _write_tile(function, dtype, height, vectors)
    return function


def _write_column(function: Any, dtype: Any) -> None:
    """Emit the calls of the tiles that have as many vectors as ``valid`` lanes need, and six and four rows."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w, passed = Words(b, dtype), function.args
    rows_at, targets_at, rows, valid = (passed[n] for n in (4, 6, 7, 11))

    def call(height: int, begin: Any, tiles: Any) -> None:
        some = [*passed]
        some[4], some[6], some[7] = w.at(rows_at, begin, 8), w.at(targets_at, begin, 8), tiles
        calls = []
        for n in range(1, VECTORS + 1):
            enough = b.icmp_signed("<=", valid, I64(n * w.lanes))
            calls.append((enough, _tile_function(b.module, w, dtype, height, n, len(passed))))
        call_first(b, calls, some)

    rest = b.srem(rows, I64(ROWS))  # 4 of one tile with four rows, 2 of two of them
    few = b.srem(b.sdiv(b.sub(I64(ROWS), rest), I64(2)), I64(3))
    whole = b.sub(rows, b.mul(few, I64(FEW_ROWS)))
    with b.if_then(b.icmp_signed(">", whole, I64(0))):
        call(ROWS, I64(0), b.sdiv(whole, I64(ROWS)))
    with b.if_then(b.icmp_signed(">", few, I64(0))):
        call(FEW_ROWS, whole, few)
    b.ret_void()


def _call_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]], more: str) -> None:
    """Emit the call of a column of tiles, which is given some more than all are."""
    dtype, w, passed = passed_arguments(context, builder, named, f"{PASSED} {more}")
    name = f"outer_tile_{w.suffix}_{len(passed)}"
    write = functools.partial(_write_column, dtype=dtype)
    builder.call(linked_function(context, builder.module, name, len(passed), write), passed)


def _call_short_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit the call of the tile with ``height`` rows."""
    dtype, w, passed = passed_arguments(context, builder, named, PASSED)
    passed.append(I64(0))  # nothing goes past the caches
    height = named["height"][1]
    passed[7] = builder.sdiv(passed[7], height)
    calls = []
    for rows, vectors in (*SHORT.items(), (ROWS, VECTORS)):
        this = builder.icmp_signed("==", height, I64(rows))
        calls.append((this, _tile_function(builder.module, w, dtype, rows, vectors, len(passed))))
    call_first(builder, calls, passed)


outer_tile = (
    _tile_twin
    if config.DISABLE_JIT
    else tile_intrinsic(f"{TILE}, streams", functools.partial(_call_tile, more="streams"))
)
"""A column of tiles of vectors times scalars, with 1 to VECTORS vectors as ``valid`` lanes need.

Parameters
----------
vectors, vector_at : flat array and offset
    What vectors are counted from.
tables : flat int64 array
    Holds the tables that the next parameters name.
pairs_at, count : int
    For each k, what leads from a row to its factor, and where its vectors lie.  There may be no k at all.
scalars, scalar_at : flat array and offset
    What the rows are counted from.
rows_at : int
    For each row where its factors lie.
out, out_at, targets_at : flat array and offset, int
    For each row where its sums go.  The last rows may repeat: they then store the same twice.
rows : int
    Number of rows, what `fastconv.strips.filled` makes of those that are needed.
start, start_at, floor_at : flat array and offsets
    The vectors that every row of accumulators begins with, and a number: what is less becomes that.
add : int
    If not 0, the sums are added to what ``out`` holds.
valid : int
    Lanes of a row to store, 1 to VECTORS*lanes.  All lanes of ``vectors`` and ``start`` up to a whole vector are read.
streams : int
    If not 0, rows of all lanes go to memory past the caches, where they can.
"""

near_tile = (
    _tile_twin
    if config.DISABLE_JIT
    else tile_intrinsic(f"{TILE}, {NEXT}", functools.partial(_call_tile, more=NEXT_PASSED))
)
"""The same for scalars that lie side by side, as do those of the tiles to come.

Parameters
----------
first, first_at, first_step : flat array, offset and distance
    What is fetched from memory in the meantime: one number after FETCH_BYTES of a row, so far behind the one before it.
"""

far_tile = (
    _tile_twin
    if config.DISABLE_JIT
    else tile_intrinsic(f"{TILE}, {COMING}", functools.partial(_call_tile, more=COMING_PASSED))
)
"""The outer tile for what comes from far.

Parameters
----------
first, first_at, first_step, second, second_at, second_step : flat arrays, offsets and distances
    What is fetched from memory in the meantime, for tiles to come: one number of each with every term, or with FEW_VECTORS in
    every TURN, so far behind the one before it.  With a distance of 0 it is always the same.
"""

short_tile = _short_tile_twin if config.DISABLE_JIT else tile_intrinsic(f"height, {TILE}", _call_short_tile)
"""The same without ``streams`` and with ``height`` rows a tile, one of SHORT or ROWS, of which ``rows`` is a multiple, and as
many vectors as SHORT says, or VECTORS."""
