"""Copying and clearing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import VECTORS
from .words import I32, I64, Array, Words, address_of, lanes, private_function, tile_intrinsic

__all__ = ["FETCH_AHEAD", "clear", "copy", "copy_tile", "narrow_tile", "pad_tile", "take_tile"]

FETCH_AHEAD = 1024
"""Bytes between what is copied of rows and what is brought into the cache meanwhile: machines foresee no more than a page."""


def _write_copy_tile(function: Any, dtype: Any) -> None:
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, rows, vectors, streams = function.args
    for n in range(1, VECTORS + 1):
        with b.if_then(b.icmp_signed("==", vectors, I64(n))), cgutils.for_range(b, rows) as row:
            here, there = w.at(source, b.mul(row.index, source_step)), w.at(target, b.mul(row.index, target_step))
            parts = [I64(w.bytes * v) for v in range(n)]
            values = [w.load(b.add(here, part), w.vector) for part in parts]
            for store in w.stores([there], streams, n):
                for part, value in zip(parts, values, strict=True):
                    store(value, b.add(there, part))
    b.ret_void()


def _copy_tile_twin(
    source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, rows: int, vectors: int,
    streams: int,
) -> None:  # fmt: skip
    """The copying tile in plain Python."""
    width = vectors * lanes(source.itemsize)
    for row in range(rows):
        here, there = source_at + row * source_step, target_at + row * target_step
        target[there : there + width] = source[here : here + width]


def _write_take_tile(function: Any, dtype: Any, step: int) -> None:
    """Emit the taking of each number, or every second one, by the widest vectors that a row fills: the last of a row overlaps."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, rows, count, *ahead = function.args
    widths = [w.lanes >> k for k in range(w.lanes.bit_length())]
    with cgutils.for_range(b, rows) as row:
        here, there = w.at(source, b.mul(row.index, source_step)), w.at(target, b.mul(row.index, target_step))
        for width in widths:
            fits = b.icmp_signed(">=", count, I64(width))
            this = fits if width == w.lanes else b.and_(fits, b.icmp_signed("<", count, I64(2 * width)))
            with b.if_then(this), cgutils.for_range_slice(b, I64(0), count, I64(width)) as (k, _):
                last = b.sub(count, I64(width))
                at = b.select(b.icmp_signed("<", k, last), k, last)
                first, kind = w.at(here, b.mul(at, I64(step))), ir.VectorType(w.scalar, width)
                for place in (w.at(first, distance) for distance in ahead):
                    for part in range(step):
                        w.prefetch(b.add(place, I64(w.size * width * part)))
                value = w.load(first, kind)
                # The second vector begins one earlier than it could: no number behind the last is read.
                if width > 1 and step == 2:
                    second = w.load(b.add(first, I64(w.size * (width - 1))), kind)
                    even = ir.Constant(ir.VectorType(I32, width), [2 * i + (2 * i >= width) for i in range(width)])
                    value = b.shuffle_vector(value, second, even)
                w.store(value, w.at(there, at))
    b.ret_void()


def _take_tile_twin(
    step: int, source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, rows: int,
    count: int, ahead: int = 0,
) -> None:  # fmt: skip
    """The taking tile in plain Python."""
    for row in range(rows):
        here, there = source_at + row * source_step, target_at + row * target_step
        target[there : there + count] = source[here : here + step * (count - 1) + 1 : step]


def _make_take_tile(name: str, step: int, rest: str) -> Any:
    """Make the tile, or its twin, that takes each number or every second one."""
    if config.DISABLE_JIT:
        return functools.partial(_take_tile_twin, step)
    return _rows_tile(name, functools.partial(_write_take_tile, step=step), rest)


def _rows_tile(name: str, write: Callable[..., None], rest: str) -> Any:
    """Make a tile that copies ``rows``, which is told the ``rest``, too."""
    names = f"source, source_at, source_step, target, target_at, target_step, {rest}"

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        dtype = named["source"][0].dtype
        w = Words(builder, dtype)
        more = [named[key][1] for key in rest.split(", ")]
        function, new = private_function(builder.module, f"{name}_{w.suffix}", 4 + len(more))
        if new:
            write(function, dtype)
        first, second = (
            w.at(address_of(context, builder, *named[key]), named[f"{key}_at"][1]) for key in ("source", "target")
        )
        builder.call(function, [first, named["source_step"][1], second, named["target_step"][1], *more])

    return tile_intrinsic(names, codegen)


def _write_pad_tile(function: Any, dtype: Any) -> None:
    """Emit the copying of rows up to whole vectors."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, rows, count = function.args
    whole = b.sdiv(b.sub(count, I64(1)), I64(w.lanes))
    last, exist = b.mul(whole, I64(w.bytes)), w.before_lane(b.sub(count, b.mul(whole, I64(w.lanes))))
    with cgutils.for_range(b, rows) as row:
        here, there = w.at(source, b.mul(row.index, source_step)), w.at(target, b.mul(row.index, target_step))
        with cgutils.for_range(b, whole) as vector:
            at = b.mul(vector.index, I64(w.bytes))
            w.prefetch(b.add(b.add(here, at), I64(FETCH_AHEAD)))
            w.store(w.load(b.add(here, at), w.vector), b.add(there, at))
        w.store(w.load_some(b.add(here, last), exist), b.add(there, last))
    b.ret_void()


def _pad_tile_twin(
    source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, rows: int, count: int
) -> None:  # fmt: skip
    """The padding tile in plain Python."""
    n = lanes(source.itemsize)
    for row in range(rows):
        here, there = source_at + row * source_step, target_at + row * target_step
        target[there : there + -(-count // n) * n] = 0
        target[there : there + count] = source[here : here + count]


@intrinsic
def _copy_tile_intrinsic(  # type: ignore[no-untyped-def]
    typingctx, source, source_at, source_step, target, target_at, target_step, rows, vectors, streams
):  # fmt: skip
    signature = types.void(source, types.intp, types.intp, target, *[types.intp] * 5)
    dtype = source.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        function, new = private_function(builder.module, f"copy_tile_{w.suffix}", 7)
        if new:
            _write_copy_tile(function, dtype)
        first = w.at(address_of(context, builder, signature.args[0], args[0]), args[1])
        second = w.at(address_of(context, builder, signature.args[3], args[3]), args[4])
        builder.call(function, [first, args[2], second, *args[5:]])
        return context.get_dummy_value()

    return signature, codegen


def _clear_twin(target: Array, first: int, last: int) -> None:
    """Clear in plain Python."""
    target[first:last] = 0


@intrinsic
def _clear_intrinsic(typingctx, target, first, last):  # type: ignore[no-untyped-def]
    signature = types.void(target, types.intp, types.intp)
    dtype = target.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        begin, end = (w.at(address_of(context, builder, signature.args[0], args[0]), at) for at in args[1:])
        with builder.if_then(builder.icmp_signed("<", begin, end)):  # calls of nothing take their time, too
            cgutils.memset(builder, builder.inttoptr(begin, ir.IntType(8).as_pointer()), builder.sub(end, begin), 0)
        return context.get_dummy_value()

    return signature, codegen


def _copy_twin(source: Array, source_at: int, target: Array, target_at: int, count: int) -> None:
    """Copy in plain Python."""
    target[target_at : target_at + count] = source[source_at : source_at + count]


@intrinsic
def _copy_intrinsic(typingctx, source, source_at, target, target_at, count):  # type: ignore[no-untyped-def]
    signature = types.void(source, types.intp, target, types.intp, types.intp)
    dtype = source.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        here = w.at(address_of(context, builder, signature.args[0], args[0]), args[1])
        there = w.at(address_of(context, builder, signature.args[2], args[2]), args[3])
        byte = ir.IntType(8).as_pointer()
        here, there = builder.inttoptr(here, byte), builder.inttoptr(there, byte)
        cgutils.raw_memcpy(builder, there, here, args[4], I64(w.size))
        return context.get_dummy_value()

    return signature, codegen


copy_tile = _copy_tile_twin if config.DISABLE_JIT else _copy_tile_intrinsic
"""``rows`` times ``vectors`` whole vectors, at most VECTORS:

    target[target_at + row*target_step + k] = source[source_at + row*source_step + k]
"""

narrow_tile = _make_take_tile("narrow_tile", 1, "rows, count")
"""``rows`` times ``count`` numbers, for count > 0, by which `copy_tile` is quicker where they fill several vectors:

    target[target_at + row*target_step + k] = source[source_at + row*source_step + k]
"""

take_tile = _make_take_tile("take_tile", 2, "rows, count, ahead")
"""``rows`` times every second of 2*count - 1 numbers, for count > 0:

    target[target_at + row*target_step + k] = source[source_at + row*source_step + 2*k]

What lies ``ahead`` of these in memory is fetched.
"""

pad_tile = _pad_tile_twin if config.DISABLE_JIT else _rows_tile("pad_tile", _write_pad_tile, "rows, count")
"""``rows`` times ``count`` numbers, at least one, and zeros up to whole vectors:

    target[target_at + row*target_step + k] = source[source_at + row*source_step + k]
"""


clear = _clear_twin if config.DISABLE_JIT else _clear_intrinsic
"""target[k] = 0 for first <= k < last; last is not less than first."""


copy = _copy_twin if config.DISABLE_JIT else _copy_intrinsic
"""target[target_at + k] = source[source_at + k] for k < count, which is not negative."""
