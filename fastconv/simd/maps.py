"""Linear maps of a few vectors: small constant matrices, applied along the rows or the columns of many tiles.

A map reads its inputs ``source_step`` apart, multiplies their vector with a matrix that is part of the code, and writes its
outputs ``target_step`` apart; it does so ``count`` times.  Maps of planes do so along columns and then along rows.

The matrices are those of `fastconv.cook_toom`.  Where two rows differ in the signs of some terms only, as those of the points p
and -p do, both are the sum and the difference of two shorter sums; columns alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..cook_toom import FILTERS, KERNELS
from .words import I64, Array, Words, address_of, call_first, equal, lanes, private_function, tile_intrinsic

__all__ = ["gradient_map", "input_map", "output_map", "weight_gradient_map", "weight_map"]

Map = tuple[Array, Sequence[int], Sequence[int]]
"""A matrix, and where its inputs and its outputs lie."""

Maps = dict[tuple[int, int, int], Map]
"""Maps by the rows and columns of their matrices and the stride of their filters; the most frequent first."""

Planes = dict[int, tuple[Array, Array]]
"""Matrices for columns and for rows, by the number of a kernel."""

PLAIN = tuple(dict.fromkeys((*FILTERS, *(filter_.longest for filter_ in FILTERS))))
"""All filters, and those of stride 1 that the transforms of the others' outputs are those of."""

TILES = [(filter_, m, filter_.stride * m + filter_.more) for filter_ in PLAIN for m in range(filter_.tile, 0, -1)]
"""A filter, the outputs of a tile and its values."""

INPUT: Maps = {(n, n, f.stride): (f.input_matrix(m), range(n), f.slots(m)) for f, m, n in TILES}
OUTPUT: Maps = {(f.stride * m, n, f.stride): (f.pixel_matrix(m), f.slots(m), range(f.stride * m)) for f, m, n in TILES}
GRADIENT: Maps = {
    (n, m, 1): (matrix.T, outputs, inputs)
    for (m, n, stride), (matrix, inputs, outputs) in OUTPUT.items()
    if stride == 1
}
WEIGHT: Planes = {
    kernel: (down.weight_matrix(), across.weight_matrix()) for kernel, (down, across) in enumerate(KERNELS)
}
WEIGHT_GRADIENT: Planes = {kernel: (down.T, across.T) for kernel, (down, across) in WEIGHT.items()}

PLANE_NAMES = (
    "kernel, source, source_at, source_row, source_step, source_next, target, target_at, target_row, target_step, "
    "target_next, count"
)

NAMES = "rows, columns, stride, source, source_at, source_step, source_next, target, target_at, target_step, target_next, count"

STARTS = "start, start_at, floor_at, streams"

FETCHES = "fetched, fetched_at, fetched_row, fetched_next, fetches"

OFFSETS = {
    "source_at": "source",
    "target_at": "target",
    "start_at": "start",
    "floor_at": "start",
    "fetched_at": "fetched",
}
"""Offsets, and the arrays that they are of."""


def _mirrored(matrix: Array) -> tuple[int, int] | None:
    """Find two rows that differ in the signs of some terms."""
    for first, second in itertools.combinations(range(len(matrix)), 2):
        a, b = matrix[first], matrix[second]
        if np.allclose(abs(a), abs(b), rtol=1e-12, atol=0) and not np.allclose(a, b) and not np.allclose(a, -b):
            return first, second
    return None


def _blocks(matrix: Array) -> list[tuple[list[int], list[int]]]:
    """Find the blocks of a matrix, as their rows and columns: those of phases, which do not share registers then.

    >>> _blocks(np.array([[1, 0, 2], [0, 3, 0]]))
    [([0], [0, 2]), ([1], [1])]
    """
    blocks: list[tuple[list[int], list[int]]] = []
    for row in range(len(matrix)):
        rows, columns = [row], set(np.flatnonzero(matrix[row]).tolist())
        for block in [block for block in blocks if columns & set(block[1])]:
            blocks.remove(block)
            rows, columns = block[0] + rows, columns | set(block[1])
        blocks.append((sorted(rows), sorted(columns)))
    return blocks


def _multiply(w: Words, matrix: Array, values: list[Any]) -> list[Any]:
    """Emit the product of a matrix with a vector of vectors."""
    if (pair := _mirrored(matrix.T)) is not None:
        first, second = pair
        same = np.isclose(matrix[:, first], matrix[:, second])
        both = [w.b.fadd(values[first], values[second]), w.b.fsub(values[first], values[second])]
        rest = [j for j in range(len(values)) if j not in pair]
        columns = [np.where(same, matrix[:, first], 0), np.where(same, 0, matrix[:, first])]
        return _multiply(w, np.column_stack([matrix[:, rest], *columns]), [*(values[j] for j in rest), *both])
    results: list[Any] = [None] * len(matrix)
    left = list(range(len(matrix)))
    while (pair := _mirrored(matrix[left])) is not None:
        first, second = (left[n] for n in pair)
        same = np.isclose(matrix[first], matrix[second])
        even, odd = (_sum(w, np.where(chosen, matrix[first], 0), values) for chosen in (same, ~same))
        results[first], results[second] = w.b.fadd(even, odd), w.b.fsub(even, odd)
        left = [row for row in left if row not in (first, second)]
    for row in left:
        results[row] = _sum(w, matrix[row], values)
    return results


def _sum(w: Words, factors: Array, values: list[Any]) -> Any:
    """Emit a sum of products, which begins with a factor of 1, if there is one."""
    terms = [(factor, value) for factor, value in zip(factors, values, strict=True) if factor]
    terms.sort(key=lambda term: term[0] != 1)
    (factor, total), *rest = terms
    if factor != 1:
        total = w.b.fmul(total, w.constant(factor))
    for factor, value in rest:
        total = w.b.fadd(total, value) if factor == 1 else w.multiply_add(value, w.constant(factor), total)
    return total


def _write_map(function: Any, dtype: Any, map_: Map, starts: bool) -> None:
    """Emit a map.

    If it ``starts``, a vector is added to all outputs, and what is less than a number becomes that; if it does not, each turn has
    some lines of memory brought into the second-level cache, too.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, source_next, target, target_step, target_next, count, *more = function.args
    source_step, source_next, target_step, target_next = (
        b.mul(step, I64(w.size)) for step in (source_step, source_next, target_step, target_next)
    )
    matrix, inputs, outputs = map_
    if starts:
        start, floor, streams = w.load(more[0], w.vector), w.splat(w.load(more[1], w.scalar)), more[2]
    else:
        fetched, fetched_row, fetched_next, fetches = more
        fetched_row, fetched_next = (b.mul(step, I64(w.size)) for step in (fetched_row, fetched_next))
    with cgutils.for_range(b, count) as turn:
        here, there = (b.add(a, b.mul(turn.index, n)) for a, n in ((source, source_next), (target, target_next)))
        if not starts:
            with cgutils.for_range(b, fetches) as row:
                w.prefetch(b.add(fetched, b.add(b.mul(turn.index, fetched_next), b.mul(row.index, fetched_row))))
        for rows, columns in _blocks(matrix):
            values = [w.load(b.add(here, b.mul(source_step, I64(inputs[j]))), w.vector) for j in columns]
            results = _multiply(w, matrix[np.ix_(rows, columns)], values)
            places = [b.add(there, b.mul(target_step, I64(outputs[i]))) for i in rows]
            if starts:
                results = [w.at_least(b.fadd(value, start), floor) for value in results]
            for store in w.stores([there, target_step], streams) if starts else (w.store,):
                for result, place in zip(results, places, strict=True):
                    store(result, place)
    b.ret_void()


def _map_twin(maps: Maps, starts: bool) -> Any:
    """Return the tile that applies a map in plain Python."""

    def twin(
        rows: int, columns: int, stride: int, source: Array, source_at: int, source_step: int, source_next: int,
        target: Array, target_at: int, target_step: int, target_next: int, count: int, *more: Any,
    ) -> None:  # fmt: skip
        matrix, inputs, outputs = maps[rows, columns, stride]
        lane = np.arange(lanes(source.itemsize))
        for turn in range(count):
            at = source_at + turn * source_next + np.array(inputs)[:, None] * source_step + lane
            to = target_at + turn * target_next + np.array(outputs)[:, None] * target_step + lane
            with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                result = matrix.astype(source.dtype) @ source[at]
                if starts:
                    start, start_at, floor_at, _ = more
                    result += start[start_at + lane]
                    result = np.where(result < start[floor_at], start[floor_at], result)
                target[to] = result

    return twin


def _map_tile(name: str, maps: Maps, starts: bool = False) -> Any:
    """Make a tile that applies the map whose matrix has so many rows and columns."""
    names = f"{NAMES}, {STARTS if starts else FETCHES}"

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        dtype = named["source"][0].dtype
        w = Words(builder, dtype)
        calls = []
        for key, map_ in maps.items():
            suffix = "_".join(map(str, key))
            function, new = private_function(builder.module, f"{name}_map_{w.suffix}_{suffix}", 10 if starts else 11)
            if new:
                _write_map(function, dtype, map_, starts)
            calls.append((equal(builder, named, dict(zip(("rows", "columns", "stride"), key, strict=True))), function))
        passed = []
        for argument in names.split(", "):
            if argument in OFFSETS:
                passed.append(w.at(address_of(context, builder, *named[OFFSETS[argument]]), named[argument][1]))
            elif argument not in ("rows", "columns", "stride", *OFFSETS.values()):
                passed.append(named[argument][1])
        call_first(builder, calls, passed)

    return _map_twin(maps, starts) if config.DISABLE_JIT else tile_intrinsic(names, codegen)


def _write_plane_map(function: Any, dtype: Any, down: Array, across: Array) -> None:
    """Emit a map of planes."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, target, *steps, count = function.args
    source_row, source_step, source_next, target_row, target_step, target_next = (b.mul(n, I64(w.size)) for n in steps)

    def place(first: Any, row: Any, step: Any, i: int, j: int) -> Any:
        return b.add(first, b.add(b.mul(row, I64(i)), b.mul(step, I64(j))))

    with cgutils.for_range(b, count) as turn:
        here, there = (b.add(a, b.mul(turn.index, n)) for a, n in ((source, source_next), (target, target_next)))
        columns = []
        for j in range(across.shape[1]):
            places = (place(here, source_row, source_step, i, j) for i in range(down.shape[1]))
            columns.append(_multiply(w, down, [w.load(at, w.vector) for at in places]))
        for i, row in enumerate(zip(*columns, strict=True)):
            for j, value in enumerate(_multiply(w, across, list(row))):
                w.store(value, place(there, target_row, target_step, i, j))
    b.ret_void()


def _plane_twin(planes: Planes) -> Any:
    """Return the tile that applies a map of planes in plain Python."""

    def twin(
        kernel: int, source: Array, source_at: int, source_row: int, source_step: int, source_next: int, target: Array,
        target_at: int, target_row: int, target_step: int, target_next: int, count: int,
    ) -> None:  # fmt: skip
        columns, rows = (matrix.astype(source.dtype) for matrix in planes[kernel])
        lane = np.arange(lanes(source.itemsize))
        for turn in range(count):
            at, to = (
                first + np.arange(m)[:, None, None] * row + np.arange(n)[:, None] * step + lane
                for first, row, step, m, n in (
                    (source_at + turn * source_next, source_row, source_step, columns.shape[1], rows.shape[1]),
                    (target_at + turn * target_next, target_row, target_step, columns.shape[0], rows.shape[0]),
                )
            )
            with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                target[to] = np.einsum("ai,ijl,bj->abl", columns, source[at], rows)

    return twin


def _plane_tile(name: str, planes: Planes) -> Any:
    """Make a tile that applies the map of planes for a kernel."""

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        dtype = named["source"][0].dtype
        w = Words(builder, dtype)
        calls = []
        for kernel, matrices in planes.items():
            function, new = private_function(builder.module, f"{name}_plane_{w.suffix}_{kernel}", 9)
            if new:
                _write_plane_map(function, dtype, *matrices)
            calls.append((equal(builder, named, {"kernel": kernel}), function))
        passed = [
            w.at(address_of(context, builder, *named[array]), named[f"{array}_at"][1]) for array in ("source", "target")
        ]
        steps = [f"{array}_{step}" for array in ("source", "target") for step in ("row", "step", "next")]
        call_first(builder, calls, [*passed, *(named[step][1] for step in (*steps, "count"))])

    return _plane_twin(planes) if config.DISABLE_JIT else tile_intrinsic(PLANE_NAMES, codegen)


input_map = _map_tile("input", INPUT)
"""B^T: the inputs of a tile, at the points that it uses.

Parameters
----------
rows, columns : int
    Of the matrix; here both are the inputs, those of a tile of `fastconv.cook_toom`.
stride : int
    Of the filter; the values of its phases lie one behind the other.
source, source_at, source_step, source_next : flat array, offset and distances
    The first input, and the distances of inputs and of turns.
target, target_at, target_step, target_next : flat array, offset and distances
    The same of the outputs; that of a point lies so many steps from the first's as the point's number says.
count : int
    Turns; there may be none.
fetched, fetched_at, fetched_row, fetched_next : flat array, offset and distances
    What each turn has brought into the second-level cache, for later: the first of its lines, and the distances of lines and of
    turns.  It need not exist.
fetches : int
    Lines of a turn; there may be none.
"""

output_map = _map_tile("output", OUTPUT, starts=True)
"""A^T, and a vector is added: the outputs of a tile (rows), from what the points of its inputs (columns) have, or, with a stride,
neighbouring pixels from the values of all phases; ``start`` holds the vector at ``start_at``, and at ``floor_at`` a number: what
is less becomes that.  If ``streams`` is not 0, outputs go to memory past the caches, where they can."""

gradient_map = _map_tile("gradient", GRADIENT)
"""A: the gradients of a tile's outputs (columns), at the points of its inputs (rows); the stride is 1."""

weight_map = _plane_tile("weight", WEIGHT)
"""G along columns and rows: the taps of kernels, at all points.

Parameters
----------
kernel : int
    Number of the kernel in `fastconv.cook_toom.KERNELS`.
source, source_at, source_row, source_step, source_next : flat array, offset and distances
    The first tap, and the distances of rows, of columns and of turns.
target, target_at, target_row, target_step, target_next : flat array, offset and distances
    The same of the values.
count : int
    Turns; there may be none.
"""

weight_gradient_map = _plane_tile("weight_gradient", WEIGHT_GRADIENT)
"""G^T along columns and rows: the gradients of the taps (target), from those of all points (source)."""
