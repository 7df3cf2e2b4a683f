"""Words: loads, stores and arithmetic on vectors, and how a tile becomes a function that kernels call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import MASKS, VECTOR_BYTES, shared, source_hash
from ..linking import link

__all__ = [
    "I32", "I64", "LINE", "Array", "Words", "address_of", "call_first", "equal", "lanes", "line_parts", "linked_function",
    "passed_arguments", "private_function", "tile_intrinsic", "tile_of_kinds",
]  # fmt: skip

Array = np.ndarray[Any, Any]

I32, I64 = ir.IntType(32), ir.IntType(64)

LINE = 64
"""Bytes of a line of the cache."""

STACK_BYTES = 16
"""Bytes to which the stack is aligned."""


@shared
def lanes(itemsize: int) -> int:
    """Count the numbers of this size in one vector."""
    return VECTOR_BYTES // itemsize


@shared
def line_parts() -> int:
    """Count the vectors of a line of the cache."""
    return LINE // VECTOR_BYTES


class Words:
    """Loads, stores and arithmetic on vectors of one dtype.  Addresses are int64 and count bytes."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.b, self.dtype = builder, dtype
        self.scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        self.size = dtype.bitwidth // 8
        self.lanes = lanes(self.size)
        self.bytes = self.size * self.lanes
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.suffix = f"v{self.lanes}f{dtype.bitwidth}"

    def load(self, address: Any, kind: Any) -> Any:
        """Load a scalar or a vector, which may lie anywhere."""
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 8 if kind is I64 else self.size
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store a scalar or a vector, anywhere."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = self.size

    def stores(
        self, addresses: list[Any], streams: Any, vectors: int = 1
    ) -> Iterator[Callable[[Any, Any], None]]:  # fmt: skip
        """Visit the ways to store so many vectors at each address: past the caches, if ``streams`` is not 0, and as `store` does.

        What is emitted at a turn is done if that way is taken: the first needs vectors that fill lines of the cache.
        """
        if vectors * self.bytes % LINE:
            yield self.store
            return
        with self.b.if_else(self.fill_lines(addresses, streams)) as (past, usual):
            with past:
                yield self.stream
            with usual:
                yield self.store

    def fill_lines(self, addresses: list[Any], streams: Any) -> Any:
        """Say whether these begin with lines of the cache, and ``streams`` is not 0."""
        together = functools.reduce(self.b.or_, addresses)
        begin = self.b.icmp_signed("==", self.b.and_(together, I64(LINE - 1)), I64(0))
        return self.b.and_(begin, self.b.icmp_signed("!=", streams, I64(0)))

    def stream(self, value: Any, address: Any) -> None:
        """Store a vector that fills a line of the cache, or does with the next, where that need not be read: past the caches."""
        store = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        store.align = min(LINE, self.bytes)
        store.set_metadata("nontemporal", self.b.module.add_metadata([I32(1)]))

    def prefetch(self, address: Any, writes: bool = False) -> None:
        """Have what lies at an address brought into the second-level cache; it need not exist.

        If it is for what ``writes`` there, into the first one, and other cores lose it.
        """
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch")
        kind_of_use, level, data = I32(int(writes)), I32(3 if writes else 2), I32(1)
        self.b.call(function, [self.b.inttoptr(address, byte), kind_of_use, level, data])

    def align_stack(self) -> None:
        """Have vectors for which there is no register kept in lines of the cache: stacks are aligned for less than these need.

        LLVM does so where a variable asks for it that is in memory, and then needs a register for that.
        """
        if self.bytes > STACK_BYTES:
            room = cgutils.alloca_once(self.b, self.vector)
            room.align = self.bytes
            kind = ir.FunctionType(ir.VoidType(), [room.type])
            self.b.call(ir.InlineAsm(kind, "", "r,~{memory}", side_effect=True), [room])

    def part(self) -> None:
        """Keep LLVM from mixing what is emitted before with what follows, which would take more registers."""
        nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        self.b.call(nothing, [])

    def store_first(
        self, values: list[Any], targets: list[Any], vectors: int, count: Any, adds: Any, floor: Any
    ) -> None:
        """Store the first ``count`` numbers of each row of vectors, or add them to what is there: for edges.

        What is less than the number at the address ``floor`` becomes that.  With MASKS vectors are stored under these;
        elsewhere that would take longer than a call.
        """
        if MASKS:
            self.store_under_masks(values, targets, vectors, count, adds, floor)
            return
        room = cgutils.alloca_once(self.b, ir.ArrayType(self.scalar, self.lanes * len(values)))
        ends = cgutils.alloca_once(self.b, ir.ArrayType(I64, len(targets)))
        room, ends = self.b.ptrtoint(room, I64), self.b.ptrtoint(ends, I64)
        for v, value in enumerate(values):
            self.store(value, self.b.add(room, I64(self.bytes * v)))
        for m, target in enumerate(targets):
            self.store(target, self.b.add(ends, I64(8 * m)))
        function, new = private_function(self.b.module, f"edge_{self.suffix}", 7)
        if new:
            function.attributes.add("minsize")  # or LLVM would unroll its loops, which takes long
            b = ir.IRBuilder(function.append_basic_block("entry"))
            Words(b, self.dtype).write_edge(*function.args)
        passed = [room, I64(self.lanes * vectors), ends, I64(len(targets)), count, self.b.zext(adds, I64), floor]
        self.b.call(function, passed)

    def store_under_masks(
        self, values: list[Any], targets: list[Any], vectors: int, count: Any, adds: Any, floor: Any
    ) -> None:  # fmt: skip
        """Emit `store_first` in place.  All old values are loaded before any is stored: rows may repeat."""
        b = self.b
        exist = [self.before_lane(b.sub(count, I64(v * self.lanes))) for v in range(vectors)] * len(targets)
        places = [b.add(target, I64(self.bytes * v)) for target in targets for v in range(vectors)]
        sums = [self.variable(self.vector) for _ in values]
        for variable, value in zip(sums, values, strict=True):
            b.store(value, variable)
        with b.if_then(adds):
            for variable, place, mask in zip(sums, places, exist, strict=True):
                b.store(b.fadd(self.load_some(place, mask), b.load(variable)), variable)
        least = self.splat(self.load(floor, self.scalar))
        for variable, place, mask in zip(sums, places, exist, strict=True):
            self.store_some(self.at_least(b.load(variable), least), place, mask)

    def write_edge(self, room: Any, pitch: Any, ends: Any, rows: Any, count: Any, adds: Any, floor: Any) -> None:
        """Emit what `store_first` calls.  All rows are added up before any is written: they may repeat."""
        b, n = self.b, I64(self.lanes)
        least = self.splat(self.load(floor, self.scalar))
        added_rows = b.select(b.icmp_signed("!=", adds, I64(0)), rows, I64(0))
        for some, stores in ((added_rows, False), (rows, True)):
            with cgutils.for_range(b, some) as row, cgutils.for_range_slice(b, I64(0), count, n) as (lane, _):
                here = self.at(room, b.add(b.mul(row.index, pitch), lane))
                there = self.at(self.load(self.at(ends, row.index, 8), I64), lane)
                value, exist = self.load(here, self.vector), self.before_lane(b.sub(count, lane))
                if stores:
                    self.store_some(self.at_least(value, least), there, exist)
                else:
                    self.store(b.fadd(self.load_some(there, exist), value), here)
        b.ret_void()

    def load_some(self, address: Any, exist: Any) -> Any:
        """Load the lanes of a vector that exist; the others are 0, and their memory is not touched."""
        pointer = self.vector.as_pointer()
        kind = ir.FunctionType(self.vector, [pointer, I32, exist.type, self.vector])
        name = f"llvm.masked.load.{self.suffix}.p0{self.suffix}"
        function = cgutils.get_or_insert_function(self.b.module, kind, name)
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        return self.b.call(function, [self.b.inttoptr(address, pointer), I32(self.size), exist, zero])

    def store_some(self, value: Any, address: Any, exist: Any) -> None:
        """Store the lanes of a vector that exist; the memory of the others is not touched."""
        pointer = self.vector.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointer, I32, exist.type])
        name = f"llvm.masked.store.{self.suffix}.p0{self.suffix}"
        function = cgutils.get_or_insert_function(self.b.module, kind, name)
        self.b.call(function, [value, self.b.inttoptr(address, pointer), I32(self.size), exist])

    def constant(self, value: float) -> Any:
        """Return a vector of a number that is known now."""
        return ir.Constant(self.vector, [float(np.float32(value) if self.size == 4 else value)] * self.lanes)

    def splat(self, value: Any) -> Any:
        """Return a vector of one value, of the dtype or another type."""
        undefined = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first = self.b.insert_element(undefined, value, I32(0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def spread(self, value: Any, members: int, member: int) -> Any:
        """Return a vector of groups of lanes, in which each lane has what one member of its group has."""
        if members == 1:
            return value
        mask = [lane // members * members + member for lane in range(self.lanes)]
        undefined = ir.Constant(self.vector, ir.Undefined)
        return self.b.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(I32, self.lanes), mask))

    def from_lane(self, first: Any) -> Any:
        """Return a mask of the lanes from one on; of all, if it is negative."""
        return self.b.icmp_signed(">=", *self.lanes_and(first))

    def before_lane(self, last: Any) -> Any:
        """Return a mask of the lanes before one; of all, if there are no more."""
        return self.b.icmp_signed("<", *self.lanes_and(last))

    def lanes_and(self, lane: Any) -> tuple[Any, Any]:
        """Return the numbers of the lanes, and one of them in each lane: integers as large as the lanes are."""
        kind = ir.IntType(8 * self.size)
        numbers = ir.Constant(ir.VectorType(kind, self.lanes), list(range(self.lanes)))
        return numbers, self.splat(self.b.trunc(lane, kind) if kind.width < I64.width else lane)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a*b + c, in one instruction where there is one."""
        function = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(self.vector, [self.vector] * 3), f"llvm.fmuladd.{self.suffix}"
        )
        return self.b.call(function, [a, b, c])

    def at_least(self, value: Any, floor: Any) -> Any:
        """Return the larger of two scalars or vectors; NaN stays NaN."""
        return self.b.select(self.b.fcmp_ordered("<", value, floor), floor, value)

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


def address_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Return the address of an array's first number, behind which all others are to follow: not so of a view that steps back."""
    if kind.layout != "C":
        raise TypeError(f"a tile is given {kind}: expected an array that is C-contiguous")
    return builder.ptrtoint(context.make_array(kind)(context, builder, array).data, I64)


def passed_arguments(
    context: Any, builder: Any, named: dict[str, tuple[Any, Any]], names: str
) -> tuple[Any, Words, list[Any]]:
    """Turn a tile's arguments into those of its LLVM function: numbers as they are, and for ``array+offset`` an address.

    Returns the dtype of ``out``, its words, and what is passed.
    """
    dtype = named["out"][0].dtype
    w, passed = Words(builder, dtype), []
    for name in names.split():
        array, _, at = name.partition("+")
        kind, value = named[array]
        passed.append(
            w.at(address_of(context, builder, kind, value), named[at][1], 8 if array == "tables" else w.size)
            if at
            else value
        )
    return dtype, w, passed


def private_function(module: Any, name: str, n_args: int) -> tuple[Any, bool]:
    """Return the LLVM function of this name, and whether it is new and has to be written.

    It is never inlined: inside a large driver the same tile would lose its registers to what surrounds it.
    """
    if name in module.globals:
        return module.globals[name], False
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_args), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, True


def linked_function(context: Any, module: Any, name: str, n_args: int, write: Callable[[Any], None]) -> Any:
    """Declare the LLVM function of this name, of which all kernels share the code that ``write`` emits into it."""
    symbol = f"fastconv_{name}_{source_hash()[:16]}"
    kind = ir.FunctionType(ir.VoidType(), [I64] * n_args)
    link(context.codegen(), symbol, lambda own: write(ir.Function(own, kind, symbol)))
    return module.globals.get(symbol) or ir.Function(module, kind, symbol)


def tile_intrinsic(names: str, codegen: Callable[..., None], type_of: Callable[..., Any] | None = None) -> Any:
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


def equal(builder: Any, named: dict[str, tuple[Any, Any]], numbers: dict[str, int]) -> Any:
    """Emit whether arguments have these numbers."""
    equal = (builder.icmp_signed("==", named[name][1], I64(n)) for name, n in numbers.items())
    return functools.reduce(builder.and_, equal)


def tile_of_kinds(
    names: str, passed: str, name: str, keys: tuple[str, ...], kinds: Callable[[int], Iterable[tuple[int, ...]]],
    write: Callable[..., None],
) -> Any:  # fmt: skip
    """Make a tile of all ``kinds``, given the bytes of a number: the one is called whose numbers the arguments ``keys`` have.

    ``write(function, dtype, *kind)`` emits one.
    """

    def codegen(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
        dtype, w, given = passed_arguments(context, builder, named, passed)
        calls = []
        for kind in kinds(w.size):
            this = equal(builder, named, dict(zip(keys, kind, strict=True)))
            function, new = private_function(builder.module, "_".join(map(str, (name, w.suffix, *kind))), len(given))
            if new:
                write(function, dtype, *kind)
            calls.append((this, function))
        if calls:
            call_first(builder, calls, given)

    return tile_intrinsic(names, codegen)


def call_first(builder: Any, calls: list[tuple[Any, Any]], passed: list[Any]) -> None:
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
