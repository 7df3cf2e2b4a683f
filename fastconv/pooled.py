"""Convolution and max-pooling in one pass: a task keeps the maxima of what it computes, which never leaves the cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, as_array, empty, plain
from .calls import flat, form_of, recall, remember
from .geometry import geometry_of
from .limits import SMALL
from .passes import Operand, bias_values, row_for, shapes_3d
from .prepared import PreparedWeight

__all__ = ["conv2d_max_pool"]

Pairs = Sequence[tuple[int, int]]


def conv2d_max_pool(
    x: Array, weight: Array | PreparedWeight, bias: Array | None, stride: Any, padding: Pairs, dilation: Any, groups: int,
    window: tuple[int, int], relu: bool,
) -> tuple[Array, Array] | None:  # fmt: skip
    """Compute the maxima of windows side by side of a convolution's output, or of its ReLU, and where they are.

    Parameters
    ----------
    x : ndarray of shape (N, n_ch, h, w), float32 or float64
    weight, bias, stride, padding, dilation, groups
        As of `fastconv.conv2d`, and checked.
    window : tuple of int
        Rows and columns.  The output has room for one at least.
    relu : bool

    Returns
    -------
    None, where what computes the convolution cannot do both; or two arrays
        The maxima, (N, h_new, w_new, n_f), and their places, bytes as of `fastconv.kernels.pooling.max_pool`.
    """
    form = form_of((x, weight, bias), (relu,), ("max_pool", stride, padding, dilation, groups, window))
    if (known := recall(form)) is not None:
        result: tuple[Array, Array] | None = known(flat(x), flat(weight), None if bias is None else flat(bias))
        return result
    geometry = geometry_of(x.shape, weight.shape, stride, padding, dilation, groups, 2)
    batch, filters, height, width = geometry.output_shape
    shape = (batch, height // window[0], width // window[1], filters)
    count, dtype = math.prod(shape), x.dtype
    size = count + -(-count // dtype.itemsize)  # bytes behind the maxima
    prepared = weight if isinstance(weight, PreparedWeight) else None
    x_shape, weight_shape, _ = shapes_3d(geometry)
    operands = [Operand(x, x_shape, 2), Operand(as_array("weight", weight), weight_shape, 2, prepared)]
    row, needed = row_for("output", geometry, dtype, operands, (size,), "auto", None)
    if count == 0 or row.bind is None or not row.pools(geometry, dtype.itemsize):
        remember(form, _neither)
        return None
    images = plain(x, x_shape, dtype, 2)
    factors: Any = prepared or plain(operands[1].array, weight_shape, dtype, 2)
    values = plain(bias_values(bias, filters, 2, dtype), (filters,), dtype)
    run = row.bind(geometry.volume, images, factors, np.empty(0, dtype), window=window)
    call = functools.partial(_maxima, run, shape, size, dtype, 0.0 if relu else -math.inf)
    as_they_lie = np.may_share_memory(images, x) and (prepared or np.may_share_memory(factors, operands[1].array))
    if as_they_lie and needed < SMALL:  # of larger calls the memory is checked each time
        remember(form, call)
    return call(flat(images), flat(factors), values)


def _maxima(
    run: Callable[..., None], shape: tuple[int, ...], size: int, dtype: np.dtype[Any], floor: float, *arrays: Any
) -> tuple[Array, Array]:
    """Run a program with flat arrays."""
    out, count = empty("the output", (size,), dtype), math.prod(shape)
    run(out, *arrays, floor)
    return out[:count].reshape(shape), out.view(np.uint8)[count * dtype.itemsize :][:count].reshape(shape)


def _neither(*arrays: Any) -> None:
    """Stand for a call that cannot do both."""
