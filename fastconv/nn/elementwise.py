"""What is done to arrays element by element, in the order in which they lie in memory: NCHW or channels-last."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import empty, is_channels_last, plain
from ..kernels.elementwise import add, drop, masked, rectify, scaled
from .checks import Array

__all__ = ["dropped", "passed", "rectified", "summed"]

ROW = 1024
"""Numbers of a row that a thread takes at a time, where rows are not those of pixels."""

Order = tuple[int, ...]


def rectified(x: Array) -> Array:
    """Return max(x, 0)."""
    values, order = in_memory_order(x)
    output = empty("the output", values.shape, x.dtype)
    rectify(values, output)
    return reordered(output, x.shape, order)


def summed(a: Array, b: Array, *, with_relu: bool = False, in_place: bool = False) -> Array:
    """Return a + b, or max(a + b, 0); it lies as ``a`` does, or is in its place, if that is contiguous."""
    values, order = in_memory_order(a)
    others, _ = in_memory_order(b, order)
    output = values if in_place else empty("the sum", values.shape, a.dtype)
    add(values, others, a.dtype.type(0 if with_relu else -np.inf), output)
    return reordered(output, a.shape, order)


def passed(values: Array, mask: Array, scale: float | None = None) -> Array:
    """Copy the values where the mask, for example the output of a ReLU, is not 0; set the others to 0, NaN included.

    With a scale, they are multiplied with it.
    """
    passes, order = in_memory_order(mask)
    flat, _ = in_memory_order(values, order)
    output = empty("the output", flat.shape, values.dtype)
    if scale is None:
        masked(flat, passes, output)
    else:
        scaled(flat, passes, values.dtype.type(scale), output)
    return reordered(output, values.shape, order)


def dropped(x: Array, p: float, scale: float, keys: Array) -> tuple[Array, Array]:
    """Return x * scale with each number set to 0 with probability p, and a mask of the others, which lies as x does."""
    values, order = in_memory_order(x)
    output, mask = empty("the output", values.shape, x.dtype), empty("a mask", values.shape, np.dtype(np.bool_))
    last = x.size > 0 and order != tuple(range(x.ndim))
    width, pixels = (x.shape[1], math.prod(x.shape[2:])) if last else (ROW, 1)
    drop(values, width, pixels, keys, np.uint64(round(p * 2**32)), x.dtype.type(scale), mask, output)
    return reordered(output, x.shape, order), reordered(mask, x.shape, order)


def in_memory_order(x: Array, order: Order | None = None) -> tuple[Array, Order]:
    """Flatten an array as its axes, channels first or last, lie in memory, or as an order of axes says; return both."""
    if order is None:
        last = x.ndim > 2 and is_channels_last(x, x.ndim - 2)
        order = (0, *range(2, x.ndim), 1) if last else tuple(range(x.ndim))
    return plain(x.transpose(order), (-1,), x.dtype), order


def reordered(flat: Array, shape: tuple[int, ...], order: Order) -> Array:
    """View flat memory as an array of this shape whose axes lie in this order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat.reshape([shape[axis] for axis in order]).transpose(back)
