"""A weight that is packed once and used often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import Array, empty, plain

__all__ = ["PreparedWeight"]


class PreparedWeight:
    """An immutable snapshot of a weight, with what kernels make of it before they use it; made by `fastconv.prepare`.

    It is accepted wherever a weight is.  What a kernel needs of it, for whichever algorithm, layout and pass, is made on first
    use and kept.

    Attributes
    ----------
    array : ndarray
        The weight, read-only.
    flat : ndarray
        The same as kernels take it.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> weight = np.ones((4, 3, 3, 3), np.float32)
    >>> prepared = fastconv.prepare(weight)
    >>> weight[:] = 0  # the snapshot stays as it is
    >>> float(fastconv.conv2d(np.ones((3, 3, 3), np.float32), prepared)[0, 0, 0])
    27.0
    >>> prepared
    PreparedWeight(shape=(4, 3, 3, 3), dtype=float32)
    """

    __slots__ = ("_lock", "_panels", "array", "flat")

    def __init__(self, array: Array) -> None:
        self.array = np.array(array, array.dtype.newbyteorder("="), order="C")
        self.array.flags.writeable = False
        self.flat = plain(self.array, (-1,), self.array.dtype)
        self._panels: dict[Any, Array] = {}
        self._lock = threading.Lock()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What lets NumPy see it as the array."""
        interface: dict[str, Any] = self.array.__array_interface__
        return interface

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weight."""
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the snapshot and of all that was made of it."""
        return self.array.nbytes + sum(panels.nbytes for panels in self._panels.values())

    def holds(self, weight: Array) -> bool:
        """Say whether a weight still has every bit that it had; reading both is much quicker than preparing one."""
        same = weight.shape == self.shape and weight.dtype == self.dtype
        return same and bool((weight.reshape(-1).view(np.uint8) == self.flat.view(np.uint8)).all())

    def panels(self, key: Any, size: int, make: Callable[[Array, Array], None]) -> Array:
        """Return the ``size`` numbers that ``make(weight, numbers)`` writes, made once for each key."""
        with self._lock:
            if key not in self._panels:
                panels = empty("a prepared weight", (size,), self.array.dtype)
                make(self.flat, panels)
                self._panels[key] = panels
            return self._panels[key]

    def __repr__(self) -> str:
        return f"PreparedWeight(shape={self.shape}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedWeight, (self.array,)

    def __deepcopy__(self, memo: Any) -> PreparedWeight:
        return self
