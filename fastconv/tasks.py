"""Tasks: the parts into which a pass is cut, and the one parallel loop that runs them.

A task is a function of a number and of arrays.  It is compiled by itself and called by its address, so the parallel loop is
compiled once for each dtype, whatever it runs.  There is a worker for each thread.  It has scratch memory of its own and a share
of the tasks, neighbours that write to memory of their own; when it is done with these, it takes what others have left: a core
that is disturbed does less, and holds nobody up.  What a task computes does not depend on who does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, config, types

from .jit import callback, kernel, linked_kernel, parallel_kernel, prange, signed
from .scratch import rooms
from .simd import APART, MARKS, run_tasks
from .threads import sharing

__all__ = ["Task", "task"]

Array = np.ndarray[Any, Any]

NOTHING = {char: np.zeros(1, char) for char in "fd"}
"""What is passed in place of an array that a task does not use."""

ENDLESS = 2**60
"""Length of an array of which only the address is passed."""


class Task:
    """A function ``func(task, room, numbers, tables, a, b, c, d)`` that computes one part of a pass.

    ``numbers`` and ``tables`` are flat int64 arrays, ``a`` to ``d`` are flat arrays of one dtype, of which their order is the
    function's own, and ``room`` is the worker's scratch memory of the same dtype.
    """

    def __init__(self, func: Callable[..., None]) -> None:
        self.__wrapped__ = func
        self.__name__, self.__doc__ = func.__name__, func.__doc__
        self._addresses: dict[str, Any] = {}

    def _address(self, char: str) -> Any:
        """Compile the function for a dtype."""
        func = self.__wrapped__
        if config.DISABLE_JIT:

            def interpreted(task, worker, numbers, tables, a, b, c, d, room, room_size):  # type: ignore[no-untyped-def]
                func(task, room[worker * room_size : (worker + 1) * room_size], numbers, tables, a, b, c, d)

            return interpreted
        body = linked_kernel(func)

        def entry(task, worker, numbers, tables, a, b, c, d, room, room_size):  # type: ignore[no-untyped-def]
            body(
                task, carray(room, (ENDLESS,))[worker * room_size :], carray(numbers, (ENDLESS,)), carray(tables, (ENDLESS,)),
                carray(a, (ENDLESS,)), carray(b, (ENDLESS,)), carray(c, (ENDLESS,)), carray(d, (ENDLESS,)),
            )  # fmt: skip

        data = types.CPointer(types.float32 if char == "f" else types.float64)
        table = types.CPointer(types.int64)
        kinds = (types.int64, types.int64, table, table, data, data, data, data, data, types.int64)
        return callback(entry, f"{func.__module__}.{func.__name__}", *kinds)

    def __call__(
        self, tasks: int, numbers: Array, tables: Array, *arrays: Array, room: int = 0, alone: bool = False
    ) -> None:
        """Run tasks 0 to ``tasks`` - 1: on the calling thread alone, or on all, each with room for so many numbers.

        If there is room it begins with MARKS.
        """
        dtype = arrays[0].dtype
        room = max(room, MARKS) if room else 0
        address = self._addresses.get(dtype.char)
        if address is None:
            address = self._addresses[dtype.char] = self._address(dtype.char)
        a, b, c, d = arrays if len(arrays) == 4 else (*arrays, *(NOTHING[dtype.char],) * (4 - len(arrays)))
        if alone or tasks < 2:
            scratch, _ = rooms(1, room, dtype) if room else (NOTHING[dtype.char], 0)
            run_alone(address, tasks, numbers, tables, a, b, c, d, scratch, room)
        else:
            workers = min(sharing(), tasks)
            scratch, distance = rooms(workers, room, dtype) if room else (NOTHING[dtype.char], 0)
            run_together(address, tasks, workers, numbers, tables, a, b, c, d, scratch, distance)


def task(func: Callable[..., None]) -> Task:
    """Make a task of a function."""
    return Task(func)


@parallel_kernel
def run_together(
    address: Any, tasks: int, workers: int, numbers: Array, tables: Array, a: Array, b: Array, c: Array, d: Array,
    scratch: Array, room: int,
) -> None:  # fmt: skip
    """Run tasks on all threads."""
    counters = np.zeros(APART * workers, np.int64)
    for worker in prange(workers):
        run_tasks(address, tasks, counters, signed(worker), workers, numbers, tables, a, b, c, d, scratch, room)


@kernel
def run_alone(
    address: Any, tasks: int, numbers: Array, tables: Array, a: Array, b: Array, c: Array, d: Array, scratch: Array, room: int
) -> None:  # fmt: skip
    """Run tasks on the calling thread."""
    counters = np.zeros(1, np.int64)
    run_tasks(address, tasks, counters, 0, 1, numbers, tables, a, b, c, d, scratch, room)
