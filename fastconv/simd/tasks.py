"""Calling tasks by their address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from .words import I64, Array, Words, address_of, tile_intrinsic

__all__ = ["APART", "MARKS", "compact", "run_tasks"]


APART = 16
"""Numbers between counters: each has a line of the cache, and more, for itself."""

MARKS = 64
"""Zeros that a worker's room begins with in each call, if it has so many numbers: a task can leave marks there of what it keeps
in the room for the next ones of the same worker."""


def _call_run_tasks(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit a loop that takes the next task of each worker's share, its own first, until there are no more.

    At its end is a fence: what tasks have stored past the caches is to be in memory before anyone is told that they are done.
    """
    w = Words(builder, named["a"][0].dtype)
    arrays = [address_of(context, builder, *named[name]) for name in ("numbers", "tables", "a", "b", "c", "d", "room")]
    function = ir.FunctionType(ir.VoidType(), [I64] * 10)
    task = builder.inttoptr(named["address"][1], function.as_pointer())
    counters = address_of(context, builder, *named["counters"])
    tasks, worker, workers = (named[name][1] for name in ("tasks", "worker", "workers"))
    following = w.variable(I64)
    room_size = named["room_size"][1]
    with builder.if_then(builder.icmp_signed(">=", room_size, I64(MARKS))):
        marks = w.at(arrays[-1], builder.mul(worker, room_size))
        for k in range(MARKS):
            w.store(w.scalar(0), w.at(marks, I64(k)))
    with cgutils.for_range(builder, workers) as turn:
        share = builder.urem(builder.add(worker, turn.index), workers)
        first, last = (builder.udiv(builder.mul(builder.add(share, I64(n)), tasks), workers) for n in (0, 1))
        counter = builder.inttoptr(w.at(counters, share, 8 * APART), I64.as_pointer())

        def are_left() -> Any:
            taken = builder.atomic_rmw("add", counter, I64(1), "monotonic")
            builder.store(builder.add(first, taken), following)
            return builder.icmp_signed("<", builder.load(following), last)

        with w.repeat(are_left):
            builder.call(task, [builder.load(following), worker, *arrays, room_size])
    builder.fence("seq_cst")


def _run_tasks_twin(
    address: Callable[..., None], tasks: int, counters: Array, worker: int, workers: int, *arguments: Any
) -> None:  # fmt: skip
    room, room_size = arguments[-2:]
    if room_size >= MARKS:
        room[worker * room_size :][:MARKS] = 0
    for turn in range(workers):
        share = (worker + turn) % workers
        first, last = share * tasks // workers, (share + 1) * tasks // workers
        while first + counters[share * APART] < last:
            task = first + int(counters[share * APART])
            counters[share * APART] += 1
            address(task, worker, *arguments)


run_tasks = (
    _run_tasks_twin
    if config.DISABLE_JIT
    else tile_intrinsic(
        "address, tasks, counters, worker, workers, numbers, tables, a, b, c, d, room, room_size", _call_run_tasks
    )
)
"""Call the function at an address for each task that is left.

Tasks are shared out evenly, neighbours together: a worker takes those of its own share first, and then what others have left.
``counters`` say how many of each worker's have been taken, ``APART`` numbers apart.
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
