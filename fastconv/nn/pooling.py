"""Pooling layers: the geometry of the windows, turned into the tables that `fastconv.kernels.pooling` works from."""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import empty
from ..geometry import ceil_div, per_axis
from ..kernels.pooling import NOWHERE, max_pool, max_room, mean_pool, pool_backward
from ..kernels.sums import BLOCKS, rooms_for
from ..limits import require_memory
from .checks import Array, check_spatial, float_array, integer
from .layout import images_of, lie_channels_last, pixels_of
from .module import Layer

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d"]


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows along an axis of ``n`` positions, one value per output: ``start <= p < stop`` in steps.

    ``size`` is what a mean divides by.
    """

    n: int
    start: Array
    stop: Array
    size: Array
    step: int = 1

    @functools.cached_property
    def taps(self) -> int:
        """Most positions of a window."""
        return int(-(-(self.stop - self.start).max() // self.step))

    @functools.cached_property
    def tile(self) -> bool:
        """Say whether each position is in exactly one window."""
        ends = np.concatenate(([0], self.stop))
        return self.step == 1 and bool((self.start == ends[:-1]).all()) and ends[-1] == self.n


MOST_KNOWN = 16
"""Sizes of images of which a layer keeps the tables."""

NO_PLACES = np.empty((0, 0, 0, 0), np.uint8)


class Pooling(Layer):
    """Base of the pooling layers: shapes (n_ch, h, w) or (N, n_ch, h, w), float32 or float64."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[str, int, int], Windows] = {}

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        check_spatial(x, 2)
        return x

    def windows(self, shape: tuple[int, ...]) -> list[Windows]:
        """Windows along the rows and the columns; their tables are kept for the next images of the same size."""
        found = []
        for axis, n in enumerate(shape[-2:]):
            key = self.extra_repr(), axis, n
            if key not in self._known:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[key] = self._windows(axis, n)
            found.append(self._known[key])
        return found

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        shape, (rows, cols), where, last = kept
        grad = pixels_of(grad_output)
        dx = empty("dX", (len(grad), *shape[-2:], grad.shape[3]), grad.dtype)
        n, h_out, w_out, channels = grad.shape
        bands = min(h_out, ceil_div(BLOCKS, max(1, n)))
        rooms = rooms_for(n * bands, w_out * channels, grad.dtype)
        pool_backward(
            grad, where, rows.start, rows.stop, rows.step, rows.size, cols.start, cols.stop, cols.step, cols.size, cols.taps,
            rows.tile and cols.tile, bands, rooms, dx,
        )  # fmt: skip
        return images_of(dx, shape, last)

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
        return Windows(n, start, stop, -(-(stop - start) // d), d)

    def _forward(self, x: Array, with_relu: bool = False) -> tuple[Array, tuple[Any, ...]]:
        rows, cols = self.windows(x.shape)
        pixels, last = pixels_of(x), lie_channels_last(x)
        shape = (len(pixels), len(rows.start), len(cols.start), pixels.shape[3])
        out = empty("the output", shape, x.dtype)
        small = math.prod(self.kernel_size) < NOWHERE
        where = empty("the places of the maxima", shape, np.dtype(np.uint8 if small else np.int64))
        lowest, nowhere = (0.0, NOWHERE if small else -1) if with_relu else (-np.inf, 0)
        tables = (rows.start, rows.stop, rows.step, cols.start, cols.stop, cols.step, cols.taps)
        room = max_room((rows.taps, cols.taps), *shape[2:], x.itemsize, where.itemsize)
        rooms = rooms_for(shape[0] * shape[1], room, x.dtype)
        max_pool(pixels, *tables, np.array([lowest], x.dtype), nowhere, rooms, out, where)
        return images_of(out, output_shape(x, out), last), (x.shape, (rows, cols), where, last)

    @property
    def window(self) -> tuple[int, int] | None:
        """Rows and columns of windows that lie side by side, whose maxima have a byte for their places; else None."""
        rows, columns = self.kernel_size
        side_by_side = self.stride == self.kernel_size and self.padding == (0, 0) and self.dilation == (1, 1)
        return (rows, columns) if side_by_side and not self.ceil_mode and rows * columns < NOWHERE else None

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return super().extra_repr() + (f", dilation={self.dilation}" if self.dilation != (1, 1) else "")


class MeanPooling(Pooling):
    """What both mean layers share: forward and backward from their windows."""

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        rows, cols = self.windows(x.shape)
        pixels, last = pixels_of(x), lie_channels_last(x)
        out = empty("the output", (len(pixels), len(rows.start), len(cols.start), pixels.shape[3]), x.dtype)
        rooms = rooms_for(out.shape[0] * out.shape[1], out.shape[3], np.dtype(np.float64))
        mean_pool(pixels, rows.start, rows.stop, rows.size, cols.start, cols.stop, cols.size, rooms, out)
        return images_of(out, output_shape(x, out), last), (x.shape, (rows, cols), NO_PLACES, last)


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
        return Windows(n, start, stop, end - begin if self.count_include_pad else stop - start)

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
        return Windows(n, start, stop, stop - start)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return f"output_size={self.output_size}"


def _upto(count: int) -> Array:
    """Numbers of the windows along an axis, from 0 on, if there is memory for some tables of them."""
    require_memory(f"tables of {count} windows", 8 * 8 * count)
    return np.arange(count, dtype=np.int64)


def output_shape(x: Array, pixels: Array) -> tuple[int, ...]:
    """Shape of images, or one image, whose pixels these are, if x is pooled to them."""
    return (*x.shape[:-2], *pixels.shape[1:3])
