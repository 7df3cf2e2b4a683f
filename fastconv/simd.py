"""Vector words and register tiles: the only file that knows LLVM.

A tile is a matrix of accumulators that stay in vector registers over a whole sum.  It knows nothing of convolution: every
index map (stride, padding, dilation, groups, phases, dimension) lies in the offset tables that a driver gives it::

    for each k:  acc[m][v] += vectors[k][v] * scalars[rows[m] + offsets[k]]
    at the end:  out[targets[m] + v*lanes ...] = acc[m][v]

m counts the tile's ROWS, v its vectors, and ``...`` stands for the lanes of a vector.  One load of a vector serves ROWS
multiplications, one load of a scalar as many as there are vectors.  Where channels do not mix, each lane has a factor of
its own, and the scalars become vectors.

In equation (1) the rows are pixels and k counts the pairs of a channel and a tap; in equation (3) it is the other way round,
with the same two tables.

Each tile has a twin in plain Python with the same signature, which takes its place under ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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

    def at(self, address: Any, index: Any, size: int = 0) -> Any:
        """Address of an element, from that of the first; ``size`` is the bytes of one, if it is not of this dtype."""
        return self.b.add(address, self.b.mul(index, I64(size or self.size)))

    def variable(self, kind: Any) -> Any:
        """Room for a value on the stack, which LLVM turns into a register."""
        return cgutils.alloca_once(self.b, kind)

    @contextlib.contextmanager
    def repeat(self, condition: Callable[[], Any]) -> Iterator[None]:
        """Emit a loop that runs while a condition holds."""
        test, body, after = (self.b.append_basic_block(name) for name in ("while", "do", "done"))
        self.b.branch(test)
        self.b.position_at_end(test)
        self.b.cbranch(condition(), body, after)
        self.b.position_at_end(body)
        yield
        self.b.branch(test)
        self.b.position_at_end(after)


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

    Registers on AVX2 (16): 6x2 accumulators, 2 vectors, 1 scalar; 9 loads for 12 multiplications.
    On AVX-512 (32): 6x4 accumulators, 4 vectors, 1 scalar; 11 loads for 24.  Six rows, because each row holds an address in a
    general register and there are 15 of those.

    Variables are written to the stack here; LLVM puts them into registers.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    vector, offsets, count, scalar, rows, out, targets, tiles, start, add, valid = function.args
    row_bytes = w.size * w.lanes * vectors
    each = [(m, v) for m in range(ROWS) for v in range(vectors)]
    acc = [w.variable(w.vector) for _ in each]
    total = [w.variable(w.vector) for _ in each]
    row = [w.variable(I64) for _ in range(ROWS)]
    k, until, panel = w.variable(I64), w.variable(I64), w.variable(I64)
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    is_long = b.icmp_signed(">", count, I64(TERMS))

    def add_products(terms: int) -> None:
        for i in range(terms):
            offset = b.mul(w.load(w.at(offsets, b.add(b.load(k), I64(i)), 8), I64), I64(w.size))
            here = b.load(panel)
            columns = [w.load(b.add(here, I64(row_bytes * i + w.size * w.lanes * v)), w.vector) for v in range(vectors)]
            for m in range(ROWS):
                place = b.add(b.load(row[m]), offset)
                if splat:
                    factors = [w.splat(w.load(place, w.scalar))] * vectors
                else:
                    factors = [w.load(b.add(place, I64(w.size * w.lanes * v)), w.vector) for v in range(vectors)]
                for v in range(vectors):
                    a = acc[m * vectors + v]
                    b.store(w.multiply_add(columns[v], factors[v], b.load(a)), a)
        b.store(b.add(b.load(k), I64(terms)), k)
        b.store(b.add(b.load(panel), I64(row_bytes * terms)), panel)

    with cgutils.for_range(b, tiles) as tile:
        here = b.mul(tile.index, I64(8 * ROWS))
        for m in range(ROWS):
            b.store(w.at(scalar, w.load(b.add(b.add(rows, here), I64(8 * m)), I64)), row[m])
        for n, (_, v) in enumerate(each):
            b.store(w.load(b.add(start, I64(w.size * w.lanes * v)), w.vector), acc[n])
        b.store(I64(0), k)
        b.store(vector, panel)
        with b.if_then(is_long, likely=False):
            for variable in total:
                b.store(zero, variable)
        with w.repeat(lambda: b.icmp_signed("<", b.load(k), count)):
            rest = b.sub(count, b.load(k))
            b.store(b.add(b.load(k), b.select(b.icmp_signed("<", rest, I64(TERMS)), rest, I64(TERMS))), until)
            with w.repeat(lambda: b.icmp_signed("<", b.add(b.load(k), I64(1)), b.load(until))):
                add_products(2)  # two in a turn, for half the cost of counting
            with b.if_then(b.icmp_signed("<", b.load(k), b.load(until))):
                add_products(1)
            with b.if_then(is_long, likely=False):
                for part, whole in zip(acc, total, strict=True):
                    b.store(b.fadd(b.load(whole), b.load(part)), whole)
                    b.store(zero, part)
        with b.if_then(is_long, likely=False):
            for part, whole in zip(acc, total, strict=True):
                b.store(b.load(whole), part)

        new = [b.load(variable) for variable in acc]
        ends = [w.at(out, w.load(b.add(b.add(targets, here), I64(8 * m)), I64)) for m in range(ROWS)]
        adds = b.icmp_signed("!=", add, I64(0))
        with b.if_else(b.icmp_signed(">=", valid, I64(vectors * w.lanes))) as (whole, part):
            with whole:
                addresses = [b.add(ends[m], I64(w.size * w.lanes * v)) for m, v in each]
                with b.if_else(adds) as (adding, storing):
                    with adding:  # all old values are loaded before any is stored: rows may repeat
                        sums = [b.fadd(w.load(at, w.vector), n) for at, n in zip(addresses, new, strict=True)]
                        for at, value in zip(addresses, sums, strict=True):
                            w.store(value, at)
                    with storing:
                        for at, value in zip(addresses, new, strict=True):
                            w.store(value, at)
            with part:
                w.store_first(new, ends, vectors, valid, adds)
    b.ret_void()


TERMS = 128
"""Longest plain run of additions: a longer sum is taken in chunks, whose sums are added one by one."""

ARGUMENTS = (
    "vectors", "vector_at", "offsets", "offsets_at", "count", "scalars", "scalar_at", "rows", "rows_at",
    "out", "out_at", "targets", "targets_at", "tiles", "start", "start_at", "add", "valid",
)  # fmt: skip


def _twin(splat: bool) -> Any:
    """Return the tile in plain Python."""

    def tile(
        vectors: Array, vector_at: int, offsets: Array, offsets_at: int, count: int, scalars: Array, scalar_at: int,
        rows: Array, rows_at: int, out: Array, out_at: int, targets: Array, targets_at: int, tiles: int,
        start: Array, start_at: int, add: int, valid: int,
    ) -> None:  # fmt: skip
        width = -(-valid // lanes(out.itemsize)) * lanes(out.itemsize)
        for t in range(tiles):
            ends = [out_at + targets[targets_at + t * ROWS + m] for m in range(ROWS)]
            old = [out[end : end + valid].copy() for end in ends]
            for m, end in enumerate(ends):
                total = np.zeros(width, out.dtype)
                acc = start[start_at : start_at + width].copy()
                row = scalar_at + rows[rows_at + t * ROWS + m]
                with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                    for k in range(count):
                        factor = row + offsets[offsets_at + k]
                        vector = vectors[vector_at + k * width : vector_at + (k + 1) * width]
                        acc += vector * scalars[factor : factor + (1 if splat else width)]
                        if count > TERMS and (k % TERMS == TERMS - 1 or k == count - 1):
                            total += acc
                            acc[:] = 0
                    result = (total if count > TERMS else acc)[:valid]
                    out[end : end + valid] = old[m] + result if add else result

    return tile


def _tile(splat: bool) -> Any:
    """Return the tile as an intrinsic."""
    name = "outer" if splat else "pointwise"

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        typingctx, vectors, vector_at, offsets, offsets_at, count, scalars, scalar_at, rows, rows_at,
        out, out_at, targets, targets_at, tiles, start, start_at, add, valid,
    ):  # fmt: skip
        kinds = (vectors, vector_at, offsets, offsets_at, count, scalars, scalar_at, rows, rows_at,
                 out, out_at, targets, targets_at, tiles, start, start_at, add, valid)  # fmt: skip
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

    def address(name: str, at: str, size: int = w.size) -> Any:
        return w.at(_address(context, builder, *named[name]), named[at][1], size)

    def number(name: str) -> Any:
        return named[name][1]

    passed = [
        address("vectors", "vector_at"), address("offsets", "offsets_at", 8), number("count"),
        address("scalars", "scalar_at"), address("rows", "rows_at", 8), address("out", "out_at"),
        address("targets", "targets_at", 8), number("tiles"), address("start", "start_at"), number("add"), number("valid"),
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
    source, source_rows, source_step, target, target_rows, target_step = function.args
    n = w.lanes

    def row(address: Any, rows: Any, step: Any, m: int) -> Any:
        return w.at(address, b.mul(step, w.load(w.at(rows, I64(m), 8), I64)))

    rows = [w.load(row(source, source_rows, source_step, m), w.vector) for m in range(n)]
    low = ir.Constant(ir.VectorType(I32, n), [i // 2 + (i % 2) * n for i in range(n)])
    high = ir.Constant(ir.VectorType(I32, n), [n // 2 + i // 2 + (i % 2) * n for i in range(n)])
    # Interleaving row m with row m + n/2 is one step of a perfect shuffle of the n*n numbers; log2(n) steps transpose them.
    size = 1
    while size < n:
        rows = [b.shuffle_vector(rows[m], rows[m + n // 2], half) for m in range(n // 2) for half in (low, high)]
        size *= 2
    for m, value in enumerate(rows):
        w.store(value, row(target, target_rows, target_step, m))
    b.ret_void()


def _transpose_tile_twin(
    source: Array, source_at: int, source_rows: Array, source_first: int, source_step: int,
    target: Array, target_at: int, target_rows: Array, target_first: int, target_step: int,
) -> None:  # fmt: skip
    """The transposing tile in plain Python."""
    n = lanes(source.itemsize)
    for m in range(n):
        for k in range(n):
            to = target_at + target_rows[target_first + k] * target_step + m
            target[to] = source[source_at + source_rows[source_first + m] * source_step + k]


@intrinsic
def _transpose_tile_intrinsic(  # type: ignore[no-untyped-def]
    typingctx, source, source_at, source_rows, source_first, source_step, target, target_at, target_rows, target_first,
    target_step,
):  # fmt: skip
    each = (source, types.intp, source_rows, types.intp, types.intp)
    signature = types.void(*each, target, *each[1:2], target_rows, *each[3:])
    dtype = source.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Words(builder, dtype)
        function, new = _private_function(builder.module, f"transpose_tile_{w.suffix}", 6)
        if new:
            _write_transpose_tile(function, dtype)
        passed = []
        for n in (0, 5):
            image, rows = (_address(context, builder, signature.args[n + i], args[n + i]) for i in (0, 2))
            passed += [w.at(image, args[n + 1]), w.at(rows, args[n + 3], 8), args[n + 4]]
        builder.call(function, passed)
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
"""A column of tiles of vectors times scalars, with 1 to VECTORS vectors as ``valid`` lanes need.

Parameters
----------
vectors, vector_at : flat array and offset
    Where the vectors begin; those of one k follow those of the last.
offsets, offsets_at, count : int64 array, offset and int
    For each k what leads from a row to its factor.  There may be no k at all.
scalars, scalar_at : flat array and offset
    What the rows are counted from.
rows, rows_at : int64 array and offset
    For each row of each tile, ROWS a tile, where its factors lie.
out, out_at, targets, targets_at : flat array and offset, int64 array and offset
    For each row where its sums go.  Rows of one tile may repeat: they then store the same twice.
tiles : int
    Number of tiles.
start, start_at : flat array and offset
    The vectors that every row of accumulators begins with.
add : int
    If not 0, the sums are added to what ``out`` holds.
valid : int
    Lanes of a row to store, 1 to VECTORS*lanes.  All lanes of ``vectors`` and ``start`` up to a whole vector are read.
"""

pointwise_tile = _twin(splat=False) if config.DISABLE_JIT else _tile(splat=False)
"""The tiles of vectors times vectors: as `outer_tile`, but each lane is multiplied with a number of its own.

The array called ``scalars`` is read at ``rows[m] + offsets[k] + v*lanes ...``, whole vectors too.
"""

transpose_tile = _transpose_tile_twin if config.DISABLE_JIT else _transpose_tile_intrinsic
"""A square of lanes x lanes numbers, turned over: for m, k below the number of lanes,

target[target_at + target_rows[target_first + k]*target_step + m]
    = source[source_at + source_rows[source_first + m]*source_step + k].
"""

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
