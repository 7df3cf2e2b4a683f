"""The checks that all layers share.  Every message names the argument, what came and what would fit."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import arrays
from ..arrays import Array
from ..limits import require_memory

__all__ = [
    "Array",
    "as_array",
    "check_dtype",
    "check_shape",
    "check_spatial",
    "check_sum",
    "float_array",
    "float_dtype",
    "integer",
    "number",
]


def as_array(name: str, value: Any) -> Array:
    """Take what `fastconv.arrays.as_array` takes, in native byte order, if there is memory for as large a result."""
    array = arrays.as_array(name, value)
    require_memory(f"a result as large as {name}, of shape {array.shape},", array.nbytes)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def float_array(name: str, value: Any) -> Array:
    """Take an array of float32 or float64."""
    array = as_array(name, value)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}: expected float32 or float64")
    return array


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """Turn ``dtype`` into NumPy's float32 or float64."""
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        if np.dtype(dtype) == known:
            return known
    raise TypeError(f"dtype is {np.dtype(dtype)}: expected float32 or float64")


def check_dtype(name: str, array: Array, dtype: np.dtype[Any], owner: str) -> None:
    """Refuse an array of another dtype than its ``owner`` works in."""
    if array.dtype != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, {owner} {dtype}: expected the same dtype")


def check_shape(name: str, array: Array, shape: Sequence[int]) -> None:
    """Refuse an array that does not have exactly this shape."""
    if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}: expected {tuple(shape)}")


def check_sum(output: Array, shortcut: Array) -> None:
    """Refuse the output of a residual block's body and a shortcut that cannot be added."""
    if output.shape != shortcut.shape or output.dtype != shortcut.dtype:
        raise ValueError(
            f"body(x) has shape {output.shape} and dtype {output.dtype}, the shortcut {shortcut.shape} and "
            f"{shortcut.dtype}: expected the same, so that they can be added"
        )


def check_spatial(x: Array, ndim: int, channels: int | None = None) -> None:
    """Refuse an ``x`` that is not (n_ch, *spatial) or (N, n_ch, *spatial) with ``ndim`` spatial axes, none empty."""
    spatial = ", ".join(("d", "h", "w")[3 - ndim :])
    count = "n_ch" if channels is None else str(channels)
    expected = f"expected ({count}, {spatial}) or (N, {count}, {spatial})"
    if x.ndim not in (ndim + 1, ndim + 2):
        raise ValueError(f"x has shape {x.shape}: {expected}")
    if channels is not None and x.shape[-ndim - 1] != channels:
        raise ValueError(f"x has {x.shape[-ndim - 1]} channels (shape {x.shape}): {expected}")
    if min(x.shape[-ndim - 1 :]) < 1:
        raise ValueError(f"x has shape {x.shape}: only the batch may be empty")


def integer(name: str, value: Any, least: int = 1) -> int:
    """Take an int of at least ``least``; a bool is none."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}: expected an int")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}: expected an int") from None
    if result < least:
        raise ValueError(f"{name} is {result}: expected at least {least}")
    return result


def number(name: str, value: Any, low: float, high: float = math.inf, *, open_end: bool = False) -> float:
    """Take a finite number from ``low`` to ``high`` (without ``high`` where ``open_end``)."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
        raise TypeError(f"{name} is {value!r}: expected a number")
    result = float(value)
    if not (low <= result <= high) or math.isinf(result) or (open_end and result == high):
        bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} is {result}: expected a finite number {bound}{' (excluded)' if open_end else ''}")
    return result
