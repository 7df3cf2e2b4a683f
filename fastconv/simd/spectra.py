"""The tiles of Fourier transforms: rows of pixels to values at frequencies, products of these, and rows of pixels back.

Channels do not mix, so they are the lanes.  What `fastconv.dft` makes of a row of numbers is emitted for vectors; the values of a
row lie one behind the other, and rows as well.  Between them seven rows of taps are summed over at each of the values by itself,
for seven rows of outputs at once: a row of the input is loaded once for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..dft import EDGE, INPUTS, SIXTEEN, SPAN, TAPS, TEN, TWELVE, Transform
from .words import (
    I64,
    LINE,
    Array,
    Words,
    call_first,
    equal,
    lanes,
    passed_arguments,
    private_function,
    tile_intrinsic,
)

__all__ = ["FETCHED_LINES", "evaluate_taps_tile", "evaluate_tile", "interpolate_tile", "multiply_tile"]

EVALUATE = "points, source, source_at, source_row, source_step, first, last, out, out_at, rows"

MULTIPLY = (
    "points, above, below, adds, upper, upper_at, lower, lower_at, taps, taps_at, fetched, fetched_at, fetched_row, "
    "fetched_step, fetches, ends, ends_at, ends_row, ends_step, ends_rows, out, out_at"
)

INTERPOLATE = (
    "points, source, source_at, start, start_at, floor_at, out, out_at, out_row, out_step, columns, rows, streams"
)

TRANSFORMS = {transform.points: transform for transform in (TWELVE, TEN, SIXTEEN)}
"""By their numbers of points, by which tiles are told which they are to compute."""

FETCHED_LINES = 2
"""Lines of the cache that are fetched together: memory gives two that are neighbours nearly as soon as one."""

EXIST = {
    12: ((0, INPUTS), (EDGE, INPUTS), (0, INPUTS - EDGE)),
    10: ((EDGE, EDGE + SPAN),),
    16: ((EDGE, EDGE + 2 * SPAN),),
}
"""Most frequent ranges of the inputs of a tile that exist: where it stands inside, on the left, on the right; and alone."""


@dataclass(frozen=True)
class Rows:
    """What is made of rows of numbers.

    Parameters
    ----------
    count : int
        Numbers of a row.
    may_exist : range
        Those that may be other than 0.
    results : int
        Values that are made of them.
    evaluate : callable
        Makes them, as a function of `fastconv.dft`.
    frequent : tuple of tuples of int
        Most frequent ranges of the numbers that exist; each has a tile of its own.
    """

    count: int
    may_exist: range
    results: int
    evaluate: Callable[..., list[Any]]
    frequent: tuple[tuple[int, int], ...]


OF_INPUTS = {
    points: Rows(transform.window, transform.inputs, transform.values, transform.evaluate, EXIST[points])
    for points, transform in TRANSFORMS.items()
}
OF_TAPS = {
    points: Rows(TAPS, range(TAPS), transform.tap_values, transform.evaluate_taps, ((0, TAPS),))
    for points, transform in TRANSFORMS.items()
}
"""Rows of inputs and of taps, for each of the transforms."""


class _Vector:
    """A vector in the code that is emitted, which can be added and subtracted."""

    def __init__(self, w: Words, value: Any) -> None:
        self.w, self.value = w, value

    def __add__(self, other: _Vector) -> _Vector:
        return _Vector(self.w, self.w.b.fadd(self.value, other.value))

    def __sub__(self, other: _Vector) -> _Vector:
        return _Vector(self.w, self.w.b.fsub(self.value, other.value))


def _multiply_add(a: Any, factor: float, b: Any) -> Any:
    """a*factor + b, or a*factor if b is None, of vectors in the code that is emitted."""
    w, constant = a.w, a.w.constant(factor)
    return _Vector(w, w.b.fmul(a.value, constant) if b is None else w.multiply_add(a.value, constant, b.value))


def _multiply_add_arrays(a: Any, factor: float, b: Any) -> Any:
    """Return the same of arrays."""
    product = a * a.dtype.type(factor)
    return product if b is None else product + b


def _apply(w: Words, function: Callable[..., list[Any]], values: Sequence[Any]) -> list[Any]:
    """Emit a function of `fastconv.dft`."""
    given = [None if value is None else _Vector(w, value) for value in values]
    return [w.constant(0) if result is None else result.value for result in function(given, _multiply_add)]


def _evaluate_twin(rows_of: dict[int, Rows]) -> Any:
    """Return the tile that evaluates in plain Python."""

    def twin(
        points: int, source: Array, source_at: int, source_row: int, source_step: int, first: int, last: int, out: Array,
        out_at: int, rows: int,
    ) -> None:  # fmt: skip
        n, of = lanes(source.itemsize), rows_of[points]
        for row in range(rows):
            values = np.zeros((of.count, n), out.dtype)
            for k in of.may_exist:
                if first <= k < last:
                    at = source_at + row * source_row + k * source_step
                    values[k] = source[at : at + n]
            to = out_at + row * of.results * n
            with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                out[to : to + of.results * n] = np.concatenate(of.evaluate(list(values), _multiply_add_arrays))

    return twin


def _write_evaluate_tile(tile: Any, dtype: Any, of: Rows, ends: tuple[int, int] | None) -> None:
    """Emit the values of rows, of which from ``ends[0]`` up to ``ends[1]`` - 1 exist, or what the tile is told."""
    b = ir.IRBuilder(tile.append_basic_block("entry"))
    w = Words(b, dtype)
    source, row_step, step, first, last, out, rows = tile.args
    row_step, step = b.mul(row_step, I64(w.size)), b.mul(step, I64(w.size))
    if ends is None:
        nothing = w.variable(w.vector)
        b.store(w.constant(0), nothing)
        nothing = b.ptrtoint(nothing, I64)
        exist = {n: b.and_(b.icmp_signed("<=", first, I64(n)), b.icmp_signed(">", last, I64(n))) for n in of.may_exist}
    offsets = [b.mul(step, I64(n)) for n in range(of.count)]

    def load(n: int, place: Any) -> Any:
        if ends is None:
            return w.load(b.select(exist[n], place, nothing), w.vector) if n in exist else None
        return w.load(place, w.vector) if ends[0] <= n < ends[1] else None

    with cgutils.for_range(b, rows) as row:
        here = b.add(source, b.mul(row_step, row.index))
        there = b.add(out, b.mul(row.index, I64(of.results * w.bytes)))
        vectors = [load(n, b.add(here, offset)) for n, offset in enumerate(offsets)]
        for k, value in enumerate(_apply(w, of.evaluate, vectors)):
            w.store(value, b.add(there, I64(k * w.bytes)))
    b.ret_void()


def _evaluate_tile(name: str, rows_of: dict[int, Rows]) -> Any:
    """Make a tile that turns rows of vectors into their values."""

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        names = "source+source_at source_row source_step first last out+out_at rows"
        dtype, w, passed = passed_arguments(context, builder, named, names)
        calls = []
        for points, of in rows_of.items():
            for ends in (*of.frequent, None):
                suffix = "any" if ends is None else f"{ends[0]}_{ends[1]}"
                tile, new = private_function(builder.module, f"{name}_{w.suffix}_{points}_{suffix}", len(passed))
                if new:
                    _write_evaluate_tile(tile, dtype, of, ends)
                met = {"points": points} | ({} if ends is None else {"first": ends[0], "last": ends[1]})
                calls.append((equal(builder, named, met), tile))
        call_first(builder, calls, passed)

    return _evaluate_twin(rows_of) if config.DISABLE_JIT else tile_intrinsic(EVALUATE, codegen)


def _write_multiply_tile(tile: Any, dtype: Any, transform: Transform, above: int, below: int, adds: int) -> None:
    """Emit the products of rows but for so many above and below, which are added to what is there if it ``adds``."""
    b = ir.IRBuilder(tile.append_basic_block("entry"))
    w = Words(b, dtype)
    *arrays, fetched, fetched_row, fetched_step, fetches, ends, ends_row, ends_step, ends_rows = tile.args
    fetched_row, fetched_step, ends_row, ends_step = (
        b.mul(step, I64(w.size)) for step in (fetched_row, fetched_step, ends_row, ends_step)
    )
    singles, pairs = transform.singles, transform.pairs

    def visit(row: Any, rows: Any, first: Any, row_step: Any, step: Any) -> Iterator[Any]:
        """Visit the addresses of a row of pixels, if there are so many rows."""
        with b.if_then(b.icmp_signed("<", row, rows)):
            here = b.add(first, b.mul(row, row_step))
            for _ in range(transform.span):
                yield here
                here = b.add(here, step)

    def fetch(row: Any) -> None:
        for pixel in visit(row, fetches, fetched, fetched_row, fetched_step):
            for line in range(FETCHED_LINES):
                w.prefetch(b.add(pixel, I64(line * LINE)))
        for pixel in visit(row, ends_rows, ends, ends_row, ends_step):
            w.prefetch(pixel, writes=True)

    def place(address: Any, row: int, count: int, value: int = 0) -> Any:
        return b.add(address, I64((row * count + value) * w.bytes))

    def sum_up(upper: Any, lower: Any, taps: Any, values: Sequence[int], tap: int) -> list[Any]:
        """Emit seven sums over rows of taps times a value, or times the sum of two."""
        w.part()
        factors = [w.load(place(taps, r, transform.tap_values, tap), w.vector) for r in range(TAPS)]
        sums: list[Any] = [None] * SPAN
        for n in range(above, INPUTS - below):
            part, row = (upper, n) if n < TAPS else (lower, n - TAPS)
            value, *other = (w.load(place(part, row, transform.values, k), w.vector) for k in values)
            value = b.fadd(value, *other) if other else value
            for y in range(max(0, n + 1 - TAPS), min(n + 1, SPAN)):
                factor = factors[n - y]
                sums[y] = b.fmul(factor, value) if sums[y] is None else w.multiply_add(factor, value, sums[y])
        return sums

    def store(results: list[Any], out: Any, value: int) -> None:
        for y, result in enumerate(results):
            there = place(out, y, transform.values, value)
            w.store(b.fadd(w.load(there, w.vector), result) if adds else result, there)

    with cgutils.for_range(b, I64(singles)) as single:
        fetch(b.add(single.index, I64(pairs)))
        at = b.mul(single.index, I64(w.bytes))
        upper, lower, taps, out = (b.add(address, at) for address in arrays)
        store(sum_up(upper, lower, taps, (0,), 0), out, 0)
    with cgutils.for_range(b, I64(pairs)) as pair:
        fetch(pair.index)
        value, tap = (b.mul(pair.index, I64(n * w.bytes)) for n in (2, 3))
        upper, lower, taps, out = (b.add(address, tap if n == 2 else value) for n, address in enumerate(arrays))
        p, q, both = (
            sum_up(upper, lower, taps, [singles + k for k in values], singles + n)
            for n, values in enumerate(((0,), (1,), (0, 1)))
        )
        store([b.fsub(one, other) for one, other in zip(p, q, strict=True)], out, singles)
        rest = [b.fsub(one, other) for one, other in zip(both, p, strict=True)]
        store([b.fsub(one, other) for one, other in zip(rest, q, strict=True)], out, singles + 1)
    b.ret_void()


def _call_multiply(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    dtype, w, passed = passed_arguments(
        context,
        builder,
        named,
        "upper+upper_at lower+lower_at taps+taps_at out+out_at fetched+fetched_at fetched_row fetched_step fetches "
        "ends+ends_at ends_row ends_step ends_rows",
    )
    calls = []
    for points, above, below, adds in itertools.product(TRANSFORMS, (EDGE, 0), (EDGE, 0), (0, 1)):
        name = f"multiply_spectra_{w.suffix}_{points}_{above}_{below}_{adds}"
        tile, new = private_function(builder.module, name, len(passed))
        if new:
            _write_multiply_tile(tile, dtype, TRANSFORMS[points], above, below, adds)
        calls.append((equal(builder, named, {"points": points, "above": above, "below": below, "adds": adds}), tile))
    call_first(builder, calls, passed)


def _multiply_twin(
    points: int, above: int, below: int, adds: int, upper: Array, upper_at: int, lower: Array, lower_at: int, taps: Array,
    taps_at: int, fetched: Array, fetched_at: int, fetched_row: int, fetched_step: int, fetches: int, ends: Array, ends_at: int,
    ends_row: int, ends_step: int, ends_rows: int, out: Array, out_at: int,
) -> None:  # fmt: skip
    """The tile that multiplies in plain Python."""
    n, transform = lanes(out.itemsize), TRANSFORMS[points]
    values_of_row, taps_of_row = transform.values, transform.tap_values

    def rows(array: Array, at: int, count: int, first: int, last: int) -> Array:
        return array[at + first * count * n : at + last * count * n].reshape(last - first, count, n)

    values = np.zeros((INPUTS, values_of_row, n), out.dtype)
    values[above:TAPS] = rows(upper, upper_at, values_of_row, above, TAPS)
    values[TAPS : INPUTS - below] = rows(lower, lower_at, values_of_row, 0, INPUTS - below - TAPS)
    factors = rows(taps, taps_at, taps_of_row, 0, TAPS)
    with np.errstate(over="ignore", invalid="ignore"):
        for y in range(SPAN):
            met = range(max(0, above - y), min(TAPS, INPUTS - below - y))
            total = sum(np.array(transform.multiply(list(values[y + r]), list(factors[r]))) for r in met)
            there = rows(out, out_at, values_of_row, y, y + 1)[0]
            there[...] = there + total if adds else total


def _write_interpolate_tile(tile: Any, dtype: Any, transform: Transform) -> None:
    b = ir.IRBuilder(tile.append_basic_block("entry"))
    w = Words(b, dtype)
    source, start, floor, out, out_row, out_step, columns, rows, streams = tile.args
    out_row, out_step = b.mul(out_row, I64(w.size)), b.mul(out_step, I64(w.size))
    begin, least = w.load(start, w.vector), w.splat(w.load(floor, w.scalar))
    with cgutils.for_range(b, rows) as row:
        here = b.add(source, b.mul(row.index, I64(transform.values * w.bytes)))
        there = b.add(out, b.mul(row.index, out_row))
        products = [w.load(b.add(here, I64(k * w.bytes)), w.vector) for k in range(transform.values)]
        products[0] = b.fadd(products[0], begin)  # which is a term of all outputs
        results = [w.at_least(value, least) for value in _apply(w, transform.interpolate, products)]
        places = [b.add(there, b.mul(out_step, I64(n))) for n in range(transform.span)]
        for store in w.stores([there, out_step], streams):
            with b.if_else(b.icmp_signed(">=", columns, I64(transform.span))) as (all_, some):
                with all_:
                    for result, place in zip(results, places, strict=True):
                        store(result, place)
                with some:
                    for n, (result, place) in enumerate(zip(results, places, strict=True)):
                        with b.if_then(b.icmp_signed(">", columns, I64(n))):
                            store(result, place)
    b.ret_void()


def _call_interpolate(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = "source+source_at start+start_at start+floor_at out+out_at out_row out_step columns rows streams"
    dtype, w, passed = passed_arguments(context, builder, named, names)
    calls = []
    for points, transform in TRANSFORMS.items():
        tile, new = private_function(builder.module, f"interpolate_{w.suffix}_{points}", len(passed))
        if new:
            _write_interpolate_tile(tile, dtype, transform)
        calls.append((equal(builder, named, {"points": points}), tile))
    call_first(builder, calls, passed)


def _interpolate_twin(
    points: int, source: Array, source_at: int, start: Array, start_at: int, floor_at: int, out: Array, out_at: int, out_row: int,
    out_step: int, columns: int, rows: int, streams: int,
) -> None:  # fmt: skip
    """The tile that interpolates in plain Python."""
    n, transform = lanes(out.itemsize), TRANSFORMS[points]
    values = transform.values * n
    for row in range(rows):
        at = source_at + row * values
        with np.errstate(over="ignore", invalid="ignore"):
            products = list(source[at : at + values].reshape(-1, n))
            products[0] = products[0] + start[start_at : start_at + n]
            for k, result in enumerate(transform.interpolate(products, _multiply_add_arrays)[:columns]):
                to = out_at + row * out_row + k * out_step
                out[to : to + n] = np.where(result < start[floor_at], start[floor_at], result)


evaluate_tile = _evaluate_tile("evaluate", OF_INPUTS)
"""The values of rows of inputs, 13 or, of a transform of 16, 20.

Parameters
----------
points : int
    Those of the transform: 12, 10 or 16.
source, source_at, source_row, source_step : flat array, offset and distances
    The first input, and the distances of rows and of inputs.
first, last : int
    Inputs from ``first`` up to ``last`` - 1 exist; the others are 0, and are not read.  So are those that transforms
    of 10 and 16 leave out.
out, out_at : flat array and offset
    Where the values go: 13, 10 or 18 vectors for each row.
rows : int
    Rows; there may be none.
"""

evaluate_taps_tile = _evaluate_tile("evaluate_taps", OF_TAPS)
"""The 18, 14 or 25 values of rows of 7 taps; the parameters are those of `evaluate_tile`."""

multiply_tile = _multiply_twin if config.DISABLE_JIT else tile_intrinsic(MULTIPLY, _call_multiply)
"""Products of values, seven rows of them: out[y] = the sum over r < 7 of taps[r] * values[y + r].

Parameters
----------
points : int
    Those of the transform: 12, 10 or 16.
above, below : int
    So many of the 13 rows of values are none, in front and behind: 0, or 3.  They are not read.
adds : int
    1, if the sums are added to what is there, or 0.
upper, upper_at, lower, lower_at : flat arrays and offsets
    The first seven rows of values, and those behind.
taps, taps_at : flat array and offset
    The values of the taps.
fetched, fetched_at, fetched_row, fetched_step : flat array, offset and distances
    Rows of pixels, as many as outputs, of which FETCHED_LINES lines each are brought into the second-level cache meanwhile; they
    need not exist.
fetches : int
    Rows of these; there may be none.
ends, ends_at, ends_row, ends_step, ends_rows : flat array, offset, distances and int
    The same of rows of pixels of which a line is to be written to, and is brought into the first-level cache.
out, out_at : flat array and offset
    Where the products go; that may be the place of the upper values.
"""

interpolate_tile = _interpolate_twin if config.DISABLE_JIT else tile_intrinsic(INTERPOLATE, _call_interpolate)
"""The first ``columns`` outputs of rows of products.

Parameters
----------
points : int
    Those of the transform: 12, 10 or 16.
source, source_at : flat array and offset
    The products: 13, 10 or 18 vectors for each row.
start, start_at, floor_at : flat array and offsets
    A vector that is added to all, and a number: what is less becomes that.
out, out_at, out_row, out_step : flat array, offset and distances
    Where the outputs go, and the distances of rows and of outputs.
columns, rows : int
    Outputs of a row, at most 7, or 14 of a transform of 16, and rows.
streams : int
    If not 0, outputs go to memory past the caches, where they can.
"""
