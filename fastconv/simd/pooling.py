"""Maxima over windows of pixels, and where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from .words import I64, Array, Words, address_of, lanes, private_function, tile_intrinsic

__all__ = ["NOWHERE", "pool_tile"]

NOWHERE = 255
"""Place of a maximum that no element of the window is; places are bytes where windows have less elements than that."""

NAMES = (
    "source, source_at, source_row, source_step, source_next, rows, columns, taps, target, target_at, target_next, places, "
    "places_at, start, floor_at, nowhere, count, valid"
)


def _write_pool_tile(function: Any, dtype: Any) -> None:
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    (
        source,
        source_row,
        source_step,
        source_next,
        rows,
        columns,
        taps,
        target,
        target_next,
        places,
        floor,
        nowhere,
        count,
        valid,
    ) = function.args
    byte, number = ir.IntType(8), ir.IntType(dtype.bitwidth)
    lowest, beginning = w.splat(w.load(floor, w.scalar)), w.splat(b.trunc(nowhere, number))
    best, place = w.variable(w.vector), w.variable(beginning.type)
    whole = b.icmp_signed(">=", valid, I64(w.lanes))
    with cgutils.for_range(b, count) as window:
        here = w.at(source, b.mul(window.index, source_next))
        b.store(lowest, best)
        b.store(beginning, place)
        with cgutils.for_range(b, rows) as row, cgutils.for_range(b, columns) as column:
            at = b.add(b.mul(row.index, source_row), b.mul(column.index, source_step))
            value = w.load(w.at(here, at), w.vector)
            wins = b.or_(b.fcmp_ordered(">", value, b.load(best)), b.fcmp_unordered("uno", value, value))
            b.store(b.select(wins, value, b.load(best)), best)
            tap = b.add(b.mul(row.index, taps), column.index)
            b.store(b.select(wins, w.splat(b.trunc(tap, number)), b.load(place)), place)
        maxima, found = b.load(best), b.trunc(b.load(place), ir.VectorType(byte, w.lanes))
        to = b.mul(window.index, target_next)
        with b.if_else(whole) as (all_lanes, some):
            with all_lanes:
                w.store(maxima, w.at(target, to))
                b.store(found, b.inttoptr(b.add(places, to), found.type.as_pointer())).align = 1
            with some:
                for value, first, size in ((maxima, w.at(target, to), w.size), (found, b.add(places, to), 1)):
                    kept = cgutils.alloca_once_value(b, value)
                    with cgutils.for_range(b, valid) as lane:
                        kind, step = value.type.element, b.mul(lane.index, I64(size))
                        one = b.load(b.inttoptr(b.add(b.ptrtoint(kept, I64), step), kind.as_pointer()))
                        b.store(one, b.inttoptr(b.add(first, step), kind.as_pointer())).align = size
    b.ret_void()


def _pool_twin(
    source: Array, source_at: int, source_row: int, source_step: int, source_next: int, rows: int, columns: int, taps: int,
    target: Array, target_at: int, target_next: int, places: Array, places_at: int, start: Array, floor_at: int, nowhere: int,
    count: int, valid: int,
) -> None:  # fmt: skip
    """The pooling tile in plain Python."""
    valid = min(valid, lanes(source.itemsize))
    for window in range(count):
        here, to = source_at + window * source_next, window * target_next
        best, place = np.full(valid, start[floor_at]), np.full(valid, nowhere)
        for tap in range(rows * columns):
            row, column = divmod(tap, columns)
            at = here + row * source_row + column * source_step
            value = source[at : at + valid]
            wins = (value > best) | np.isnan(value)
            best, place = np.where(wins, value, best), np.where(wins, row * taps + column, place)
        target[target_at + to : target_at + to + valid] = best
        places[places_at + to : places_at + to + valid] = place


def _call_pool_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    dtype = named["source"][0].dtype
    w = Words(builder, dtype)
    function, new = private_function(builder.module, f"pool_tile_{w.suffix}", 14)
    if new:
        _write_pool_tile(function, dtype)
    arrays = ("source", "target", "places", "start")
    source, target, places, start = (address_of(context, builder, *named[name]) for name in arrays)
    number = {name: value for name, (_, value) in named.items()}
    builder.call(
        function,
        [
            w.at(source, number["source_at"]), number["source_row"], number["source_step"], number["source_next"],
            number["rows"], number["columns"], number["taps"], w.at(target, number["target_at"]), number["target_next"],
            builder.add(places, number["places_at"]), w.at(start, number["floor_at"]), number["nowhere"], number["count"],
            number["valid"],
        ],
    )  # fmt: skip


pool_tile = _pool_twin if config.DISABLE_JIT else tile_intrinsic(NAMES, _call_pool_tile)
"""The maxima of windows that follow each other, of a vector of channels, and the places of these in their windows.

Parameters
----------
source, source_at, source_row, source_step, source_next : flat array, offset and distances
    The first pixel, whose lanes up to a whole vector are read, and the distances of rows, of columns and of windows.
rows, columns : int
    Of a window.
taps : int
    The place of row r and column s is r*taps + s, always less than NOWHERE.
target, target_at, target_next : flat array, offset and distance
    Where the maxima go.
places, places_at : flat array of bytes and offset
    Where their places go; these lie as the maxima do, each of them a byte.
start, floor_at : flat array and offset
    A number: where nothing is above it, that is the maximum, and ``nowhere`` its place.  Of equal maxima the first counts; a NaN
    is above all, the last one above others.
nowhere : int
    0 to NOWHERE.
count : int
    Windows.
valid : int
    Lanes to store, at most a vector's are.
"""
