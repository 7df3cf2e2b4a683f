"""Calling tasks by their address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from .words import I64, Array, Words, address_of, tile_intrinsic

__all__ = ["compact", "run_tasks"]


def _call_run_tasks(context: Any, builder: Any, named: dict[str, tuple[Any, Any]]) -> None:
    """Emit a loop that takes the next task from a counter that all workers share, until there are no more.

    At its end is a fence: what tasks have stored past the caches is to be in memory before anyone is told that they are done.
    """
    w = Words(builder, named["a"][0].dtype)
    arrays = [address_of(context, builder, *named[name]) for name in ("numbers", "tables", "a", "b", "c", "d", "room")]
    function = ir.FunctionType(ir.VoidType(), [I64] * 10)
    task = builder.inttoptr(named["address"][1], function.as_pointer())
    counter = builder.inttoptr(address_of(context, builder, *named["counter"]), I64.as_pointer())
    following = w.variable(I64)

    def are_left() -> Any:
        builder.store(builder.atomic_rmw("add", counter, I64(1), "monotonic"), following)
        return builder.icmp_signed("<", builder.load(following), named["tasks"][1])

    with w.repeat(are_left):
        builder.call(task, [builder.load(following), named["worker"][1], *arrays, named["room_size"][1]])
    builder.fence("seq_cst")


def _run_tasks_twin(address: Callable[..., None], tasks: int, counter: Array, worker: int, *arguments: Any) -> None:
    while counter[0] < tasks:
        task = int(counter[0])
        counter[0] += 1
        address(task, worker, *arguments)


run_tasks = (
    _run_tasks_twin
    if config.DISABLE_JIT
    else tile_intrinsic(
        "address, tasks, counter, worker, numbers, tables, a, b, c, d, room, room_size", _call_run_tasks
    )
)
"""Call the function at an address for each task that is left: ``counter`` holds the next, and is shared by all workers."""


@intrinsic
def _compact_intrinsic(typingctx):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("minsize")
        return context.get_dummy_value()

    return types.void(), codegen


compact = (lambda: None) if config.DISABLE_JIT else _compact_intrinsic
"""Called in a kernel, has LLVM keep it small: one whose time goes into tiles, so that unrolled loops would only take time to
compile."""
