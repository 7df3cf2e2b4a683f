"""The peak tile: nothing but multiplications and additions in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from ..jit import VECTORS
from .words import I64, Array, Words, address_of, lanes, private_function

__all__ = ["ACCUMULATORS", "peak_tile"]

ACCUMULATORS = 24 if VECTORS >= 4 else 12
"""Sums of the peak tile, of 32 or 16 registers: two multiply-adds a cycle that take 4 or 5 cycles each need 8 to 10 of them."""


def _write_peak_tile(function: Any, dtype: Any) -> None:
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    numbers, count, out = function.args
    entry, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    # Each sum begins with another vector, or LLVM would see that all are the same and keep one.
    factor, *first = (w.load(b.add(numbers, I64(w.bytes * m)), w.vector) for m in range(ACCUMULATORS + 1))
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(I64)
    sums = [b.phi(w.vector) for _ in first]
    following = [b.add(k, I64(1)), *(w.multiply_add(value, factor, factor) for value in sums)]
    for phi, begin, after in zip((k, *sums), (I64(0), *first), following, strict=True):
        phi.add_incoming(begin, entry)
        phi.add_incoming(after, loop)
    b.cbranch(b.icmp_signed("<", following[0], count), loop, done)
    b.position_at_end(done)
    for m, value in enumerate(following[1:]):
        w.store(value, b.add(out, I64(w.bytes * m)))
    b.ret_void()


def _peak_tile_twin(numbers: Array, count: int, out: Array, out_at: int) -> None:
    """The peak tile in plain Python."""
    n = lanes(out.itemsize)
    factor, sums = numbers[:n], numbers[n:].copy().reshape(ACCUMULATORS, n)
    for _ in range(count):
        sums = sums * factor + factor
    out[out_at : out_at + sums.size] = sums.reshape(-1)


@intrinsic
def _peak_tile_intrinsic(typingctx, numbers, count, out, out_at):  # type: ignore[no-untyped-def]
    signature = types.void(numbers, types.intp, out, types.intp)
    dtype = numbers.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        function, new = private_function(builder.module, f"peak_tile_{w.suffix}", 3)
        if new:
            _write_peak_tile(function, dtype)
        source = address_of(context, builder, signature.args[0], args[0])
        target = w.at(address_of(context, builder, signature.args[2], args[2]), args[3])
        builder.call(function, [source, args[1], target])
        return context.get_dummy_value()

    return signature, codegen


peak_tile = _peak_tile_twin if config.DISABLE_JIT else _peak_tile_intrinsic
"""As many multiply-adds as a core can do: ``count`` times sum = sum*factor + factor, for ACCUMULATORS vectors at once.

Parameters
----------
numbers : flat array of (1 + ACCUMULATORS)*lanes
    The factor, then what the sums begin with: all different, so that none can be left out.
count : int
    At least 1.
out, out_at : flat array and offset
    Where the ACCUMULATORS*lanes sums go.
"""
