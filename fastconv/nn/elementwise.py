"""What is done to arrays element by element, in the order in which they lie in memory: NCHW or channels-last."""

from __future__ import annotations

import numpy as np

from ..arrays import empty, is_channels_last, plain
from ..kernels.elementwise import add, masked, rectify
from .checks import Array

__all__ = ["passed", "rectified", "summed"]

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


def passed(values: Array, mask: Array) -> Array:
    """Copy the values where the mask, for example the output of a ReLU, is not 0; set the others to 0, NaN included."""
    passes, order = in_memory_order(mask)
    flat, _ = in_memory_order(values, order)
    output = empty("the output", flat.shape, values.dtype)
    masked(flat, passes, output)
    return reordered(output, values.shape, order)


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
