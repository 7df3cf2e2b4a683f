"""Padding as an operation of its own, and its gradient.

Along one axis padding is an index map: padded element ``j`` is input element ``source[j]``, or zero.  The gradient is the
transposed map: each input element gathers the gradients of all its copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array, as_array, empty
from .geometry import Pairs, checked_shape, padding_pairs
from .limits import require_memory

__all__ = ["pad", "pad_backward"]

MODES = ("zeros", "reflect", "replicate", "circular")


def pad(x: Any, padding: Any, mode: str = "zeros") -> Array:
    """Pad the spatial axes of an array.

    Parameters
    ----------
    x : array of shape (N, n_ch, *spatial) or (n_ch, *spatial)
        Any dtype that can be convolved.
    padding : int, sequence of int, or sequence of (int, int)
        One number or one (left, right) pair for each spatial axis, in the axes' order; the last axes of ``x`` are padded.
        One int for all sides pads one spatial axis if ``x`` has 2 axes, three if it has 5, and else both axes of an image.
    mode : {"zeros", "reflect", "replicate", "circular"}
        What to pad with: zeros, the image mirrored at its border pixels, its border pixels, or the opposite side.

    Returns
    -------
    ndarray
        A new array, larger by the padding.

    Raises
    ------
    TypeError
        If ``x`` is no array or the padding no integers.
    ValueError
        If the mode is unknown, the padding is negative or does not fit the axes, or the image is too small for it:
        "reflect" needs more pixels than padding, "circular" at least as many, "replicate" one.
    MemoryError
        If the result is larger than what is free.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import pad
    >>> pad(np.array([[1, 2, 3]]), 2, mode="reflect")
    array([[3, 2, 1, 2, 3, 2, 1]])
    >>> pad(np.ones((1, 1, 2)), [(0, 1), (1, 0)])
    array([[[0., 1., 1.],
            [0., 0., 0.]]])
    """
    x = as_array("x", x)
    sides = _sides("x", x.shape, padding, mode)
    first = x.ndim - len(sides)
    padded = tuple(n + left + right for n, (left, right) in zip(x.shape[first:], sides, strict=True))
    result = empty("the padded array", x.shape[:first] + padded, x.dtype.newbyteorder("="))
    if mode == "zeros":
        result[...] = 0
        result[_inside(x.shape, sides)] = x
        return result
    for axis, (left, right) in enumerate(sides, first):
        if left or right:
            x = x.take(_source(mode, x.shape[axis], left, right), axis)
    result[...] = x
    return result


def pad_backward(grad_output: Any, input_size: Sequence[int], padding: Any, mode: str = "zeros") -> Array:
    """Compute the gradient of a loss with respect to the input of `pad`.

    Parameters
    ----------
    grad_output : array
        Gradient with respect to `pad`'s result.
    input_size : sequence of int
        Shape of `pad`'s input.
    padding, mode
        As `pad` had them.

    Returns
    -------
    ndarray of shape ``input_size``
        Each element is the sum of the gradients of its copies.

    Raises
    ------
    TypeError, ValueError
        As `pad`, and if ``grad_output`` does not have the shape of `pad`'s result.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import pad_backward
    >>> pad_backward(np.ones((1, 7)), (1, 3), 2, mode="reflect")
    array([[2., 3., 2.]])
    """
    grad_output = as_array("grad_output", grad_output)
    shape = checked_shape("input_size", input_size)
    sides = _sides("input_size", shape, padding, mode)
    first = len(shape) - len(sides)
    expected = shape[:first] + tuple(n + left + right for n, (left, right) in zip(shape[first:], sides, strict=True))
    if grad_output.shape != expected:
        raise ValueError(f"grad_output has shape {grad_output.shape}: expected {expected}")
    require_memory(f"a copy of grad_output, of shape {expected},", grad_output.nbytes)
    gradient = grad_output.astype(grad_output.dtype.newbyteorder("="))
    if mode == "zeros":
        return np.ascontiguousarray(gradient[_inside(shape, sides)])
    for axis, (left, right) in enumerate(sides, first):
        n = shape[axis]
        source = _source(mode, n, left, right)
        gradient = np.moveaxis(gradient, axis, 0)
        total = gradient[left : left + n].copy()
        for j in (*range(left), *range(left + n, left + n + right)):
            total[source[j]] += gradient[j]
        gradient = np.moveaxis(total, 0, axis)
    return np.ascontiguousarray(gradient)


def _inside(shape: Sequence[int], sides: Pairs) -> tuple[Any, ...]:
    """Index of the input inside its padded array."""
    return (..., *(slice(left, left + n) for n, (left, _) in zip(shape[len(shape) - len(sides) :], sides, strict=True)))


def _source(mode: str, n: int, left: int, right: int) -> Array:
    """Which of n elements stands at each of left + n + right places."""
    at = np.arange(-left, n + right)
    if mode == "replicate":
        return at.clip(0, n - 1)
    if mode == "circular":
        return at % n
    at = np.abs(at)
    return np.where(at > n - 1, 2 * (n - 1) - at, at)


def _sides(name: str, shape: Sequence[int], padding: Any, mode: Any) -> Pairs:
    """Check padding and mode against a shape; return one (left, right) pair for each axis that is padded."""
    if not isinstance(mode, str):
        raise TypeError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: expected one of {', '.join(MODES)}")
    if isinstance(padding, str):
        raise TypeError(f"padding is {padding!r}: expected an int, one per axis, or one (left, right) pair per axis")
    ndim = len(padding) if isinstance(padding, (tuple, list)) else {2: 1, 5: 3}.get(len(shape), 2)
    if not 1 <= ndim <= 3:
        raise ValueError(f"padding has {ndim} values: expected one for each of 1 to 3 spatial axes")
    sides = padding_pairs(padding, ndim)
    if len(shape) not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"{name} has shape {tuple(shape)}: expected {ndim + 1} or {ndim + 2} axes to pad {ndim} of them"
        )
    for n, pair in zip(shape[len(shape) - ndim :], sides, strict=True):
        if n < {"zeros": 0, "replicate": 1, "circular": max(pair), "reflect": max(pair) + 1}[mode]:
            raise ValueError(f"padding is {pair} along an axis of size {n} of {name}: too much for mode {mode!r}")
    return sides
