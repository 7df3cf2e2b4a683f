"""Copying and clearing."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import VECTORS
from .words import I64, Array, Words, address_of, lanes, private_function

__all__ = ["clear", "copy", "copy_tile"]


def _write_copy_tile(function: Any, dtype: Any) -> None:
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step, rows, vectors = function.args
    for n in range(1, VECTORS + 1):
        with b.if_then(b.icmp_signed("==", vectors, I64(n))), cgutils.for_range(b, rows) as row:
            here, there = w.at(source, b.mul(row.index, source_step)), w.at(target, b.mul(row.index, target_step))
            parts = [I64(w.size * w.lanes * v) for v in range(n)]
            for part, value in [(part, w.load(b.add(here, part), w.vector)) for part in parts]:
                w.store(value, b.add(there, part))
    b.ret_void()


def _copy_tile_twin(
    source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int, rows: int, vectors: int
) -> None:  # fmt: skip
    """The copying tile in plain Python."""
    width = vectors * lanes(source.itemsize)
    for row in range(rows):
        here, there = source_at + row * source_step, target_at + row * target_step
        target[there : there + width] = source[here : here + width]


@intrinsic
def _copy_tile_intrinsic(  # type: ignore[no-untyped-def]
    typingctx, source, source_at, source_step, target, target_at, target_step, rows, vectors
):  # fmt: skip
    signature = types.void(source, types.intp, types.intp, target, types.intp, types.intp, types.intp, types.intp)
    dtype = source.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        function, new = private_function(builder.module, f"copy_tile_{w.suffix}", 6)
        if new:
            _write_copy_tile(function, dtype)
        first = w.at(address_of(context, builder, signature.args[0], args[0]), args[1])
        second = w.at(address_of(context, builder, signature.args[3], args[3]), args[4])
        builder.call(function, [first, args[2], second, args[5], args[6], args[7]])
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

clear = _clear_twin if config.DISABLE_JIT else _clear_intrinsic
"""target[k] = 0 for first <= k < last; last is not less than first."""


copy = _copy_twin if config.DISABLE_JIT else _copy_intrinsic
"""target[target_at + k] = source[source_at + k] for k < count, which is not negative."""
