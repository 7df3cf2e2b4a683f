"""Calls that come again: all that is known of one but its arrays, found by the form of its arguments.

What a call is checked for before a kernel runs is its *form*: the types, dtypes, shapes and strides of its arrays, and its other
arguments; never what the arrays hold.  So a call whose form has passed the checks passes them again, and what was found for it
holds again: the row of the plan's table, its program, how the result lies.  To find that anew takes longer than a small layer.

Only calls are remembered that read arrays as they lie, and return a new one or write to one as it lies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import plan
from .arrays import Array, new_array
from .geometry import ConvGeometry, is_exact
from .limits import SMALL, require_memory
from .prepared import PreparedWeight

__all__ = ["Bound", "Form", "apart", "bind", "factors", "flat", "form_of", "recall", "remember"]

MOST = 4096
"""Calls that are remembered; with one more all are forgotten."""

Form = tuple[Any, ...]

_calls: dict[Form, Any] = {}
_table = plan.TABLE
"""The table from which the rows of these calls are."""


def form_of(arrays: Sequence[Any], flags: tuple[Any, ...], values: tuple[Any, ...]) -> Form | None:
    """Return what tells a call from others that are to be checked anew; None if this one is to be, whatever came before it.

    Equal values need not be of equal types, as 1, 1.0 and True: flags have to be bools, values ints, strings or tuples of them.
    """
    if not is_exact(values):
        return None
    for flag in flags:
        if type(flag) is not bool:
            return None
    form: list[Any] = [plan.get_precision(), flags, values]
    for array in arrays:
        kind = type(array)
        if kind is np.ndarray and array.flags.behaved:
            form += array.dtype, array.shape, array.strides
        elif array is None:
            form.append(None)
        elif kind is PreparedWeight:
            form += kind, array.dtype, array.shape
        else:
            return None
    return tuple(form)


def recall(form: Form | None) -> Any:
    """Return what was remembered for a form; None if nothing was."""
    return _calls.get(form) if form is not None and plan.TABLE is _table else None


def remember(form: Form | None, call: Any) -> None:
    """Remember a call that has passed all checks."""
    global _table
    if form is None:
        return
    if plan.TABLE is not _table or len(_calls) >= MOST:
        _calls.clear()
        _table = plan.TABLE
    _calls[form] = call


def flat(array: Any) -> Any:
    """Return the memory of an operand of a remembered call."""
    return array.flat if type(array) is PreparedWeight else array.ravel("K")


def factors(weight: Any) -> Any:
    """Return a weight as a remembered call takes it: its memory, or what was prepared of it."""
    return weight if type(weight) is PreparedWeight else weight.ravel("K")


def apart(outs: Sequence[Array | None], *inputs: Any) -> bool:
    """Say whether arrays that a remembered call is to write to lie apart from what it reads, and from each other.

    Those that only may overlap count as if they did: such a call is checked anew.
    """
    others = [array for array in inputs if type(array) is np.ndarray]
    for out in outs:
        if out is not None:
            if any(np.may_share_memory(out, other) for other in others):
                return False
            others.append(out)
    return True


class Bound:
    """A pass of which all is known but its arrays: called with flat ones, it returns a new array, or the one that is given.

    Parameters
    ----------
    computes : str
        One of `fastconv.plan.PASSES`.
    run : callable
        ``run(out, *inputs)`` with flat arrays.
    like : ndarray
        What it computed once: other results have its dtype, shape and strides.
    added : bool
        Whether a result is added to the array that is given, after all is computed.
    needed : int
        Bytes of memory that it takes, which are held against what is free each time.
    """

    __slots__ = ("added", "computes", "dtype", "needed", "run", "shape", "strides")

    def __init__(
        self, computes: str, run: Callable[..., None], like: Array, added: bool = False, needed: int = 0
    ) -> None:
        self.computes, self.run, self.added, self.needed = computes, run, added, needed
        self.dtype, self.shape, self.strides = like.dtype, like.shape, like.strides

    def _target(self, out: Array | None, beside: Array) -> tuple[Array, Array]:
        if self.needed >= SMALL:
            require_memory(f"{self.computes} of shape {self.shape}, with scratch memory,", self.needed)
        if out is None or self.added:
            return new_array(self.computes, self.shape, self.strides, self.dtype, beside)
        return out.ravel("K"), out

    def _finish(self, result: Array, out: Array | None) -> Array:
        return np.add(out, result, out=out) if out is not None and self.added else result

    def __call__(self, *inputs: Any, out: Array | None = None) -> Array:
        """Compute the pass of flat arrays."""
        memory, result = self._target(out, inputs[0])
        self.run(memory, *inputs)
        return self._finish(result, out)

    def with_another(
        self, other: Bound, *inputs: Any, outs: tuple[Array | None, Array | None] = (None, None)
    ) -> tuple[Array, Array]:
        """Compute the pass and, in the same run, what the ``other`` returns."""
        (memory, result), (other_memory, other_result) = (
            bound._target(out, inputs[0]) for bound, out in zip((self, other), outs, strict=True)
        )
        self.run(memory, *inputs, other_memory)
        return self._finish(result, outs[0]), other._finish(other_result, outs[1])


def bind(
    row: plan.Row, geometry: ConvGeometry, given: Sequence[Any], taken: Sequence[Any], written: Array, returned: Array,
    floor: float | None = None, adds: bool = False, added: bool = False, needed: int = 0,
) -> Bound | None:  # fmt: skip
    """Bind what a row has just done with the arrays that it was ``given``, and has ``taken`` as these; None if that cannot be.

    It cannot where arrays had to be copied.  A result that the row itself ``adds`` to is a term of its sums; ``added`` says that
    what it has ``written`` was added to an array afterwards; ``needed`` are the bytes of memory that it took.
    """
    if row.bind is None or written.size == 0 or not np.may_share_memory(written, returned):
        return None
    if any(a is not b and not np.may_share_memory(a, b) for a, b in zip(given, taken, strict=True)):
        return None
    more = {"adds": True} if adds else {}
    run = row.bind(geometry, *taken, written, **more)
    return Bound(row.computes, run if floor is None else functools.partial(run, floor=floor), returned, added, needed)
