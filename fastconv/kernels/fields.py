"""What a task is told: numbers with names, which Python lays one behind the other, and kernels read."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["Fields"]

Array = np.ndarray[Any, Any]


class Fields:
    """Names of int64 numbers, in the order in which they lie in a flat array.

    Parameters
    ----------
    name : str
        What the tuple is called that is read.
    text : str
        The names; where one stands for a tuple, its length follows: ``"images steps:2"``.
    after : Fields or None
        What lies in front of them.

    Raises
    ------
    ValueError
        If a name comes twice, or among those in front, too.

    Examples
    --------
    >>> numbers = Fields("Image", "channels size:2").lay(size=(5, 7), channels=3)
    >>> numbers.tolist()
    [3, 5, 7]
    >>> Fields("Image", "channels size:2").read(numbers)
    Image(channels=3, size=(5, 7))
    """

    def __init__(self, name: str, text: str, after: Fields | None = None) -> None:
        words = [word.partition(":") for word in text.split()]
        self.counts = {field: int(count or 1) for field, _, count in words}
        self.before: dict[str, int] = {} if after is None else after.before | after.counts
        if len(self.counts) < len(words) or self.counts.keys() & self.before.keys():
            raise ValueError(f"{name} is {text!r} behind {list(self.before)}: expected every name once")
        self.kind: Any = collections.namedtuple(name, self.counts)  # type: ignore[misc]

    @property
    def begin(self) -> int:
        """Count the numbers in front."""
        return sum(self.before.values())

    @property
    def size(self) -> int:
        """Count the numbers of these names."""
        return sum(self.counts.values())

    def place(self, name: str) -> int:
        """Return where the first number of this name lies."""
        names = list(self.counts)
        return self.begin + sum(self.counts[each] for each in names[: names.index(name)])

    def lay(self, **values: Any) -> Array:
        """Lay numbers out, those in front included; each name has to have its values.

        Raises
        ------
        ValueError
            If names lack, are not known, or have more or fewer numbers.
        """
        counts = self.before | self.counts
        tuples = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
        given = {name: len(value) for name, value in tuples.items()}
        if given != counts:
            wrong = {name for name in counts.keys() | given.keys() if counts.get(name) != given.get(name)}
            raise ValueError(f"{self.kind.__name__} is told {given}, which differs in {wrong}: expected {counts}")
        return np.array([int(n) for name in counts for n in tuples[name]], np.int64)

    def row(self, **values: int) -> Any:
        """Return a row of a table whose rows are such numbers, each of one name."""
        return self.kind(**values)

    def read(self, numbers: Array) -> Any:
        """Return the numbers of these names, without those in front, as a named tuple of ints and tuples of ints."""
        ints = iter(numbers[self.begin :])
        values = [tuple(map(int, itertools.islice(ints, count))) for count in self.counts.values()]
        return self.kind(*(value if len(value) > 1 else value[0] for value in values))

    def read_row(self, table: Array, at: int, number: int) -> Any:
        """Return the same of a row of a table that begins ``at`` a place."""
        return self.read(table[at + number * self.size :])

    def reader(self) -> Callable[[Array], Any]:
        """Return `read` for kernels, which load what they use of it."""
        if config.DISABLE_JIT:
            return self.read
        told, load = self._loading()

        @intrinsic
        def read(typing_context: Any, numbers: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                array = context.make_array(signature.args[0])(context, builder, args[0])
                return load(context, builder, array.data)

            return told(numbers), codegen

        result: Callable[[Array], Any] = read
        return result

    def row_reader(self) -> Callable[[Array, int, int], Any]:
        """Return `read_row` for kernels."""
        if config.DISABLE_JIT:
            return self.read_row
        told, load = self._loading()

        @intrinsic
        def read_row(typing_context: Any, table: Any, at: Any, number: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                array = context.make_array(signature.args[0])(context, builder, args[0])
                place = builder.add(args[1], builder.mul(args[2], args[2].type(self.size)))
                return load(context, builder, builder.gep(array.data, [place]))

            return told(table, types.int64, types.int64), codegen

        result: Callable[[Array, int, int], Any] = read_row
        return result

    def _loading(self) -> tuple[Any, Callable[..., Any]]:
        """Return the tuple's type, and what emits the loads of its numbers."""
        counts = list(self.counts.values())
        told = types.NamedTuple([types.UniTuple(types.int64, n) if n > 1 else types.int64 for n in counts], self.kind)

        def load(context: Any, builder: Any, data: Any) -> Any:
            values, at = [], self.begin
            for kind, count in zip(told.types, counts, strict=True):
                each = [builder.load(cgutils.gep_inbounds(builder, data, at + k)) for k in range(count)]
                values.append(context.make_tuple(builder, kind, each) if count > 1 else each[0])
                at += count
            return context.make_tuple(builder, told, values)

        return told, load
