"""What comes in as an array and what goes out as one: the checks that every public function begins with.

Below this file arrays are plain: native byte order, aligned, C-contiguous and marked writable (kernels never write to
their inputs, but Numba compiles a second kernel for a read-only array).
"""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .limits import require_memory, reserves

__all__ = ["Array", "as_array", "check_out", "common_dtype", "empty", "finish", "plain", "sum_dtype"]

Array = np.ndarray[Any, Any]

KINDS = "bool, integers, float16, float32, float64, complex64 or complex128"


def as_array(name: str, value: Any) -> Array:
    """Take an ndarray, or view a CPU object with ``__dlpack__`` or ``__array_interface__`` as one.

    Raises
    ------
    TypeError
        If the object is no array, or its dtype is none that can be convolved.
    """
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: expected one without a mask, for example {name}.filled(0)")
    elif isinstance(value, (np.ndarray, np.generic)) or _offers(value, "__array_interface__"):
        try:
            array = np.asarray(value)
        except Exception as error:
            raise TypeError(f"{name} offers an array that NumPy cannot view ({error}): expected an ndarray") from None
    elif _offers(value, "__dlpack__"):
        try:
            array = np.from_dlpack(value)
        except Exception as error:
            raise TypeError(
                f"{name} is a {type(value).__name__} that NumPy cannot view ({error}): expected an array in CPU memory "
                f"that takes no part in automatic differentiation"
            ) from None
    else:
        raise TypeError(
            f"{name} is {_described(value)}: expected an ndarray, or an object with __dlpack__ or __array_interface__"
        )
    if not can_be_convolved(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}: expected {KINDS}")
    return array


def _offers(value: Any, attribute: str) -> bool:
    try:
        return hasattr(value, attribute)
    except Exception:  # it is there, but fails: NumPy will meet the same error, and `as_array` reports it
        return True


def can_be_convolved(dtype: np.dtype[Any]) -> bool:
    """Say whether there are loops that add this dtype."""
    return (
        dtype.kind in "biu"
        or (dtype.kind == "f" and dtype.itemsize <= 8)
        or (dtype.kind == "c" and dtype.itemsize <= 16)
    )


def _described(value: Any) -> str:
    text = repr(value)
    return f"a {type(value).__name__}" if len(text) > 40 else f"{text} ({type(value).__name__})"


def common_dtype(**arrays: Array | None) -> np.dtype[Any]:
    """Return the one dtype (in native byte order) of all arrays that are given.

    Raises
    ------
    TypeError
        If they differ.
    """
    given: list[np.dtype[Any]] = [array.dtype for array in arrays.values() if array is not None]
    if given[0].isnative and given.count(given[0]) == len(given):  # as nearly always
        return given[0]
    (first, reference), *others = [(name, array) for name, array in arrays.items() if array is not None]
    dtype: np.dtype[Any] = reference.dtype.newbyteorder("=")
    for name, array in others:
        if array.dtype != dtype and array.dtype.newbyteorder("=") != dtype:
            raise TypeError(f"{name} has dtype {array.dtype}, {first} has {dtype}: expected one dtype for both")
    return dtype


def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which products are summed: int64 for integers, float32 for float16, else the dtype itself."""
    if dtype.kind in "biu":
        return np.dtype(np.int64)
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of results: that of the inputs, but int64 for integers."""
    return np.dtype(np.int64) if dtype.kind in "biu" else dtype


def is_channels_last(array: Array, ndim: int) -> bool:
    """Say whether an array (..., C, *spatial) lies channels-last in memory; strides that fit both layouts say no."""
    return not array.flags.c_contiguous and _channels_to_end(array, ndim).flags.c_contiguous


def _channels_to_end(array: Array, ndim: int) -> Array:
    return array.transpose(_to_end(array.ndim, ndim))


@functools.cache
def _to_end(axes: int, ndim: int) -> tuple[int, ...]:
    """Order axes, of which so many are spatial, as they lie channels-last."""
    first = axes - ndim
    return (*range(first - 1), *range(first, axes), first - 1)


@functools.cache
def _from_end(axes: int) -> tuple[int, ...]:
    """Order the axes (..., D, H, W, C) as (..., C, D, H, W)."""
    return (*range(axes - 4), axes - 1, *range(axes - 4, axes - 1))


def _channels_last_view(memory: Array, shape: Sequence[int]) -> Array:
    """View contiguous memory (..., D, H, W, C) as ``shape`` (..., C, D, H, W)."""
    *first, c, depth, height, width = shape
    return memory.reshape(*first, depth, height, width, c).transpose(_from_end(len(shape)))


def plain(array: Array, shape: Sequence[int], dtype: np.dtype[Any], ndim: int = 0) -> Array:
    """Return the array's values with this shape and dtype, without a copy if they lie in memory as they should.

    That is C-contiguous; or, where ``ndim`` spatial axes are named and the array lies channels-last, as a channels-last view.
    """
    flags = array.flags
    if ndim and not flags.c_contiguous:
        turned = _channels_to_end(array, ndim)
        if turned.flags.c_contiguous:
            return _channels_last_view(plain(turned, (-1,), dtype), shape)
    if array.dtype != dtype or not (flags.c_contiguous and flags.aligned and array.dtype.isnative):
        copy = empty("a copy of an array", array.shape, dtype)
        np.copyto(copy, array, casting="unsafe")
        array = copy
    elif not flags.writeable:
        array = np.asarray(_Writable(array))
    return array.reshape(shape)


class _Writable:
    """Offers a read-only array's memory as writable; for kernels, which do not write to it."""

    def __init__(self, array: Array) -> None:
        self.owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def empty(name: str, shape: Sequence[int], dtype: np.dtype[Any], beside: Array | None = None) -> Array:
    """Allocate an array, in memory that the calling thread had for one that is gone, if that fits.

    A large one begins in another place of a page than what it is computed from, which is to lie ``beside`` it.

    Raises
    ------
    MemoryError
        If it is larger than what is free: asking the system could succeed, and using it could not.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_POOLED:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _lease(name, shape, size, beside))


def new_array(
    name: str, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], beside: Array | None = None
) -> tuple[Array, Array]:  # fmt: skip
    """Allocate an array with these strides, of elements that lie one behind the other in some order; return its memory, too.

    It lies as one of `empty` does.

    Raises
    ------
    MemoryError
        As `empty`.
    """
    size = math.prod(shape)
    if size * dtype.itemsize < LEAST_POOLED:
        memory = np.empty(size, dtype)
        return memory, np.ndarray(shape, dtype, memory, 0, strides)
    lease = _lease(name, shape, size * dtype.itemsize, beside)
    return np.ndarray((size,), dtype, lease), np.ndarray(shape, dtype, lease, 0, strides)


def _lease(name: str, shape: Sequence[int], size: int, beside: Array | None) -> _Lease:
    """Take at least ``size`` bytes of the calling thread's pool, or of the system's memory."""
    try:
        pool: _Pool = _local.pool
    except AttributeError:
        pool = _local.pool = _Pool()
    taken = size if size < LEAST_PLACED else size + PAGE
    memory = pool.take(taken)
    if memory is None:
        require_memory(f"{name} of shape {tuple(shape)}", size)
        memory = from_line(np.empty(taken + LINE, np.uint8), taken).view(_Memory)
    return pool.lend(memory, size, beside)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def from_line(memory: Array, size: int) -> Array:
    """Return the first ``size`` bytes of memory that begin with a line of the cache, if it is a LINE larger."""
    first = -_address(memory) % LINE
    return memory[first : first + size]


LINE = 64
"""Bytes of a line of the cache.  Arrays begin with one, so that a vector lies in one line, not in two."""

PAGE, APART, LEAST_PLACED = 4096, 5 * LINE, 2**17
"""Bytes of a page; by how many a large array begins earlier in one than what it is computed from; and what is large: to look up
where arrays begin takes as long as to compute a small one.

What is loaded waits for what is still to be stored if both lie in the same place of their pages, as processors look at nothing
else first.  A tile that reads pixels of 1024 channels and writes such took twice as long where one array began a line behind the
other; with 512 channels that was so for half a page and a line, too, and so on.  Five lines are far from multiples of 256 bytes.
"""

LEAST_POOLED, MOST_POOLED = 2**10, 2**30
"""Bytes from which on an array is aligned and takes memory of arrays that are gone; and bytes that a thread keeps for that.

The system gives large arrays fresh pages and takes them back at once: to have each page cleared by it at the first touch takes
longer than to write a result.  NumPy itself keeps the memory of smaller arrays.
"""


def release() -> None:
    """Give the memory of arrays that the calling thread has let go of back to the system."""
    _local.__dict__.pop("pool", None)


reserves.append(release)


class _Pool:
    """Memory of a thread's arrays that are gone, by its size: the same steps find again what they left.

    No code of Python runs when an array goes, for an exception there, such as Ctrl-C's, would be lost: a weak reference appends
    itself to a queue, which is read when memory is next asked for.  So ``size`` counts what is lent as well as what waits.
    """

    def __init__(self) -> None:
        self.size = 0
        self._place = 0
        self._lent: dict[int, _Loan] = {}
        self._returned: deque[_Loan] = deque()
        self._waiting: dict[int, list[_Memory]] = {}

    def take(self, size: int) -> _Memory | None:
        """Take the memory of this size that was used last, which may still be in the cache; else any up to twice as large."""
        while self._returned:
            loan = self._returned.popleft()
            if self._lent.pop(id(loan), None) is not None:
                self._waiting.setdefault(loan.memory.size, []).append(loan.memory)
        if size not in self._waiting:
            size = min((known for known in list(self._waiting) if size < known <= 2 * size), default=0)
        return self._pop(size, -1)

    def lend(self, memory: _Memory, size: int, beside: Array | None) -> _Lease:
        """Lend memory, and keep it when it returns, in place of what has been waiting, or lent, for longest."""
        lease = (memory if size < LEAST_PLACED else self._placed(memory, beside)).view(_Lease)
        if memory.size <= MOST_POOLED:
            while self.size + memory.size > MOST_POOLED:
                self._forget()
            loan = _Loan(lease, self._returned.append)
            loan.memory = memory
            self._lent[id(loan)] = loan
            self.size += memory.size
        return lease

    def _placed(self, memory: Array, beside: Array | None) -> Array:
        """Return what a large array takes of memory: beside another, or else in another place than the last one."""
        self._place = (self._place if beside is None else _address(beside)) - APART
        first = (self._place - _address(memory)) % PAGE
        return memory[first + -first % LINE :]

    def _forget(self) -> None:
        for size in list(self._waiting):
            self._pop(size, 0)
            return
        for loan in list(self._lent):
            self.size -= self._lent.pop(loan).memory.size
            return
        self.size = 0  # Ctrl-C came between two lines

    def _pop(self, size: int, index: int) -> _Memory | None:
        waiting = self._waiting.get(size)
        if not waiting:
            return None
        memory = waiting.pop(index)
        if not waiting:
            del self._waiting[size]
        self.size -= size
        return memory


class _Memory(np.ndarray[Any, Any]):
    """What is kept.  It has a class of its own, so that a view of a lease refers to the lease.

    NumPy lets a view refer to what owns its memory, but does not go past an array whose own base is of another class than the
    view.
    """

    __slots__ = ()  # without a dictionary it is made sooner


class _Lease(np.ndarray[Any, Any]):
    """What arrays view: gone when all of them are.

    They may go in another thread, as under PyTorch, where threads of its own let go of what a forward pass has made.
    """

    __slots__ = ()


class _Loan(weakref.ref["_Lease"]):
    """Refers to a lease, and keeps its memory."""

    __slots__ = ("memory",)
    memory: _Memory


_local = threading.local()


@functools.cache
def machine_memory() -> int:
    """Return the machine's memory in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system can say
        return 2**63 - 1


def check_out(name: str, out: Any, shape: Sequence[int], dtype: np.dtype[Any], inputs: dict[str, Array]) -> None:
    """Check that ``out`` can take a result.

    Raises
    ------
    TypeError
        If it is no ndarray or has another dtype.
    ValueError
        If it has another shape, is read-only, writes one element twice, or overlaps an input.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} is {_described(out)}: expected an ndarray of shape {tuple(shape)} and dtype {dtype}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: expected one without a mask")
    if out.dtype != dtype:
        raise TypeError(f"{name} has dtype {out.dtype}: expected {dtype}")
    if out.shape != tuple(shape):
        raise ValueError(f"{name} has shape {out.shape}: expected {tuple(shape)}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only: expected a writable array of shape {tuple(shape)}")
    if _repeats(out):
        raise ValueError(f"{name} has strides {out.strides}: expected an array without repeated elements")
    for other, array in inputs.items():
        if overlap(out, array):
            raise ValueError(f"{name} overlaps {other}: expected an array of its own")


def _repeats(array: Array) -> bool:
    """Say whether two indices may lead to the same memory: some axis steps over less than the shorter steps span."""
    span = array.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if step < span:
            return array.size > 0
        span += step * (n - 1)
    return False


def overlap(a: Array, b: Array) -> bool:
    """Say whether two arrays share an element; when that is too hard to tell, say yes."""
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def target(
    name: str, out: Array | None, shape: Sequence[int], dtype: np.dtype[Any], fresh: bool, ndim: int = 0,
    beside: Array | None = None,
) -> Array:  # fmt: skip
    """Return the array that a kernel writes to: ``out`` itself if it lies as it should and need not be fresh.

    With ``ndim`` spatial axes named it is a channels-last view, else C-contiguous.  A new one is placed as `empty` does.
    """
    if out is not None and not fresh and out.dtype == dtype and out.flags.behaved and out.dtype.isnative:
        out = np.asarray(out)  # of a subclass the kernels see the plain array
        if not ndim and out.flags.c_contiguous:
            return out.reshape(shape)
        if ndim and _channels_to_end(out, ndim).flags.c_contiguous:
            return _channels_last_view(_channels_to_end(out, ndim).reshape(-1), shape)
    memory = empty(name, shape, dtype, beside)
    return _channels_last_view(memory, shape) if ndim else memory


def finish(
    result: Array, out: Array | None, shape: Sequence[int], dtype: np.dtype[Any], accumulate: bool, ndim: int = 0
) -> Array:
    """Hand out what a kernel wrote: as a new array of this shape and dtype, or in ``out``, or added to it.

    With ``ndim`` spatial axes named, a new array lies channels-last.
    """
    result = result.reshape(shape)
    if out is None:
        if ndim and not _channels_to_end(result, ndim).flags.c_contiguous:
            first = len(shape) - ndim
            require_memory(f"a copy of a result of shape {tuple(shape)}", result.nbytes)
            memory = np.ascontiguousarray(_channels_to_end(result, ndim))
            result = memory.transpose(*range(first - 1), len(shape) - 1, *range(first - 1, len(shape) - 1))
        return result if result.dtype == dtype else result.astype(dtype)
    if accumulate:
        np.add(out, result, out=out, casting="same_kind")
    elif not np.may_share_memory(out, result):
        np.copyto(out, result, casting="same_kind")
    return out
