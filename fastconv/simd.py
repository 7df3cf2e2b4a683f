"""Vector words and register tiles: the only file that knows LLVM.

A tile is a matrix of accumulators that stay in vector registers over a whole sum.  It knows nothing of convolution: every
index map (stride, padding, dilation, groups, phases, dimension) lies in the offset tables that a driver gives it::

    for each k:  acc[m][v] += vectors[columns[k] + v*lanes ...] * scalars[rows[m] + offsets[k]]
    at the end:  out[targets[m] + v*lanes ...] = acc[m][v]

m counts the tile's ROWS, v its vectors, and ``...`` stands for the lanes of a vector.  One load of a vector serves ROWS
multiplications, one load of a scalar as many as there are vectors.

In equation (1) the rows are pixels and k counts the pairs of a channel and a tap; in equation (3) it is the other way round,
with the same tables.  Where there are fewer channels than lanes, the rows are channels and the vectors hold pixels.  Where
channels do not mix, each lane has a factor of its own: a tile slides along a row of pixels.

Each tile has a twin in plain Python with the same signature, which takes its place under ``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import ROWS, VECTOR_BYTES, VECTORS, shared

__all__ = [
    "ACCUMULATORS",
    "ROWS",
    "VECTORS",
    "clear",
    "compact",
    "copy",
    "copy_tile",
    "gather_tile",
    "lanes",
    "outer_tile",
    "peak_tile",
    "run_tasks",
    "scatter_tile",
    "short_tile",
    "slide_tile",
    "sum_slide_tile",
    "transpose_tile",
]

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
        self.b, self.dtype = builder, dtype
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
        room = cgutils.alloca_once(self.b, ir.ArrayType(self.scalar, self.lanes * len(values)))
        ends = cgutils.alloca_once(self.b, ir.ArrayType(I64, len(targets)))
        room, ends = self.b.ptrtoint(room, I64), self.b.ptrtoint(ends, I64)
        for v, value in enumerate(values):
            self.store(value, self.b.add(room, I64(self.size * self.lanes * v)))
        for m, target in enumerate(targets):
            self.store(target, self.b.add(ends, I64(8 * m)))
        function, new = _private_function(self.b.module, f"edge_{self.suffix}", 6)
        if new:
            function.attributes.add("minsize")  # or LLVM would unroll its loops, which takes long
            b = ir.IRBuilder(function.append_basic_block("entry"))
            Words(b, self.dtype).write_edge(*function.args)
        self.b.call(function, [room, I64(self.lanes * vectors), ends, I64(len(targets)), count, self.b.zext(adds, I64)])

    def write_edge(self, room: Any, pitch: Any, ends: Any, rows: Any, count: Any, adds: Any) -> None:
        """Emit what `store_first` calls.  All rows are added up before any is written: they may repeat."""
        b = self.b
        added_rows = b.select(b.icmp_signed("!=", adds, I64(0)), rows, I64(0))
        with cgutils.for_range(b, added_rows) as row, cgutils.for_range(b, count) as lane:
            here = self.at(room, b.add(b.mul(row.index, pitch), lane.index))
            there = self.at(self.load(self.at(ends, row.index, 8), I64), lane.index)
            self.store(b.fadd(self.load(there, self.scalar), self.load(here, self.scalar)), here)
        with cgutils.for_range(b, rows) as row, cgutils.for_range(b, count) as lane:
            here = self.at(room, b.add(b.mul(row.index, pitch), lane.index))
            self.store(self.load(here, self.scalar), self.at(self.load(self.at(ends, row.index, 8), I64), lane.index))
        b.ret_void()

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

    It is never inlined: inside a large driver the same tile would lose its registers to what surrounds it.
    """
    if name in module.globals:
        return module.globals[name], False
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_args), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, True


# ---------------------------------------------------------------------------------------------------------------------
# The outer tile: vectors times scalars
# ---------------------------------------------------------------------------------------------------------------------


def _write_tile(function: Any, dtype: Any, height: int, vectors: int) -> None:
    """Emit the tile with ``height`` rows of ``vectors`` vectors.

    Registers on AVX2 (16): 6x2 accumulators, 2 vectors, 1 scalar; 10 loads for 12 multiplications.
    On AVX-512 (32): 6x4 accumulators, 4 vectors, 1 scalar; 12 loads for 24.  Six rows, because each row holds an address in a
    general register and there are 15 of those.

    Variables are written to the stack here; LLVM puts them into registers.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    vector, pairs, count, scalar, rows, out, targets, tiles, start, add, valid = function.args
    each = [(m, v) for m in range(height) for v in range(vectors)]
    acc = [w.variable(w.vector) for _ in each]
    total = [w.variable(w.vector) for _ in each]
    row = [w.variable(I64) for _ in range(height)]
    pair, until = w.variable(I64), w.variable(I64)
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    last = w.at(pairs, count, PAIR)
    is_long = b.icmp_signed(">", count, I64(TERMS))

    def add_products(terms: int) -> None:
        for i in range(terms):
            here = b.load(pair)
            offset, column = (b.mul(w.load(b.add(here, I64(PAIR * i + 8 * n)), I64), I64(w.size)) for n in (0, 1))
            column = b.add(vector, column)
            columns = [w.load(b.add(column, I64(w.size * w.lanes * v)), w.vector) for v in range(vectors)]
            for m in range(height):
                factor = w.splat(w.load(b.add(b.load(row[m]), offset), w.scalar))
                for v in range(vectors):
                    a = acc[m * vectors + v]
                    b.store(w.multiply_add(columns[v], factor, b.load(a)), a)
        b.store(b.add(b.load(pair), I64(PAIR * terms)), pair)

    with cgutils.for_range(b, tiles) as tile:
        here = b.mul(tile.index, I64(8 * height))
        for m in range(height):
            b.store(w.at(scalar, w.load(b.add(b.add(rows, here), I64(8 * m)), I64)), row[m])
        for n, (_, v) in enumerate(each):
            b.store(w.load(b.add(start, I64(w.size * w.lanes * v)), w.vector), acc[n])
        b.store(pairs, pair)
        with b.if_then(is_long, likely=False):
            for variable in total:
                b.store(zero, variable)
        with w.repeat(lambda: b.icmp_signed("<", b.load(pair), last)):
            rest = b.sub(last, b.load(pair))
            chunk = b.select(b.icmp_signed("<", rest, I64(PAIR * TERMS)), rest, I64(PAIR * TERMS))
            b.store(b.add(b.load(pair), chunk), until)
            with w.repeat(lambda: b.icmp_signed("<", b.add(b.load(pair), I64(PAIR)), b.load(until))):
                add_products(2)  # two in a turn, for half the cost of counting
            with b.if_then(b.icmp_signed("<", b.load(pair), b.load(until))):
                add_products(1)
            with b.if_then(is_long, likely=False):
                for part, whole in zip(acc, total, strict=True):
                    b.store(b.fadd(b.load(whole), b.load(part)), whole)
                    b.store(zero, part)
        with b.if_then(is_long, likely=False):
            for part, whole in zip(acc, total, strict=True):
                b.store(b.load(whole), part)

        new = [b.load(variable) for variable in acc]
        ends = [w.at(out, w.load(b.add(b.add(targets, here), I64(8 * m)), I64)) for m in range(height)]
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

PAIR = 16
"""Bytes of a row of the table of pairs: two int64."""

SHORT = {1: 8, 2: 4, 3: 3}
"""Vectors in the tiles with fewer rows: as many accumulators as hide the time that a multiply-add takes, with 16 registers."""

TILE = (
    "vectors, vector_at, tables, pairs_at, count, scalars, scalar_at, rows_at, out, out_at, targets_at, tiles, start, start_at, "
    "add, valid"
)
"""What the outer tile is given."""


def _tile_twin(
    vectors: Array, vector_at: int, tables: Array, pairs_at: int, count: int, scalars: Array, scalar_at: int, rows_at: int,
    out: Array, out_at: int, targets_at: int, tiles: int, start: Array, start_at: int, add: int, valid: int,
    height: int = ROWS,
) -> None:  # fmt: skip
    """The outer tile in plain Python."""
    width = -(-valid // lanes(out.itemsize)) * lanes(out.itemsize)
    pairs = tables[pairs_at : pairs_at + 2 * count].reshape(-1, 2)
    for t in range(tiles):
        ends = [out_at + tables[targets_at + t * height + m] for m in range(height)]
        old = [out[end : end + valid].copy() for end in ends]
        for m, end in enumerate(ends):
            total = np.zeros(width, out.dtype)
            acc = start[start_at : start_at + width].copy()
            row = scalar_at + tables[rows_at + t * height + m]
            with np.errstate(over="ignore", invalid="ignore"):  # the compiled tile has nobody to warn
                for k, (offset, column) in enumerate(pairs):
                    acc += vectors[vector_at + column : vector_at + column + width] * scalars[row + offset]
                    if count > TERMS and (k % TERMS == TERMS - 1 or k == count - 1):
                        total += acc
                        acc[:] = 0
                result = (total if count > TERMS else acc)[:valid]
                out[end : end + valid] = old[m] + result if add else result


def _short_tile_twin(
    height: int, vectors: Array, vector_at: int, tables: Array, pairs_at: int, count: int, scalars: Array, scalar_at: int,
    rows_at: int, out: Array, out_at: int, targets_at: int, tiles: int, start: Array, start_at: int, add: int, valid: int,
) -> None:  # fmt: skip
    """The tiles with fewer rows in plain Python."""
    _tile_twin(
        vectors, vector_at, tables, pairs_at, count, scalars, scalar_at, rows_at, out, out_at, targets_at, tiles, start,
        start_at, add, valid, height,
    )  # fmt: skip


def _intrinsic(names: str, codegen: Callable[..., None], type_of: Callable[..., Any] | None = None) -> Any:
    """Make an intrinsic without a result, whose arguments are arrays or integers.

    ``codegen(context, builder, named)`` is given a dictionary from each name to a pair of type and value.
    """
    keys = [name.strip() for name in names.split(",")]

    def resolve(*kinds: Any) -> Any:
        signature = types.void(*(kind if isinstance(kind, types.Array) else types.intp for kind in kinds))

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            codegen(context, builder, dict(zip(keys, zip(signature.args, args, strict=True), strict=True)))
            return context.get_dummy_value()

        return signature, emit

    scope = {"resolve": resolve}
    exec(f"def tile(typingctx, {names}):\n    return resolve({names})", scope)  # Numba asks for the names
    return intrinsic(scope["tile"])


def _tile_arguments(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> tuple[Any, Words, list[Any]]:
    """Turn the arguments of an outer tile into those of its LLVM function."""
    dtype = named["vectors"][0].dtype
    w = Words(builder, dtype)

    def address(name: str, at: str, size: int = w.size) -> Any:
        return w.at(_address(context, builder, *named[name]), named[at][1], size)

    def number(name: str) -> Any:
        return named[name][1]

    return dtype, w, [
        address("vectors", "vector_at"), address("tables", "pairs_at", 8), number("count"), address("scalars", "scalar_at"),
        address("tables", "rows_at", 8), address("out", "out_at"), address("tables", "targets_at", 8), number("tiles"),
        address("start", "start_at"), number("add"), number("valid"),
    ]  # fmt: skip


def _call_first(builder: Any, calls: list[tuple[Any, Any]], passed: list[Any]) -> None:
    """Emit a call of the first function whose condition holds; the last one's is not asked for."""
    after = builder.append_basic_block("after_tile")
    for condition, function in calls[:-1]:
        this, other = builder.append_basic_block("tile"), builder.append_basic_block("other_tile")
        builder.cbranch(condition, this, other)
        builder.position_at_end(this)
        builder.call(function, passed)
        builder.branch(after)
        builder.position_at_end(other)
    builder.call(calls[-1][1], passed)
    builder.branch(after)
    builder.position_at_end(after)


def _tile_function(module: Any, w: Words, dtype: Any, height: int, vectors: int) -> Any:
    function, new = _private_function(module, f"outer_tile_{w.suffix}_{height}x{vectors}", 11)
    if new:
        _write_tile(function, dtype, height, vectors)
    return function


def _call_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit the call of the tile that has as many vectors as ``valid`` lanes need."""
    dtype, w, passed = _tile_arguments(context, builder, named)
    calls = []
    for n in range(1, VECTORS + 1):
        few = builder.icmp_signed("<=", passed[-1], I64(n * w.lanes))
        calls.append((few, _tile_function(builder.module, w, dtype, ROWS, n)))
    _call_first(builder, calls, passed)


def _call_short_tile(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit the call of the tile with ``height`` rows."""
    dtype, w, passed = _tile_arguments(context, builder, named)
    calls = []
    for rows, vectors in (*SHORT.items(), (ROWS, VECTORS)):
        this = builder.icmp_signed("==", named["height"][1], I64(rows))
        calls.append((this, _tile_function(builder.module, w, dtype, rows, vectors)))
    _call_first(builder, calls, passed)


# ---------------------------------------------------------------------------------------------------------------------
# The sliding tiles: vectors times vectors, where channels do not mix
# ---------------------------------------------------------------------------------------------------------------------

SPAN = 7
"""Neighbouring pixels that a sliding tile computes at once: 7 accumulators, up to 7 taps and a pixel of the input are 15
registers, and the sizes of common images (7, 14, 28, 56, 112) are multiples of it."""

SLIDES = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2))
"""(taps in a row, stride) of the sliding tiles: each pixel is loaded once for all taps and outputs that it meets.  All other
kernels are taken as rows of one tap."""

SLIDE = (
    "taps, stride, weights, weights_at, pitch, tables, lines_at, lines, x, x_at, x_step, x_row, out, out_at, out_step, out_row, "
    "count, rows, start, start_at"
)  # fmt: skip


def _write_slide_tile(function: Any, dtype: Any, taps: int, stride: int, span: int) -> None:
    """Emit the sliding tile for ``span`` pixels at once; the last ones overlap those before, if need be."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    weights, pitch, offsets, lines, x, x_step, x_row, out, out_step, out_row, count, rows, start = function.args
    pitch, x_step, x_row, out_step, out_row = (
        b.mul(step, I64(w.size)) for step in (pitch, x_step, x_row, out_step, out_row)
    )
    acc = [w.variable(w.vector) for _ in range(span)]
    done = w.variable(I64)

    def add_products(index: Any, here: Any) -> None:
        at = w.at(here, w.load(w.at(offsets, index, 8), I64))
        weight = b.add(weights, b.mul(index, b.mul(pitch, I64(taps))))
        column = [w.load(b.add(weight, b.mul(pitch, I64(c))), w.vector) for c in range(taps)]
        for j in range((span - 1) * stride + taps):
            meets = [(m, j - m * stride) for m in range(span) if 0 <= j - m * stride < taps]
            if meets:
                pixel = w.load(b.add(at, b.mul(x_step, I64(j))), w.vector)
            for m, c in meets:
                b.store(w.multiply_add(column[c], pixel, b.load(acc[m])), acc[m])

    def compute(begin: Any, row: Any) -> None:
        here = b.add(b.add(x, b.mul(row, x_row)), b.mul(begin, b.mul(x_step, I64(stride))))
        there = b.add(out, b.mul(row, out_row))
        for a in acc:
            b.store(w.load(start, w.vector), a)
        with cgutils.for_range(b, lines) as line:
            add_products(line.index, here)
        values = [b.load(a) for a in acc]
        ends = [b.add(there, b.mul(b.add(begin, I64(m)), out_step)) for m in range(span)]
        for value, end in zip(values, ends, strict=True):
            w.store(value, end)

    with cgutils.for_range(b, rows) as row:
        b.store(I64(0), done)
        with w.repeat(lambda: b.icmp_signed("<", b.load(done), count)):
            rest = b.sub(count, I64(span))
            compute(b.select(b.icmp_signed("<", b.load(done), rest), b.load(done), rest), row.index)
            b.store(b.add(b.load(done), I64(span)), done)
    b.ret_void()


def _slide_twin(
    taps: int, stride: int, weights: Array, weights_at: int, pitch: int, tables: Array, lines_at: int, lines: int, x: Array,
    x_at: int, x_step: int, x_row: int, out: Array, out_at: int, out_step: int, out_row: int, count: int, rows: int,
    start: Array, start_at: int,
) -> None:  # fmt: skip
    """The sliding tile in plain Python."""
    n = lanes(out.itemsize)
    for row, m in itertools.product(range(rows), range(count)):
        acc = start[start_at : start_at + n].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for line in range(lines):
                for c in range(taps):
                    at = x_at + row * x_row + tables[lines_at + line] + (m * stride + c) * x_step
                    weight = weights_at + (line * taps + c) * pitch
                    acc += weights[weight : weight + n] * x[at : at + n]
        end = out_at + row * out_row + m * out_step
        out[end : end + n] = acc


def _slide_arguments(
    context: Any, builder: Any, named: dict[str, tuple[Any, Any]], names: str
) -> tuple[Any, Words, list[Any]]:
    """Turn the arguments of a sliding tile into those of its LLVM function: addresses, and numbers as they are."""
    dtype = named["x"][0].dtype
    w, passed = Words(builder, dtype), []
    for name in names.split():
        array, _, at = name.partition("+")
        kind, value = named[array]
        passed.append(
            w.at(_address(context, builder, kind, value), named[at][1], 8 if array == "tables" else w.size)
            if at
            else value
        )
    return dtype, w, passed


def _slides(
    builder: Any, named: dict[str, tuple[Any, Any]], w: Words, name: str, write: Callable[..., None], n_args: int
) -> list[Any]:
    """Emit the sliding tiles, and return each with the condition for it."""
    calls = []
    for taps, stride in SLIDES[::-1]:
        same = [
            builder.icmp_signed("==", named[key][1], I64(value)) for key, value in (("taps", taps), ("stride", stride))
        ]
        function, new = _private_function(builder.module, f"{name}_{w.suffix}_{taps}x{stride}", n_args)
        if new:
            write(function, taps, stride)
        calls.append((builder.and_(*same), function))
    return calls


def _call_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = (
        "weights+weights_at pitch tables+lines_at lines x+x_at x_step x_row out+out_at out_step out_row count rows "
        "start+start_at"
    )
    dtype, w, passed = _slide_arguments(context, builder, named, names)
    calls = _slides(
        builder,
        named,
        w,
        "slide_tile",
        lambda f, taps, stride: _write_slide_tile(f, dtype, taps, stride, SPAN),
        len(passed),
    )
    function, new = _private_function(builder.module, f"slide_tile_{w.suffix}_short", len(passed))
    if new:
        _write_slide_tile(function, dtype, 1, 1, 1)
    few = builder.icmp_signed("<", named["count"][1], I64(SPAN))
    _call_first(builder, [(few, function), *calls], passed)


SUM_SLIDE = (
    "taps, stride, x, x_at, x_step, x_line, gradient, gradient_at, gradient_step, gradient_line, lines, count, out, out_at, "
    "pitch"
)


def _write_sum_slide_tile(function: Any, dtype: Any, taps: int, stride: int) -> None:
    """Emit the tile that sums the products of pixels and gradients for each tap of a row.

    Sums that follow each other wait for each other: with few taps, neighbouring pixels have sums of their own.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    x, x_step, x_line, gradient, gradient_step, gradient_line, lines, count, out, pitch = function.args
    pitch, x_step, x_line, gradient_step, gradient_line = (
        b.mul(step, I64(w.size)) for step in (pitch, x_step, x_line, gradient_step, gradient_line)
    )
    sets = max(1, 12 // taps) if taps > 1 else SPAN
    acc = [[w.variable(w.vector) for _ in range(taps)] for _ in range(sets)]
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    done = w.variable(I64)
    for a in itertools.chain(*acc):
        b.store(zero, a)

    def add_products(span: int, here: Any, there: Any) -> None:
        pixels = [b.add(there, b.mul(gradient_step, I64(m))) for m in range(span)]
        for j in range((span - 1) * stride + taps):
            meets = [(m, j - m * stride) for m in range(span) if 0 <= j - m * stride < taps]
            if meets:
                pixel = w.load(b.add(here, b.mul(x_step, I64(j))), w.vector)
            for m, c in meets:
                a = acc[m % sets][c]
                b.store(w.multiply_add(w.load(pixels[m], w.vector), pixel, b.load(a)), a)
        b.store(b.add(b.load(done), I64(span)), done)

    with cgutils.for_range(b, lines) as line:
        b.store(I64(0), done)
        left, right = b.add(x, b.mul(line.index, x_line)), b.add(gradient, b.mul(line.index, gradient_line))

        def places() -> tuple[Any, Any]:
            at = b.load(done)
            return b.add(left, b.mul(at, b.mul(x_step, I64(stride)))), b.add(right, b.mul(at, gradient_step))

        for span in (SPAN, 1):
            with w.repeat(lambda: b.icmp_signed("<=", b.add(b.load(done), I64(span)), count)):  # noqa: B023
                add_products(span, *places())
    for c in range(taps):
        value = b.load(acc[0][c])
        for s in range(1, sets):
            value = b.fadd(value, b.load(acc[s][c]))
        end = b.add(out, b.mul(pitch, I64(c)))
        w.store(b.fadd(w.load(end, w.vector), value), end)
    b.ret_void()


def _sum_slide_twin(
    taps: int, stride: int, x: Array, x_at: int, x_step: int, x_line: int, gradient: Array, gradient_at: int,
    gradient_step: int, gradient_line: int, lines: int, count: int, out: Array, out_at: int, pitch: int,
) -> None:  # fmt: skip
    """The tile that sums over pixels in plain Python."""
    n = lanes(out.itemsize)
    with np.errstate(over="ignore", invalid="ignore"):
        for c in range(taps):
            acc = np.zeros(n, out.dtype)
            for line in range(lines):
                for m in range(count):
                    here, there = (
                        x_at + line * x_line + (m * stride + c) * x_step,
                        gradient_at + line * gradient_line + m * gradient_step,
                    )
                    acc += gradient[there : there + n] * x[here : here + n]
            out[out_at + c * pitch : out_at + c * pitch + n] += acc


def _call_sum_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    names = "x+x_at x_step x_line gradient+gradient_at gradient_step gradient_line lines count out+out_at pitch"
    dtype, w, passed = _slide_arguments(context, builder, named, names)
    calls = _slides(
        builder,
        named,
        w,
        "sum_slide_tile",
        lambda f, taps, stride: _write_sum_slide_tile(f, dtype, taps, stride),
        len(passed),
    )
    _call_first(builder, calls, passed)


# ---------------------------------------------------------------------------------------------------------------------
# Calling tasks by their address
# ---------------------------------------------------------------------------------------------------------------------


def _call_run_tasks(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit a loop that takes the next task from a counter that all workers share, until there are no more."""
    w = Words(builder, named["a"][0].dtype)
    arrays = [_address(context, builder, *named[name]) for name in ("numbers", "tables", "a", "b", "c", "d", "room")]
    function = ir.FunctionType(ir.VoidType(), [I64] * 10)
    task = builder.inttoptr(named["address"][1], function.as_pointer())
    counter = builder.inttoptr(_address(context, builder, *named["counter"]), I64.as_pointer())
    following = w.variable(I64)

    def are_left() -> Any:
        builder.store(builder.atomic_rmw("add", counter, I64(1), "monotonic"), following)
        return builder.icmp_signed("<", builder.load(following), named["tasks"][1])

    with w.repeat(are_left):
        builder.call(task, [builder.load(following), named["worker"][1], *arrays, named["room_size"][1]])


def _run_tasks_twin(address: Callable[..., None], tasks: int, counter: Array, worker: int, *arguments: Any) -> None:
    while counter[0] < tasks:
        task = int(counter[0])
        counter[0] += 1
        address(task, worker, *arguments)


# ---------------------------------------------------------------------------------------------------------------------
# The transposing tile: as many rows as lanes, turned into as many columns
# ---------------------------------------------------------------------------------------------------------------------


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
            function, new = _private_function(builder.module, f"{kind}_tile_{w.suffix}", 7)
            if new:
                _write_transpose_tile(function, kinds[0].dtype, kind)
            here, there = (w.at(_address(context, builder, kinds[n], args[n]), args[n + 1]) for n in (0, 3))
            rows = w.at(_address(context, builder, kinds[6], args[6]), args[7], 8)
            builder.call(function, [here, args[2], there, args[5], rows, args[8], args[9]])
            return context.get_dummy_value()

        return signature, codegen

    return tile


# ---------------------------------------------------------------------------------------------------------------------
# Copying
# ---------------------------------------------------------------------------------------------------------------------


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
        function, new = _private_function(builder.module, f"copy_tile_{w.suffix}", 6)
        if new:
            _write_copy_tile(function, dtype)
        first = w.at(_address(context, builder, signature.args[0], args[0]), args[1])
        second = w.at(_address(context, builder, signature.args[3], args[3]), args[4])
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
        begin, end = (w.at(_address(context, builder, signature.args[0], args[0]), at) for at in args[1:])
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
        here = w.at(_address(context, builder, signature.args[0], args[0]), args[1])
        there = w.at(_address(context, builder, signature.args[2], args[2]), args[3])
        byte = ir.IntType(8).as_pointer()
        here, there = builder.inttoptr(here, byte), builder.inttoptr(there, byte)
        cgutils.raw_memcpy(builder, there, here, args[4], I64(w.size))
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


outer_tile = _tile_twin if config.DISABLE_JIT else _intrinsic(TILE, _call_tile)
"""A column of tiles of vectors times scalars, with 1 to VECTORS vectors as ``valid`` lanes need.

Parameters
----------
vectors, vector_at : flat array and offset
    What vectors are counted from.
tables : flat int64 array
    Holds the tables that the next parameters name.
pairs_at, count : int
    For each k, what leads from a row to its factor, and where its vectors lie.  There may be no k at all.
scalars, scalar_at : flat array and offset
    What the rows are counted from.
rows_at : int
    For each row of each tile, ROWS a tile, where its factors lie.
out, out_at, targets_at : flat array and offset, int
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

short_tile = _short_tile_twin if config.DISABLE_JIT else _intrinsic(f"height, {TILE}", _call_short_tile)
"""The same with ``height`` rows a tile, one of SHORT or ROWS, and as many vectors as SHORT says, or VECTORS."""

run_tasks = (
    _run_tasks_twin
    if config.DISABLE_JIT
    else _intrinsic("address, tasks, counter, worker, numbers, tables, a, b, c, d, room, room_size", _call_run_tasks)
)
"""Call the function at an address for each task that is left: ``counter`` holds the next, and is shared by all workers."""

slide_tile = _slide_twin if config.DISABLE_JIT else _intrinsic(SLIDE, _call_slide)
"""A vector of channels of ``count`` neighbouring pixels of each row, where each channel has weights of its own::

    out[row, m] = start + sum over lines and c < taps of  weights[line*taps + c] * x[row, offset of line + m*stride + c]

Parameters
----------
taps, stride : int
    One of SLIDES; with less than SPAN pixels, (1, 1).
weights, weights_at, pitch : flat array, offset and distance
    A vector for each tap.
tables, lines_at, lines : flat int64 array, offset and int
    The offset in ``x`` of each line of taps.
x, x_at, x_step, x_row : flat array, offset and distances
    The input, its neighbouring pixels, and those that neighbouring rows begin with.
out, out_at, out_step, out_row : flat array, offset and distances
    Where the pixels go.
count, rows : int
    Pixels of a row, at least 1, and rows.
start, start_at : flat array and offset
    The vector that each sum begins with.
"""

sum_slide_tile = _sum_slide_twin if config.DISABLE_JIT else _intrinsic(SUM_SLIDE, _call_sum_slide)
"""For each of ``taps`` neighbouring taps, added to what ``out`` holds::

    out[c*pitch ...] += sum over lines and m < count of  gradient[line, m] * x[line, m*stride + c]
"""


@intrinsic
def _compact_intrinsic(typingctx):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("minsize")
        return context.get_dummy_value()

    return types.void(), codegen


compact = (lambda: None) if config.DISABLE_JIT else _compact_intrinsic
"""Called in a kernel, has LLVM keep it small: one whose time goes into tiles, so that unrolled loops would only take time to
compile."""

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

copy_tile = _copy_tile_twin if config.DISABLE_JIT else _copy_tile_intrinsic
"""``rows`` times ``vectors`` whole vectors, at most VECTORS:

    target[target_at + row*target_step + k] = source[source_at + row*source_step + k]
"""

clear = _clear_twin if config.DISABLE_JIT else _clear_intrinsic
"""target[k] = 0 for first <= k < last; last is not less than first."""

copy = _copy_twin if config.DISABLE_JIT else _copy_intrinsic
"""target[target_at + k] = source[source_at + k] for k < count, which is not negative."""

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
