"""The transposing tiles: as many rows as lanes, turned into as many columns."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .words import I32, I64, Array, Words, address_of, lanes, private_function

__all__ = ["gather_tile", "scatter_tile", "transpose_tile"]


SQUARES_AHEAD = 4
"""Squares between fetching numbers from memory and turning them over: rows are too many for a machine to foresee each."""


def _write_transpose_tile(function: Any, dtype: Any, kind: str) -> None:
    """Emit transposes of ``squares`` times lanes x lanes numbers, each in log2(lanes) rounds.

    In a round, blocks of ``size`` x ``size`` numbers change places with their neighbours across the diagonal.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, table, squares, kept = function.args
    n = w.lanes
    source_step, target_step = b.mul(source_step, I64(w.size)), b.mul(target_step, I64(w.size))
    with cgutils.for_range(b, squares) as square:
        first = b.mul(square.index, I64(n))
        # Rows lie a step apart; or, on one side, where the table says.
        inside = [b.select(b.icmp_signed("<", I64(m), kept), I64(m), I64(0)) for m in range(n)]
        spread = [w.load(w.at(table, b.add(first, m), 8), I64) for m in inside] if kind != "plain" else []
        here = w.at(source, I64(0) if kind == "gather" else first)
        there = w.at(target, first) if kind == "gather" else target
        rows, at = [], here
        for m in range(n):
            rows.append(w.load(b.add(here, b.mul(spread[m], source_step)) if kind == "gather" else at, w.vector))
            if kind != "gather":
                w.prefetch(b.add(at, I64(SQUARES_AHEAD * n * w.size)))
            at = b.add(at, source_step)
        size = n // 2
        while size:
            upper = ir.Constant(ir.VectorType(I32, n), [n + i - size if i & size else i for i in range(n)])
            lower = ir.Constant(ir.VectorType(I32, n), [n + i if i & size else i + size for i in range(n)])
            for m in range(n):
                if not m & size:
                    pair = rows[m], rows[m + size]
                    rows[m], rows[m + size] = b.shuffle_vector(*pair, upper), b.shuffle_vector(*pair, lower)
            size //= 2
        at = b.add(there, b.mul(first, target_step)) if kind == "plain" else there
        for m, value in enumerate(rows):
            if kind == "scatter" and m:
                with b.if_then(b.icmp_signed("<", I64(m), kept), likely=True):
                    w.store(value, b.add(there, b.mul(spread[m], target_step)))
            else:
                w.store(value, b.add(there, b.mul(spread[m], target_step)) if kind == "scatter" else at)
            at = b.add(at, target_step)
    b.ret_void()


def _transpose_twin(kind: str) -> Any:
    """Return the transposing tile in plain Python."""

    def tile(
        source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, table: Array,
        table_at: int, squares: int, kept: int,
    ) -> None:  # fmt: skip
        n = lanes(source.itemsize)
        for square in range(0, squares * n, n):
            for m in range(n):
                for k in range(kept if kind == "scatter" else n):
                    if kind == "gather":
                        here, there = table[table_at + square + m] * source_step + k, k * target_step + square + m
                    else:
                        row = table[table_at + square + k] if kind == "scatter" else square + k
                        here, there = m * source_step + square + k, row * target_step + m
                    target[target_at + there] = source[source_at + here]

    return tile


def _transpose_tile(kind: str) -> Any:
    """Return the transposing tile as an intrinsic."""

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typingctx, source, source_at, source_step, target, target_at, target_step, table, table_at, squares, kept
    ):  # fmt: skip
        number = types.intp
        signature = types.void(source, number, number, target, number, number, table, number, number, number)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            w = Words(builder, kinds[0].dtype)
            function, new = private_function(builder.module, f"{kind}_tile_{w.suffix}", 7)
            if new:
                _write_transpose_tile(function, kinds[0].dtype, kind)
            here, there = (w.at(address_of(context, builder, kinds[n], args[n]), args[n + 1]) for n in (0, 3))
            rows = w.at(address_of(context, builder, kinds[6], args[6]), args[7], 8)
            builder.call(function, [here, args[2], there, args[5], rows, args[8], args[9]])
            return context.get_dummy_value()

        return signature, codegen

    return tile


_transposing = _transpose_twin if config.DISABLE_JIT else _transpose_tile


transpose_tile = _transposing("plain")
"""``squares`` times lanes x lanes numbers, turned over: for m < lanes, k < squares*lanes,

    target[target_at + k*target_step + m] = source[source_at + m*source_step + k]

The table is not read; all columns are kept, which is ``kept`` = lanes.
"""

scatter_tile = _transposing("scatter")
"""The same, but to rows that a table names, and only the first ``kept`` of each square: for m < lanes, k < squares*lanes,

    target[target_at + table[table_at + k]*target_step + m] = source[source_at + m*source_step + k]    if k % lanes < kept
"""

gather_tile = _transposing("gather")
"""The way back, where all are kept: for m < squares*lanes, k < lanes,

    target[target_at + k*target_step + m] = source[source_at + table[table_at + m]*source_step + k]
"""
