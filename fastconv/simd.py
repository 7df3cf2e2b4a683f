"""Vector words and register tiles: the only file that knows LLVM.

A tile is a matrix of accumulators that stay in vector registers over a whole sum.  It knows nothing of convolution: every
index map (stride, padding, dilation, groups, phases, dimension) lies in the offset tables that a driver gives it::

    for each a, b:  acc[m][v] += vectors[vector_at + vector_table[a] + b*vector_step + v*lanes ...]
                                 * scalars[places[m] + scalar_table[a] + b*scalar_step]
    at the end:     out[places[ROWS + m] + v*lanes ...] = acc[m][v]

m counts the tile's ROWS, v its vectors, and ``...`` stands for the lanes of a vector.  One load of a vector serves ROWS
multiplications, one load of a scalar as many as there are vectors.  Where channels do not mix, each lane has a factor of
its own, and the scalars become vectors.

Each tile has a twin in plain Python with the same signature, which takes its place under ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import ROWS, VECTOR_BYTES, VECTORS, shared

__all__ = ["ACCUMULATORS", "ROWS", "VECTORS", "lanes", "outer_tile", "peak_tile", "pointwise_tile", "transpose_tile"]

Array = np.ndarray[Any, Any]

I32, I64 = ir.IntType(32), ir.IntType(64)


@shared
def lanes(itemsize: int) -> int:
    """Count the numbers of this size in one vector."""
    return VECTOR_BYTES // itemsize


# ---------------------------------------------------------------------------------------------------------------------
# The vocabulary
# ---------------------------------------------------------------------------------------------------------------------


class Words:
    """Loads, stores and arithmetic on vectors of one dtype.  Addresses are int64 and count bytes."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.b = builder
        self.scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        self.size = dtype.bitwidth // 8
        self.lanes = lanes(self.size)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{dtype.bitwidth}"

    def load(self, address: Any, kind: Any) -> Any:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 8 if kind is I64 else self.size
        return value

    def store(self, value: Any, address: Any) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = self.size

    def store_first(self, values: list[Any], targets: list[Any], vectors: int, count: Any, adds: Any) -> None:
        """Store the first ``count`` numbers of each row of vectors one by one, or add them to what is there: for edges."""
        b, pitch = self.b, self.lanes * vectors
        room = cgutils.alloca_once(b, ir.ArrayType(self.scalar, self.lanes * len(values)))
        begin = b.ptrtoint(room, I64)
        with b.if_then(adds):  # all rows are read before any is written: they may repeat
            for m, target in enumerate(targets):
                with cgutils.for_range(b, count) as loop:
                    at = self.at(begin, b.add(loop.index, I64(m * pitch)))
                    self.store(self.load(self.at(target, loop.index), self.scalar), at)
        for v, value in enumerate(values):
            at = b.add(begin, I64(self.size * self.lanes * v))
            self.store(b.select(adds, b.fadd(self.load(at, self.vector), value), value), at)
        for m, target in enumerate(targets):
            with cgutils.for_range(b, count) as loop:
                at = self.at(begin, b.add(loop.index, I64(m * pitch)))
                self.store(self.load(at, self.scalar), self.at(target, loop.index))

    def splat(self, value: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.b.insert_element(undefined, value, I32(0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a*b + c, in one instruction where there is one."""
        function = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fmuladd.{self.suffix}"
        )
        return self.b.call(function, [a, b, c])

    def at(self, address: Any, index: Any) -> Any:
        """Address of an element, from that of the first."""
        return self.b.add(address, self.b.mul(index, I64(self.size)))


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return builder.ptrtoint(context.make_array(kind)(context, builder, array).data, I64)


def _private_function(module: Any, name: str, n_args: int) -> tuple[Any, bool]:
    """Return the LLVM function of this name, and whether it is new and has to be written.

    It is never inlined: inside a large driver the same tile lost a third of its speed to spilled registers.
    """
    if name in module.globals:
        return module.globals[name], False
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_args), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, True


# ---------------------------------------------------------------------------------------------------------------------
# The tiles that add products: vectors times scalars (outer), and vectors times vectors (pointwise)
# ---------------------------------------------------------------------------------------------------------------------


def _write_tile(function: Any, dtype: Any, vectors: int, splat: bool) -> None:
    """Emit the tile with this many vectors; what they are multiplied with are scalars (splat) or vectors.

    Registers on AVX2 (16): 6x2 accumulators, 2 vectors, 1 scalar; 8 loads for 12 multiplications.
    On AVX-512 (32): 6x4 accumulators, 4 vectors, 1 scalar; 10 loads for 24.  Six rows, because each row holds an address in a
    general register and there are 15 of those.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    (
        vector,
        vector_table,
        vector_step,
        scalar,
        scalar_table,
        scalar_step,
        many,
        count,
        places,
        out,
        start,
        add,
        valid,
    ) = function.args
    vector_bytes, scalar_bytes = (b.mul(step, I64(w.size)) for step in (vector_step, scalar_step))
    rows = [w.at(scalar, w.load(b.add(places, I64(8 * m)), I64)) for m in range(ROWS)]
    targets = [w.at(out, w.load(b.add(places, I64(8 * (ROWS + m))), I64)) for m in range(ROWS)]
    each = [(m, v) for m in range(ROWS) for v in range(vectors)]

    # Accumulators begin with the vectors at `start` (the bias), or with zero where the sums are to be added to `out`.
    fresh, outer, inner, next_outer, done = (
        b.append_basic_block(name) for name in ("fresh", "outer", "inner", "next", "done")
    )
    entry = b.block
    b.cbranch(b.icmp_signed("!=", add, I64(0)), outer, fresh)
    b.position_at_end(fresh)
    first = [w.load(b.add(start, I64(w.size * w.lanes * v)), w.vector) for v in range(vectors)]
    b.branch(outer)

    b.position_at_end(outer)
    a = b.phi(I64)
    a.add_incoming(I64(0), fresh)
    a.add_incoming(I64(0), entry)
    sums = [b.phi(w.vector) for _ in each]
    for total, (_, v) in zip(sums, each, strict=True):
        total.add_incoming(first[v], fresh)
        total.add_incoming(ir.Constant(w.vector, [0.0] * w.lanes), entry)
    here = w.at(vector, w.load(b.add(vector_table, b.mul(a, I64(8))), I64))
    shift = b.mul(w.load(b.add(scalar_table, b.mul(a, I64(8))), I64), I64(w.size))
    bases = [b.add(row, shift) for row in rows]
    b.branch(inner)

    b.position_at_end(inner)
    k, offset, panel = b.phi(I64), b.phi(I64), b.phi(I64)
    acc = [b.phi(w.vector) for _ in each]
    for value, begin in zip((k, offset, panel, *acc), (I64(0), I64(0), here, *sums), strict=True):
        value.add_incoming(begin, outer)
    columns = [w.load(b.add(panel, I64(w.size * w.lanes * v)), w.vector) for v in range(vectors)]
    new = []
    for m in range(ROWS):
        place = b.add(bases[m], offset)
        if splat:
            factors = [w.splat(w.load(place, w.scalar))] * vectors
        else:
            factors = [w.load(b.add(place, I64(w.size * w.lanes * v)), w.vector) for v in range(vectors)]
        new += [w.multiply_add(columns[v], factors[v], acc[m * vectors + v]) for v in range(vectors)]
    following = (b.add(k, I64(1)), b.add(offset, scalar_bytes), b.add(panel, vector_bytes), *new)
    for value, after in zip((k, offset, panel, *acc), following, strict=True):
        value.add_incoming(after, inner)
    b.cbranch(b.icmp_signed("<", following[0], count), inner, next_outer)

    b.position_at_end(next_outer)
    a_next = b.add(a, I64(1))
    a.add_incoming(a_next, next_outer)
    for total, value in zip(sums, new, strict=True):
        total.add_incoming(value, next_outer)
    b.cbranch(b.icmp_signed("<", a_next, many), outer, done)

    b.position_at_end(done)
    whole, whole_add, part, end = (b.append_basic_block(name) for name in ("whole", "whole_add", "part", "end"))
    full, adds = b.icmp_signed(">=", valid, I64(vectors * w.lanes)), b.icmp_signed("!=", add, I64(0))
    is_full = b.append_basic_block("full")
    b.cbranch(full, is_full, part)
    b.position_at_end(is_full)
    b.cbranch(adds, whole_add, whole)
    for block, adding in ((whole, False), (whole_add, True)):
        b.position_at_end(block)
        # All old values are loaded before any is stored: rows may repeat.
        addresses = [b.add(targets[m], I64(w.size * w.lanes * v)) for m, v in each]
        values = (
            [b.fadd(w.load(at, w.vector), value) for at, value in zip(addresses, new, strict=True)] if adding else new
        )
        for at, value in zip(addresses, values, strict=True):
            w.store(value, at)
        b.branch(end)
    b.position_at_end(part)
    w.store_first(new, targets, vectors, valid, adds)
    b.branch(end)
    b.position_at_end(end)
    b.ret_void()


ARGUMENTS = (
    "vectors", "vector_at", "vector_table", "table_at", "vector_step", "scalars", "scalar_table", "scalar_step",
    "many", "count", "places", "out", "start", "start_at", "add", "valid",
)  # fmt: skip


def _twin(splat: bool) -> Any:
    """Return the tile in plain Python."""

    def tile(
        vectors: Array,
        vector_at: int,
        vector_table: Array,
        table_at: int,
        vector_step: int,
        scalars: Array,
        scalar_table: Array,
        scalar_step: int,
        many: int,
        count: int,
        places: Array,
        out: Array,
        start: Array,
        start_at: int,
        add: int,
        valid: int,
    ) -> None:
        width = -(-valid // lanes(out.itemsize)) * lanes(out.itemsize)
        old = [out[places[ROWS + m] : places[ROWS + m] + valid].copy() for m in range(ROWS)]
        for m in range(ROWS):
            acc = np.zeros(width, out.dtype) if add else start[start_at : start_at + width].copy()
            for a in range(many):
                for k in range(count):
                    vector = vector_at + vector_table[table_at + a] + k * vector_step
                    factor = places[m] + scalar_table[table_at + a] + k * scalar_step
                    with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                        acc += vectors[vector : vector + width] * scalars[factor : factor + (1 if splat else width)]
            out[places[ROWS + m] : places[ROWS + m] + valid] = (old[m] + acc[:valid]) if add else acc[:valid]

    return tile


def _tile(splat: bool) -> Any:
    """Return the tile as an intrinsic."""
    name = "outer" if splat else "pointwise"

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typingctx, vectors, vector_at, vector_table, table_at, vector_step, scalars, scalar_table, scalar_step,
        many, count, places, out, start, start_at, add, valid,
    ):  # fmt: skip
        kinds = (vectors, vector_at, vector_table, table_at, vector_step, scalars, scalar_table, scalar_step,
                 many, count, places, out, start, start_at, add, valid)  # fmt: skip
        signature = types.void(*(kind if isinstance(kind, types.Array) else types.intp for kind in kinds))

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _call_tile(
                context, builder, dict(zip(ARGUMENTS, zip(signature.args, args, strict=True), strict=True)), name, splat
            )
            return context.get_dummy_value()

        return signature, codegen

    return tile


def _call_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]], name: str, splat: bool) -> None:
    """Emit the call of the tile that has as many vectors as ``valid`` lanes need."""
    dtype = named["vectors"][0].dtype
    w = Words(builder, dtype)

    def address(name: str) -> Any:
        return _address(context, builder, *named[name])

    def number(name: str) -> Any:
        return named[name][1]

    table_bytes = builder.mul(number("table_at"), I64(8))
    passed = [
        w.at(address("vectors"), number("vector_at")), builder.add(address("vector_table"), table_bytes),
        number("vector_step"), address("scalars"), builder.add(address("scalar_table"), table_bytes),
        number("scalar_step"), number("many"), number("count"), address("places"), address("out"),
        w.at(address("start"), number("start_at")), number("add"), number("valid"),
    ]  # fmt: skip
    after = builder.append_basic_block("after_tile")
    for n in range(1, VECTORS + 1):
        function, new = _private_function(builder.module, f"{name}_tile_{w.suffix}_{ROWS}x{n}", len(passed))
        if new:
            _write_tile(function, dtype, n, splat)
        if n == VECTORS:
            builder.call(function, passed)
            builder.branch(after)
            break
        this, other = builder.append_basic_block(f"tile_{n}"), builder.append_basic_block(f"more_than_{n}")
        builder.cbranch(builder.icmp_signed("<=", number("valid"), I64(n * w.lanes)), this, other)
        builder.position_at_end(this)
        builder.call(function, passed)
        builder.branch(after)
        builder.position_at_end(other)
    builder.position_at_end(after)


# ---------------------------------------------------------------------------------------------------------------------
# The transposing tile: as many rows as lanes, turned into as many columns
# ---------------------------------------------------------------------------------------------------------------------


def _write_transpose_tile(function: Any, dtype: Any) -> None:
    """Emit a transpose of lanes x lanes numbers, in log2(lanes) rounds of interleaving halves."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    source, source_step, target, target_step = function.args
    n = w.lanes
    rows = [w.load(w.at(source, b.mul(source_step, I64(m))), w.vector) for m in range(n)]
    low = ir.Constant(ir.VectorType(I32, n), [i // 2 + (i % 2) * n for i in range(n)])
    high = ir.Constant(ir.VectorType(I32, n), [n // 2 + i // 2 + (i % 2) * n for i in range(n)])
    # Interleaving row m with row m + n/2 is one step of a perfect shuffle of the n*n numbers; log2(n) steps transpose them.
    size = 1
    while size < n:
        rows = [b.shuffle_vector(rows[m], rows[m + n // 2], half) for m in range(n // 2) for half in (low, high)]
        size *= 2
    for m, row in enumerate(rows):
        w.store(row, w.at(target, b.mul(target_step, I64(m))))
    b.ret_void()


def _transpose_tile_twin(
    source: Array, source_at: int, source_step: int, target: Array, target_at: int, target_step: int
) -> None:
    """The transposing tile in plain Python."""
    n = lanes(source.itemsize)
    for m in range(n):
        for k in range(n):
            target[target_at + k * target_step + m] = source[source_at + m * source_step + k]


@intrinsic
def _transpose_tile_intrinsic(typingctx, source, source_at, source_step, target, target_at, target_step):  # type: ignore[no-untyped-def]
    signature = types.void(source, types.intp, types.intp, target, types.intp, types.intp)
    dtype = source.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        function, new = _private_function(builder.module, f"transpose_tile_{w.suffix}", 4)
        if new:
            _write_transpose_tile(function, dtype)
        first = w.at(_address(context, builder, signature.args[0], args[0]), args[1])
        second = w.at(_address(context, builder, signature.args[3], args[3]), args[4])
        builder.call(function, [first, args[2], second, args[5]])
        return context.get_dummy_value()

    return signature, codegen


# ---------------------------------------------------------------------------------------------------------------------
# The peak tile: nothing but multiplications and additions in registers
# ---------------------------------------------------------------------------------------------------------------------

ACCUMULATORS = 24 if VECTORS >= 4 else 12
"""Sums of the peak tile, of 32 or 16 registers: two multiply-adds a cycle that take 4 or 5 cycles each need 8 to 10 of them."""


def _write_peak_tile(function: Any, dtype: Any) -> None:
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    numbers, count, out = function.args
    entry, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    # Each sum begins with another vector, or LLVM would see that all are the same and keep one.
    factor, *first = (w.load(b.add(numbers, I64(w.size * w.lanes * m)), w.vector) for m in range(ACCUMULATORS + 1))
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
        w.store(value, b.add(out, I64(w.size * w.lanes * m)))
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
        function, new = _private_function(builder.module, f"peak_tile_{w.suffix}", 3)
        if new:
            _write_peak_tile(function, dtype)
        source = _address(context, builder, signature.args[0], args[0])
        target = w.at(_address(context, builder, signature.args[2], args[2]), args[3])
        builder.call(function, [source, args[1], target])
        return context.get_dummy_value()

    return signature, codegen


outer_tile = _twin(splat=True) if config.DISABLE_JIT else _tile(splat=True)
"""The tile of vectors times scalars, with 1 to VECTORS vectors as ``valid`` lanes need.

Parameters
----------
vectors, vector_at : flat array and offset
    Where the vectors begin.
vector_table, scalar_table, table_at : int64 arrays and offset
    For each a the offset of its vectors and scalars; both tables are read from ``table_at`` on.
vector_step, scalar_step : int
    Distance of consecutive b.
scalars : flat array
    Where the scalars lie.
many, count : int
    Numbers of a and b, both at least 1.
places : int64 array of 2*ROWS
    Offsets of the rows in ``scalars``, then in ``out``.  Rows may repeat: they then store the same twice.
out : flat array
    The result.
start, start_at : flat array and offset
    What every row of accumulators begins with, VECTORS vectors.
add : int
    If not 0, accumulators begin with zero and are added to what ``out`` holds: so a long sum is taken in chunks.
valid : int
    Lanes of a row to store, 1 to VECTORS*lanes.  All lanes of ``vectors`` and ``start`` up to a whole vector are read.
"""

pointwise_tile = _twin(splat=False) if config.DISABLE_JIT else _tile(splat=False)
"""The tile of vectors times vectors: as `outer_tile`, but each lane is multiplied with a number of its own.

The array called ``scalars`` is read at ``places[m] + scalar_table[a] + b*scalar_step + v*lanes ...``, whole vectors too.
"""

transpose_tile = _transpose_tile_twin if config.DISABLE_JIT else _transpose_tile_intrinsic
"""target[target_at + k*target_step + m] = source[source_at + m*source_step + k] for m, k below the number of lanes."""

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
