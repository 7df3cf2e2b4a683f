"""The transposing tiles: as many rows as lanes, turned into as many columns."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from .words import I32, I64, LINE, Array, Words, address_of, lanes, line_parts, private_function, tile_intrinsic

__all__ = [
    "gather_tile",
    "scatter_edge_tile",
    "scatter_tile",
    "transpose_edge_tile",
    "transpose_lines_tile",
    "transpose_tile",
]


SQUARES_AHEAD = 4
"""Squares between fetching numbers from memory and turning them over: rows are too many for a machine to foresee each."""


def _write_transpose_tile(function: Any, dtype: Any, kind: str) -> None:
    """Emit transposes of ``squares`` times lanes x lanes numbers, each in log2(lanes) rounds.

    In a round, blocks of ``size`` x ``size`` numbers change places with their neighbours across the diagonal.  An edge has fewer
    than lanes ``rows``, of ``kept`` numbers in all.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, table, squares, kept, height = function.args
    n, parts = w.lanes, LINE // w.bytes if kind == "lines" else 1
    tabled, edge = kind in ("scatter", "gather", "scatter_edge"), kind in ("edge", "scatter_edge")
    source_step, target_step = b.mul(source_step, I64(w.size)), b.mul(target_step, I64(w.size))
    # Where rows are short, the next rows are fetched instead, as many as these.
    is_short = b.icmp_signed("<=", squares, I64(SQUARES_AHEAD))
    ahead = b.select(is_short, b.mul(source_step, I64(n)), I64(SQUARES_AHEAD * n * w.size))
    held = [[w.variable(w.vector) for _ in range(n)] for _ in range(parts)]
    with cgutils.for_range(b, squares) as square:
        first = b.mul(square.index, I64(n))
        # Rows lie a step apart; or, on one side, where the table says.
        used = b.sub(kept, first) if edge else kept
        inside = [b.select(b.icmp_signed("<", I64(m), used), I64(m), I64(0)) for m in range(n)]
        spread = [w.load(w.at(table, b.add(first, m), 8), I64) for m in inside] if tabled else []
        here = w.at(source, I64(0) if kind == "gather" else first)
        there = w.at(target, first) if kind == "gather" else target
        for part in range(parts):
            rows, at = [], b.add(here, b.mul(I64(part * n), source_step))
            for m in range(n):
                if edge:
                    rows.append(w.load_some(at, w.before_lane(used)))
                else:
                    rows.append(
                        w.load(b.add(here, b.mul(spread[m], source_step)) if kind == "gather" else at, w.vector)
                    )
                if kind != "gather":
                    w.prefetch(b.add(at, ahead))
                next_row = b.add(at, source_step)
                at = b.select(b.icmp_signed("<", I64(m + 1), height), next_row, at) if edge else next_row
            for m, value in enumerate(_turned(w, rows)):
                b.store(value, held[part][m])
        if not tabled:
            there = b.add(there, b.mul(first, target_step))
        for store in w.stores([there, target_step], I64(1), parts) if kind == "lines" else (w.store,):
            for m in range(n):
                place = b.add(there, b.mul(spread[m] if tabled and kind != "gather" else I64(m), target_step))
                with contextlib.ExitStack() as stack:
                    if (edge or kind == "scatter") and m:
                        stack.enter_context(b.if_then(b.icmp_signed("<", I64(m), used), likely=True))
                    for part in range(parts):
                        value = b.load(held[part][m])
                        if edge:
                            w.store_some(value, place, w.before_lane(height))
                        else:
                            store(value, b.add(place, I64(part * w.bytes)))
    b.ret_void()


def _turned(w: Words, rows: list[Any]) -> list[Any]:
    """Emit the transpose of a square of numbers."""
    n, size = w.lanes, w.lanes // 2
    while size:
        upper = ir.Constant(ir.VectorType(I32, n), [n + i - size if i & size else i for i in range(n)])
        lower = ir.Constant(ir.VectorType(I32, n), [n + i if i & size else i + size for i in range(n)])
        for m in range(n):
            if not m & size:
                pair = rows[m], rows[m + size]
                rows[m], rows[m + size] = w.b.shuffle_vector(*pair, upper), w.b.shuffle_vector(*pair, lower)
        size //= 2
    return rows


GIVEN = "source, source_at, source_step, target, target_at, target_step, squares"

NAMES = {
    "plain": GIVEN,
    "lines": GIVEN,
    "scatter": f"{GIVEN}, table, table_at, kept",
    "gather": f"{GIVEN}, table, table_at",
    "edge": f"{GIVEN}, kept, rows",
    "scatter_edge": f"{GIVEN}, table, table_at, kept, rows",
}
"""What each kind of tile is given."""


def _transpose_twin(kind: str) -> Any:
    """Return the transposing tile in plain Python."""

    def tile(
        source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, squares: int,
        *more: Any,
    ) -> None:  # fmt: skip
        n = lanes(source.itemsize)
        given = dict(zip(NAMES[kind].split(", ")[7:], more, strict=True))
        size, rows = squares * n, given.get("rows", n * line_parts() if kind == "lines" else n)
        table, first = given.get("table", np.arange(size)), given.get("table_at", 0)
        for k in range(size):
            if (k if "rows" in given else k % n) >= given.get("kept", n):
                continue
            row = table[first + k]
            for m in range(rows):
                if kind == "gather":
                    target[target_at + m * target_step + k] = source[source_at + row * source_step + m]
                else:
                    target[target_at + row * target_step + m] = source[source_at + m * source_step + k]

    return tile


def _transpose_tile(kind: str) -> Any:
    """Return the transposing tile as an intrinsic."""

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        dtype = named["source"][0].dtype
        w = Words(builder, dtype)
        function, new = private_function(builder.module, f"{kind}_tile_{w.suffix}", 8)
        if new:
            _write_transpose_tile(function, dtype, kind)

        def address(name: str, size: int = 0) -> Any:
            return w.at(address_of(context, builder, *named[name]), named[f"{name}_at"][1], size)

        def number(name: str, without: int) -> Any:
            return named[name][1] if name in named else I64(without)

        table = address("table", 8) if "table" in named else I64(0)
        numbers = named["squares"][1], number("kept", w.lanes), number("rows", w.lanes)
        source, target = ((address(name), named[f"{name}_step"][1]) for name in ("source", "target"))
        builder.call(function, [*source, *target, table, *numbers])

    return tile_intrinsic(NAMES[kind], codegen)


_transposing = _transpose_twin if config.DISABLE_JIT else _transpose_tile


transpose_tile = _transposing("plain")
"""``squares`` times lanes x lanes numbers, turned over: for m < lanes, k < squares*lanes,

    target[target_at + k*target_step + m] = source[source_at + m*source_step + k]
"""

transpose_lines_tile = _transposing("lines")
"""The same for as many m as fill a line of the cache, and these lines go to memory past the caches, where they can."""

scatter_tile = _transposing("scatter")
"""The same, but to rows that a table names, and only the first ``kept`` of each square: for m < lanes, k < squares*lanes,

    target[target_at + table[table_at + k]*target_step + m] = source[source_at + m*source_step + k]    if k % lanes < kept
"""

transpose_edge_tile = _transposing("edge")
"""The edges: for m < rows, which are at most lanes, and k < kept, which end in the last of the squares,

    target[target_at + k*target_step + m] = source[source_at + m*source_step + k]
"""

scatter_edge_tile = _transposing("scatter_edge")
"""The same, but to rows that a table names."""

gather_tile = _transposing("gather")
"""The way back, where all are kept: for m < squares*lanes, k < lanes,

    target[target_at + k*target_step + m] = source[source_at + table[table_at + m]*source_step + k]
"""
