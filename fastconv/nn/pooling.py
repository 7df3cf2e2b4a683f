"""Pooling layers: the geometry of the windows, turned into the tables that `fastconv.kernels.pooling` works from."""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import numpy as np

from ..arrays import empty, is_channels_last, plain
from ..geometry import ceil_div, per_axis
from ..kernels.pooling import NOWHERE, max_pool, max_pool_backward, mean_pool, mean_pool_backward
from ..limits import require_memory
from .checks import Array, check_spatial, float_array, integer
from .module import Layer

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d"]


class Windows(NamedTuple):
    """The windows along one axis, one value per output: ``start <= p < stop``, and ``size``, what a mean divides by."""

    start: Array
    stop: Array
    size: Array


class Pooling(Layer):
    """Base of the pooling layers: shapes (n_ch, h, w) or (N, n_ch, h, w), float32 or float64."""

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        check_spatial(x, 2)
        return x

    def _sample_axes(self) -> int:
        return 3

    @abc.abstractmethod
    def _windows(self, axis: int, n: int) -> Windows:
        """Windows along the rows (axis 0) or the columns (axis 1) of an image of size ``n`` there."""


class SlidingPooling(Pooling):
    """What windows at equal distances share: kernel, stride, padding and the size of the output."""

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> None:
        super().__init__()
        self.kernel_size = per_axis("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else per_axis("stride", stride, 2, 1)
        self.padding = per_axis("padding", padding, 2, 0)
        self.ceil_mode = bool(ceil_mode)
        for size, kernel in zip(self.padding, self.kernel_size, strict=True):
            if size > kernel // 2:
                raise ValueError(f"padding is {size}: expected at most half of the kernel size {kernel}")

    def _begins(self, axis: int, n: int, reach: int) -> Array:
        """First row of each window, padding included, as PyTorch counts windows that reach over ``reach`` rows."""
        s, padding = self.stride[axis], self.padding[axis]
        rest = n + 2 * padding - reach
        count = (ceil_div(rest, s) if self.ceil_mode else rest // s) + 1
        if self.ceil_mode and (count - 1) * s >= n + padding:  # the last window must begin before the right padding
            count -= 1
        if count < 1:
            raise ValueError(
                f"x has {n} {('rows', 'columns')[axis]}, {n + 2 * padding} with padding: expected at least {reach}, "
                f"the reach of a window"
            )
        return _upto(count) * s - padding

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return text + (", ceil_mode=True" if self.ceil_mode else "")


class MaxPool2d(SlidingPooling):
    """The maximum of each window.  A NaN in a window makes the output NaN; among equal values the first one counts.

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        The kernel size, if not given.
    padding : int or (int, int)
        Rows and columns on each side that never win; at most half of the kernel size.
    dilation : int or (int, int)
        Distance between the rows and columns of a window.
    ceil_mode : bool
        Whether to round the output size up, so that the last window may stick out.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value; on a call, if a window would hold nothing but padding.

    Examples
    --------
    >>> pool = MaxPool2d(2)
    >>> pool(np.array([[[1.0, 5.0, 2.0, 2.0], [3.0, 4.0, 2.0, 2.0]]]))
    array([[[5., 2.]]])
    >>> pool.backward(np.array([[[10.0, 20.0]]]))
    array([[[ 0., 10., 20.,  0.],
            [ 0.,  0.,  0.,  0.]]])
    """

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = per_axis("dilation", dilation, 2, 1)

    def _windows(self, axis: int, n: int) -> Windows:
        d, reach = self.dilation[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        begin = self._begins(axis, n, reach)
        start = np.where(begin < 0, begin % d, begin)  # the first tap inside the image
        stop = np.minimum(begin + reach, n)
        if (start >= stop).any():
            raise ValueError(
                f"x has {n} {('rows', 'columns')[axis]}: with padding {self.padding[axis]} and dilation {d}, a window "
                f"would hold nothing but padding"
            )
        return Windows(start, stop, stop - start)

    def _forward(self, x: Array, with_relu: bool = False) -> tuple[Array, tuple[Any, ...]]:
        rows, cols = self._windows(0, x.shape[-2]), self._windows(1, x.shape[-1])
        tables = (rows.start, rows.stop, self.dilation[0], cols.start, cols.stop, self.dilation[1])
        last, planes = as_lanes(x)
        shape = (len(planes), len(rows.start), len(cols.start), planes.shape[3])
        out = empty("the output", shape, x.dtype)
        small = math.prod(self.kernel_size) < NOWHERE
        where = empty("the places of the maxima", shape, np.dtype(np.uint8 if small else np.int64))
        lowest, nowhere = (0.0, NOWHERE if small else -1) if with_relu else (-np.inf, 0)
        max_pool(planes, *tables, x.dtype.type(lowest), nowhere, out, where)
        return from_lanes(out, last, x.shape), (x.shape, where, last, tables)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        shape, where, last = kept[:3]
        tables: tuple[Array, Array, int, Array, Array, int] = kept[3]
        _, grad = as_lanes(grad_output, last)
        dx = empty("dX", (len(where), *shape[-2:], where.shape[3]), grad.dtype)
        max_pool_backward(grad, where, *tables, dx)
        return from_lanes(dx, last, shape)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return super().extra_repr() + (f", dilation={self.dilation}" if self.dilation != (1, 1) else "")


class MeanPooling(Pooling):
    """What both mean layers share: forward and backward from their windows."""

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        rows, cols = self._windows(0, x.shape[-2]), self._windows(1, x.shape[-1])
        planes = as_planes(x)
        out = empty("the output", (len(planes), len(rows.start), len(cols.start)), x.dtype)
        mean_pool(planes, *rows, *cols, out)
        return out.reshape(*x.shape[:-2], *out.shape[1:]), (x.shape, rows, cols)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        shape: tuple[int, ...] = kept[0]
        rows: Windows = kept[1]
        cols: Windows = kept[2]
        grad = as_planes(grad_output)
        dx = np.zeros((len(grad), *shape[-2:]), grad.dtype)
        mean_pool_backward(grad, *rows, *cols, dx)
        return dx.reshape(shape)


class AvgPool2d(MeanPooling, SlidingPooling):
    """The mean of each window.

    Parameters
    ----------
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        The kernel size, if not given.
    padding : int or (int, int)
        Rows and columns of zeros on each side; at most half of the kernel size.
    ceil_mode : bool
        Whether to round the output size up, so that the last window may stick out.
    count_include_pad : bool
        Whether the zeros of the padding count as elements.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> AvgPool2d((1, 2))(np.array([[[1.0, 5.0, 2.0, 2.0]]]))
    array([[[3., 2.]]])
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = bool(count_include_pad)

    def _windows(self, axis: int, n: int) -> Windows:
        kernel, padding = self.kernel_size[axis], self.padding[axis]
        begin = self._begins(axis, n, kernel)
        end = np.minimum(begin + kernel, n + padding)  # what sticks out beyond the padding never counts
        start, stop = np.maximum(begin, 0), np.minimum(end, n)
        return Windows(start, stop, end - begin if self.count_include_pad else stop - start)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return super().extra_repr() + ("" if self.count_include_pad else ", count_include_pad=False")


class AdaptiveAvgPool2d(MeanPooling):
    """The means of as many windows as are asked for, whatever the size of the image.

    Output i is the mean of rows floor(i*h/h_new) up to, not including, ceil((i + 1)*h/h_new); columns alike.

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        h_new and w_new; None keeps the size of the image.

    Raises
    ------
    TypeError, ValueError
        If output_size has another form.

    Examples
    --------
    >>> AdaptiveAvgPool2d(1)(np.array([[[1.0, 5.0], [2.0, 2.0]]]))
    array([[[2.5]]])
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        if len(sizes) != 2:
            raise ValueError(f"output_size has {len(sizes)} values: expected 1 or 2")
        self.output_size = tuple(None if size is None else integer("output_size", size) for size in sizes)

    def _windows(self, axis: int, n: int) -> Windows:
        size = self.output_size[axis] or n
        index = _upto(size)
        start, stop = index * n // size, -(-(index + 1) * n // size)
        return Windows(start, stop, stop - start)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return f"output_size={self.output_size}"


def _upto(count: int) -> Array:
    """Numbers of the windows along an axis, from 0 on, if there is memory for some tables of them."""
    require_memory(f"tables of {count} windows", 8 * 8 * count)
    return np.arange(count, dtype=np.int64)


def as_planes(x: Array) -> Array:
    """Images as (planes, h, w) in the one kind of array that the kernels are compiled for."""
    return plain(x, (math.prod(x.shape[:-2]), *x.shape[-2:]), x.dtype)


def as_lanes(x: Array, last: bool | None = None) -> tuple[bool, Array]:
    """Images as (images, h, w, channels) where they lie channels-last, or shall, else as (planes, h, w, 1); and which."""
    if last is None:
        last = x.ndim == 4 and is_channels_last(x, 2)
    if last:
        pixels = x.transpose(0, 2, 3, 1)
        return True, plain(pixels, pixels.shape, x.dtype)
    return False, as_planes(x)[..., np.newaxis]


def from_lanes(lanes: Array, last: bool, shape: tuple[int, ...]) -> Array:
    """View what `as_lanes` made, or a result like it, as images with the first axes of ``shape``."""
    return lanes.transpose(0, 3, 1, 2) if last else lanes.reshape(*shape[:-2], *lanes.shape[1:3])
